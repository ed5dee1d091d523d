"""Base models are found, looked at without weights, quantized, and given an adapter that names them."""

import json

import pytest
import torch

from peft_space.errors import UserError
from peft_space.models.architecture import linear_layers, target_modules
from peft_space.models.loading import load_base_model, new_adapter, parameter_counts
from peft_space.models.resolve import find_base, load_tokenizer, pin_revision
from peft_space.recipe import Recipe

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base():
    return pin_revision(find_base("demo"))


@pytest.fixture(scope="module")
def adapted(base):
    return new_adapter(load_base_model(base, Recipe(), "float32"), Recipe(), base)


def test_all_linear_layers_are_found_in_the_model_and_the_head_is_not_among_them(base):
    layers = linear_layers(base.config)
    assert layers.counts == dict.fromkeys(ALL, base.config.num_hidden_layers)
    assert (layers.attention, layers.head) == (ALL[:4], "lm_head")


def test_target_modules_are_all_attention_or_a_list(base):
    layers = linear_layers(base.config)
    assert target_modules(Recipe(), layers) == ALL
    assert target_modules(Recipe(target_modules="attention"), layers) == ALL[:4]
    assert target_modules(Recipe(target_modules=["up_proj"]), layers) == ["up_proj"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["q_prj"], "Did you mean q_proj?"),
        (["query"], "Choose from q_proj"),
        ([], "target_modules is empty"),
    ],
)
def test_a_target_module_that_is_not_in_the_model_is_refused_with_what_is(base, names, said):
    with pytest.raises(UserError) as refusal:
        target_modules(Recipe(target_modules=names), linear_layers(base.config))
    assert said in str(refusal.value)


def test_every_linear_layer_is_really_4_bit_and_wrapped(adapted, base):
    import bitsandbytes
    from peft.tuners.lora.bnb import Linear4bit

    wrapped = [module for module in adapted.modules() if isinstance(module, Linear4bit)]
    assert len(wrapped) == 7 * base.config.num_hidden_layers
    for module in wrapped:
        assert isinstance(module.base_layer, bitsandbytes.nn.Linear4bit)
        assert module.base_layer.weight.quant_state.quant_type == "nf4"
        assert module.base_layer.weight.quant_state.nested


def test_only_the_adapter_is_trained_and_in_float32(adapted):
    trained = {
        name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad
    }
    assert trained
    assert all(
        "lora_" in name and parameter.dtype == torch.float32 for name, parameter in trained.items()
    )


def test_parameters_are_counted_unpacked(adapted, base):
    whole = load_base_model(base, Recipe(quantization="none"), "float32").num_parameters()
    trainable, total = parameter_counts(adapted)
    assert total == whole + trainable
    assert trainable == sum(
        parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad
    )


def test_the_adapter_names_its_base_and_revision(adapted, base):
    config = adapted.peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == (
        "peft_space/demo/model",
        base.revision,
    )
    assert base.revision.startswith("sha256-")


def test_a_folder_of_this_machine_can_be_a_base_except_on_a_space(tmp_path, base, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(base.config.to_dict()))
    assert find_base(str(tmp_path)).config.hidden_size == base.config.hidden_size
    monkeypatch.setenv("SYSTEM", "spaces")
    with pytest.raises(UserError, match="There is no base model"):
        find_base(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody/nothing", "not on this machine and the Hub cannot be reached"),
        ("two words", "There is no base model 'two words'"),
        ("../../nowhere", "There is no base model"),
    ],
)
def test_an_unknown_base_model_is_refused_with_a_remedy(name, said):
    with pytest.raises(UserError) as refusal:
        find_base(name)
    assert said in str(refusal.value)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"it has no config\.json"):
        find_base(str(tmp_path))


def test_a_model_with_code_of_its_own_is_refused_and_the_code_is_not_run(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}})
    )
    (tmp_path / "code.py").write_text(f"open({str(canary)!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(UserError, match="code of its own"):
        find_base(str(tmp_path))
    assert not canary.exists()


def test_weights_that_are_a_pickle_are_refused(tmp_path, base):
    (tmp_path / "config.json").write_text(json.dumps(base.config.to_dict()))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="stored as safetensors"):
        load_base_model(find_base(str(tmp_path)), Recipe(quantization="none"), "float32")


def test_a_model_that_does_not_continue_text_is_refused():
    from transformers import ViTConfig

    with pytest.raises(UserError, match="do not continue text"):
        linear_layers(ViTConfig())


def test_a_tokenizer_without_a_template_gets_the_plain_one(tmp_path, base, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "config.json").write_text(json.dumps(base.config.to_dict()))
    assert "Question:" in load_tokenizer(find_base(str(tmp_path))).chat_template
