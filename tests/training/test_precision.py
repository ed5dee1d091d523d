"""What a training computes in, and holds what is frozen in: as transformers would load it, to numbers near those of float32."""

import copy
import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.models.architecture import auto_class
from peft_space.models.loading import load_base_model, new_adapter
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe, TaskSpec
from peft_space.runs import events
from peft_space.runs.plan import read_plan
from peft_space.runs.status import steps_of
from peft_space.training import autotune as planning
from peft_space.training.precision import (
    autocast_to,
    avoid_repeated_casts,
    cast_frozen_weights,
    frozen_dtype,
)
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from tests.fixtures import tiny_models
from tests.fixtures.architectures import ARCHITECTURES
from tests.models.test_architectures import LABELS, batch_of, config_of
from tests.training.test_trainers import WORDS, labelled, preferred, rated

EXACT = Recipe(quantization="none", lora_rank=2, lora_dropout=0.0)


def adapted(recipe=EXACT, where="demo", goal=None):
    base, goal = find_base(where), goal or TaskSpec("causal-lm")
    return (
        new_adapter(load_base_model(base, recipe, "float32", goal), recipe, base, goal).eval(),
        base,
        goal,
    )


def loss_and_gradients(model, batch, dtype="bfloat16"):
    model.zero_grad()
    with autocast_to(model, dtype):
        loss = model(**batch).loss
    loss.backward()
    return loss.item(), {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def tokens():
    ids = torch.arange(5, 69).reshape(2, 32)
    return {"input_ids": ids, "labels": ids}


def test_what_is_cast_once_in_place_of_in_every_step_changes_no_bit():
    model, *_ = adapted()
    loss, gradients = loss_and_gradients(model, tokens())
    avoid_repeated_casts(model, "bfloat16")
    assert (
        model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
    )
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert not model.base_model.model.model.layers[0].mlp.up_proj.cast_input_dtype_enabled
    again, same = loss_and_gradients(model, tokens())
    assert again == loss
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)


def test_what_is_frozen_is_held_as_transformers_loads_it():
    model, base, goal = adapted()
    cast_frozen_weights(model, base, goal.task, frozen_dtype(model, "bfloat16"))
    loaded = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.bfloat16)
    held = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in model.get_base_model().state_dict().items()
        if "lora_" not in name
    }
    assert held.keys() == loaded.state_dict().keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in loaded.state_dict().items())
    buffers = dict(model.get_base_model().named_buffers())
    assert {name: buffer.dtype for name, buffer in loaded.named_buffers()} == {
        name: buffer.dtype for name, buffer in buffers.items()
    }
    assert all(
        parameter.dtype == torch.float32
        for parameter in model.parameters()
        if parameter.requires_grad
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
@pytest.mark.parametrize("lora_bias", ["none", "all"])
def test_an_architecture_computes_in_bfloat16_about_what_it_does_in_float32(
    architecture, lora_bias, tmp_path
):
    goal = TaskSpec(architecture.task, LABELS if "classification" in architecture.task else ())
    torch.manual_seed(1)
    auto_class(goal.task).from_config(config_of(architecture)).save_pretrained(tmp_path)
    model, base, goal = adapted(
        EXACT.model_copy(update={"lora_bias": lora_bias}), str(tmp_path), goal
    )
    exact, gradients = loss_and_gradients(model, batch_of(goal.task), "float32")
    cast_frozen_weights(model, base, goal.task, frozen_dtype(model, "bfloat16"))
    avoid_repeated_casts(model, "bfloat16")
    loss, near = loss_and_gradients(model, batch_of(goal.task))
    assert loss == pytest.approx(exact, rel=1e-2)
    length = sum(gradient.double().square().sum() for gradient in gradients.values()).sqrt()
    off = sum(
        (gradients[name].double() - near[name].double()).square().sum() for name in gradients
    ).sqrt()
    assert off < 0.1 * length


def test_what_transformers_keeps_in_float32_stays_so_though_it_is_a_buffer(tmp_path):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 64,
    }
    experts = {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    }
    ranks = {
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    AutoModelForCausalLM.from_config(
        CONFIG_MAPPING["deepseek_v3"](**sizes, **experts, **ranks)
    ).save_pretrained(tmp_path)
    model, base, goal = adapted(where=str(tmp_path))
    cast_frozen_weights(model, base, goal.task, "bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    held = dict(model.get_base_model().named_buffers())
    assert {name: buffer.dtype for name, buffer in loaded.named_buffers()} == {
        name: buffer.dtype for name, buffer in held.items()
    }
    assert held["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32


def test_other_weights_stay_where_they_are_not_to_be_rounded():
    model, *_ = adapted()
    assert frozen_dtype(model, "float32") == ""
    dora = copy.deepcopy(model)
    dora.peft_config["default"].use_dora = True
    assert frozen_dtype(dora, "bfloat16") == ""
    avoid_repeated_casts(dora, "bfloat16")
    assert dora.base_model.model.model.layers[0].mlp.up_proj.cast_input_dtype_enabled
    model.get_input_embeddings().weight.requires_grad = True
    assert frozen_dtype(model, "bfloat16") == ""
    assert (
        frozen_dtype(adapted(EXACT.model_copy(update={"quantization": "nf4"}))[0], "bfloat16") == ""
    )


@pytest.mark.parametrize("asked", ["automatic", "bfloat16"])
def test_a_model_that_cannot_be_computed_in_bfloat16_is_trained_in_float32_unless_it_was_asked_for(
    asked, tmp_path, write, monkeypatch
):
    base = tiny_models.deberta(tmp_path / "base", WORDS)
    recipe = EXACT.model_copy(
        update={"base_model": base, "quantization": "nf4", "max_steps": 2, "compute_dtype": asked}
    )
    monkeypatch.setattr(planning, "_choose_dtype", lambda *_: ("bfloat16", "It is faster here"))
    run = make_run(tmp_path / "run", str(write("rows.json", labelled())), recipe)
    with run.lock():
        if asked == "bfloat16":
            with pytest.raises(
                UserError,
                match=r"does not compute in bfloat16: .* without overflow\. Leave it to the app",
            ):
                train(run)
            return
        train(run)
    assert len(steps_of(run.history())) == 2
    assert json.loads(run.path("plan.json").read_text())["compute_dtype"] == "float32"
    told = [
        event.why
        for event in run.history()
        if isinstance(event, events.Notice) and "Computing in float32" in event.what
    ]
    assert told == [read_plan(run).why]
    assert "does not compute in bfloat16: value cannot be converted" in told[0]


@pytest.mark.parametrize("task", ["dpo", "kto"])
def test_preferences_are_learnt_in_bfloat16_from_where_they_begin_in_float32(task, tmp_path, write):
    losses = []
    for dtype in ("float32", "bfloat16"):
        recipe = EXACT.model_copy(
            update={"task": task, "max_steps": 2, "compute_dtype": dtype, "learning_rate": 1e-3}
        )
        run = make_run(
            tmp_path / dtype,
            str(write("rows.json", {"dpo": preferred, "kto": rated}[task]())),
            recipe,
        )
        with run.lock():
            train(run)
        assert read_plan(run).frozen_dtype == ("" if dtype == "float32" else dtype)
        losses.append([step.loss for step in steps_of(run.history())])
    assert losses[1] == pytest.approx(losses[0], abs=1e-2)
