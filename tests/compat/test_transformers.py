"""The internals of transformers that the app uses behave as it expects."""

from transformers import AutoModelForCausalLM, LlamaConfig, ViTConfig

from peft_space.compat.transformers import cached_repo_file, has_auto_model
from peft_space.demo import MODEL_DIR


def test_the_auto_classes_know_which_configs_they_have_models_for():
    assert has_auto_model(AutoModelForCausalLM, LlamaConfig)
    assert not has_auto_model(AutoModelForCausalLM, ViTConfig)


def test_a_missing_or_unreachable_file_is_none():
    assert cached_repo_file(str(MODEL_DIR), "config.json", None) == MODEL_DIR / "config.json"
    assert cached_repo_file(str(MODEL_DIR), "missing.json", None) is None
    assert cached_repo_file("nobody/nothing", "config.json", None) is None
