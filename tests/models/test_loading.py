"""Base models are found, inspected without weights, quantized, and adapted."""

import json

import pytest
import torch

from peft_space.errors import UserError
from peft_space.models.architecture import linear_layers, target_modules
from peft_space.models.loading import (
    check_adapter_is_loaded,
    load_adapted,
    load_base_model,
    new_adapter,
    parameter_counts,
)
from peft_space.models.resolve import find_base, load_tokenizer, pin_revision
from peft_space.recipe import Recipe

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base():
    return pin_revision(find_base("demo"))


@pytest.fixture(scope="module")
def adapted(base):
    return new_adapter(load_base_model(base, Recipe(), "float32"), Recipe(), base)


def test_all_linear_layers_but_the_head_are_found(base):
    layers = linear_layers(base.config)
    assert layers.counts == dict.fromkeys(ALL, base.config.num_hidden_layers)
    assert (layers.attention, layers.head) == (ALL[:4], "lm_head")


def test_target_modules_are_all_layers_attention_or_a_list(base):
    layers = linear_layers(base.config)
    assert target_modules(Recipe(), layers) == ALL
    assert target_modules(Recipe(target_modules="attention"), layers) == ALL[:4]
    assert target_modules(Recipe(target_modules=["up_proj"]), layers) == ["up_proj"]


@pytest.mark.parametrize(
    ("names", "code", "value"),
    [
        (["q_prj"], "models.unknown_module", "Did you mean q_proj?"),
        (["query"], "models.unknown_module", "q_proj, k_proj"),
        ([], "models.unknown_module", "target_modules"),
        (["q_proj", "lm_head"], "models.layer_left_out", "output layer"),
        (["embed_tokens"], "models.layer_left_out", "modules_to_save"),
        (["input_layernorm"], "models.layer_left_out", "LlamaRMSNorm"),
    ],
)
def test_an_unknown_target_module_is_rejected_with_the_known_ones(base, names, code, value):
    with pytest.raises(UserError) as error:
        target_modules(Recipe(target_modules=names), linear_layers(base.config))
    assert error.value.code == code
    assert value in str(error.value)


def test_every_linear_layer_is_in_4_bits_and_wrapped(adapted, base):
    import bitsandbytes
    from peft.tuners.lora.bnb import Linear4bit

    wrapped = [module for module in adapted.modules() if isinstance(module, Linear4bit)]
    assert len(wrapped) == 7 * base.config.num_hidden_layers
    for module in wrapped:
        assert isinstance(module.base_layer, bitsandbytes.nn.Linear4bit)
        assert module.base_layer.weight.quant_state.quant_type == "nf4"
        assert module.base_layer.weight.quant_state.nested


def test_only_the_adapter_is_trained_in_float32(adapted):
    trained = {
        name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad
    }
    assert trained
    assert all(
        "lora_" in name and parameter.dtype == torch.float32 for name, parameter in trained.items()
    )


def test_packed_parameters_are_counted_one_by_one(adapted, base):
    whole = load_base_model(base, Recipe(quantization="none"), "float32").num_parameters()
    trainable, total = parameter_counts(adapted)
    assert total == whole + trainable
    assert trainable == sum(
        parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad
    )


def test_the_adapter_names_its_base_and_revision(adapted, base):
    config = adapted.peft_config["default"]
    assert config.base_model_name_or_path == "peft_space/demo/model"
    assert config.revision == base.revision
    assert base.revision.startswith("sha256-")


def test_a_local_folder_can_be_a_base_except_on_a_space(tmp_path, base, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(base.config.to_dict()))
    assert find_base(str(tmp_path)).config.hidden_size == base.config.hidden_size
    monkeypatch.setenv("SYSTEM", "spaces")
    with pytest.raises(UserError) as error:
        find_base(str(tmp_path))
    assert error.value.code == "models.not_found"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nobody/nothing", "hub.unreachable"),
        ("two words", "models.not_found"),
        ("../../nowhere", "models.not_found"),
    ],
)
def test_an_unknown_base_model_is_rejected(name, code):
    with pytest.raises(UserError) as error:
        find_base(name)
    assert error.value.code == code
    assert name in str(error.value)


def test_a_folder_without_a_config_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"config\.json") as error:
        find_base(str(tmp_path))
    assert error.value.code == "models.not_a_base_model"


def test_a_model_with_its_own_code_is_rejected_and_the_code_does_not_run(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}})
    )
    (tmp_path / "code.py").write_text(f"open({str(canary)!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(UserError) as error:
        find_base(str(tmp_path))
    assert error.value.code == "models.needs_code"
    assert not canary.exists()


def test_pickled_weights_are_rejected(tmp_path, base):
    (tmp_path / "config.json").write_text(json.dumps(base.config.to_dict()))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        load_base_model(find_base(str(tmp_path)), Recipe(quantization="none"), "float32")
    assert error.value.code == "models.weights_unsupported"


def test_a_model_that_does_not_continue_text_is_rejected():
    from transformers import ViTConfig

    with pytest.raises(UserError, match="'vit'") as error:
        linear_layers(ViTConfig())
    assert error.value.code == "models.task_unsupported"


def test_a_tokenizer_without_a_template_gets_the_plain_one(tmp_path, base, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "config.json").write_text(json.dumps(base.config.to_dict()))
    assert "Question:" in load_tokenizer(find_base(str(tmp_path))).chat_template


def test_a_layer_of_an_adapter_that_was_not_loaded_is_noticed(own_run):
    model = load_adapted(own_run).model
    check_adapter_is_loaded(model, own_run.adapter)
    layer = next(module for name, module in model.named_modules() if name.endswith("q_proj"))
    torch.nn.init.zeros_(layer.lora_B["default"].weight)  # as in a new layer
    with pytest.raises(UserError) as error:
        check_adapter_is_loaded(model, own_run.adapter)
    assert (error.value.code, "q_proj" in str(error.value)) == ("models.adapter_layers_lost", True)
