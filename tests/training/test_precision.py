"""Training in 16 bits holds weights like transformers, and stays close to float32."""

import copy
import json
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from peft_space import hardware
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.models.architecture import auto_class
from peft_space.models.label_scorer import score_labels_only
from peft_space.models.loading import inference_dtype, load_base_model, new_adapter
from peft_space.models.packing import why_not_packed
from peft_space.models.resolve import find_base
from peft_space.recipe import CAUSAL_LM, Recipe, TaskSpec
from peft_space.runs import events
from peft_space.runs.events import steps_of
from peft_space.runs.plan import read_plan
from peft_space.training import autotune, precision
from peft_space.training import train as training
from peft_space.training.precision import (
    autocast_to,
    avoid_repeated_casts,
    cast_frozen_weights,
    choose_compute_dtype,
    frozen_dtype,
)
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from peft_space.training.trainers import training_arguments
from tests.fixtures import tiny_models
from tests.fixtures.architectures import ARCHITECTURES
from tests.fixtures.task_rows import WORDS, labelled, preferred, rated
from tests.models.test_architectures import LABELS, batch_of, config_of

EXACT = Recipe(quantization="none", lora_rank=2, lora_dropout=0.0)


def adapted(recipe=EXACT, path="demo", task_spec=CAUSAL_LM):
    base = find_base(path)
    model = load_base_model(base, recipe, "float32", task_spec)
    return new_adapter(model, recipe, base, task_spec).eval(), base


@pytest.mark.parametrize("quantization", ["none", "nf4", "fp4", "int8"])
@pytest.mark.sample(3)
def test_the_dtype_is_measured_fast_without_the_model(quantization):
    recipe = EXACT.model_copy(update={"quantization": quantization})
    start = time.process_time()
    layer = precision._layer_like_the_largest(recipe, find_base("demo"), "causal-lm")
    dtype, why = precision._measured_dtype(layer, 512)
    assert time.process_time() - start < 3
    assert {layer.in_features, layer.out_features} == {640, 256}
    assert dtype in ("float32", "bfloat16")
    assert "bfloat16" in why


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.sample(1)
@pytest.mark.slow
def test_weights_are_loaded_in_the_dtype_that_they_are_held_in(resumed, tmp_path, monkeypatch):
    loaded, own = [], training.load_base_model

    def load(base, recipe, dtype, task_spec, device):
        loaded.append(dtype)
        return own(base, recipe, dtype, task_spec, device)

    monkeypatch.setattr(training, "load_base_model", load)
    recipe = EXACT.model_copy(update={"compute_dtype": "bfloat16", "max_steps": 2, "batch_size": 4})
    run = make_run(tmp_path / "run", "demo", recipe)
    with run.lock():
        if resumed:
            assert training.train(run, training.TrainOptions(deadline=0.0)).event == "Paused"
        assert training.train(run).event == "Finished"
    assert set(loaded) == {"bfloat16"}


@pytest.mark.parametrize(
    "changes",
    [{"lora_bias": "all"}, {"modules_to_save": ["embed_tokens"]}, {"method": "pissa"}],
)
def test_weights_of_the_base_that_are_trained_are_loaded_exactly(changes):
    recipe = EXACT.model_copy(update=changes)
    assert precision.all_weights_are_frozen(EXACT, find_base("demo"), CAUSAL_LM)
    assert not precision.all_weights_are_frozen(recipe, find_base("demo"), CAUSAL_LM)


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


def test_casting_once_changes_no_bit():
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


def test_frozen_weights_equal_those_that_transformers_loads():
    model, base = adapted()
    cast_frozen_weights(model, base, "causal-lm", frozen_dtype(model, "bfloat16"))
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
@pytest.mark.sample(1)
def test_an_architecture_gives_similar_gradients_in_bfloat16_and_float32(
    architecture, lora_bias, tmp_path
):
    task_spec = TaskSpec(architecture.task, LABELS if "classification" in architecture.task else ())
    torch.manual_seed(1)
    auto_class(task_spec.task).from_config(config_of(architecture)).save_pretrained(tmp_path)
    recipe, batch = EXACT.model_copy(update={"lora_bias": lora_bias}), batch_of(task_spec.task)
    model, base = adapted(recipe, str(tmp_path), task_spec)
    exact, gradients = loss_and_gradients(model, batch, "float32")
    cast_frozen_weights(model, base, task_spec.task, frozen_dtype(model, "bfloat16"))
    avoid_repeated_casts(model, "bfloat16")
    loss, near = loss_and_gradients(model, batch)
    assert loss == pytest.approx(exact, rel=1e-2)
    length = sum(gradient.double().square().sum() for gradient in gradients.values()).sqrt()
    off = sum(
        (gradients[name].double() - near[name].double()).square().sum() for name in gradients
    ).sqrt()
    assert off < 0.1 * length


def test_buffers_that_transformers_keeps_in_float32_are_not_cast(tmp_path):
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
    model, base = adapted(path=str(tmp_path))
    cast_frozen_weights(model, base, "causal-lm", "bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    held = dict(model.get_base_model().named_buffers())
    assert {name: buffer.dtype for name, buffer in loaded.named_buffers()} == {
        name: buffer.dtype for name, buffer in held.items()
    }
    assert held["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32


@pytest.mark.slow
def test_weights_that_must_not_be_rounded_are_not_cast():
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


@pytest.mark.parametrize("compute_dtype", ["automatic", "bfloat16"])
@pytest.mark.slow
def test_a_model_that_cannot_compute_in_bfloat16_falls_back_to_float32(
    compute_dtype, tmp_path, write, monkeypatch
):
    base = tiny_models.deberta(tmp_path / "base", WORDS)
    recipe = EXACT.model_copy(
        update={
            "base_model": base,
            "quantization": "nf4",
            "max_steps": 2,
            "compute_dtype": compute_dtype,
        }
    )
    monkeypatch.setattr(autotune, "choose_compute_dtype", lambda *_: ("bfloat16", "Faster here."))
    run = make_run(tmp_path / "run", str(write("rows.json", labelled())), recipe)
    with run.lock():
        if compute_dtype == "bfloat16":
            with pytest.raises(UserError) as error:
                train(run)
            assert error.value.code == "training.compute_dtype_unsupported"
            assert "overflow" in str(error.value)
            return
        train(run)
    assert len(steps_of(run.history())) == 2
    assert json.loads(run.path("plan.json").read_text())["compute_dtype"] == "float32"
    reasons = [
        event.why
        for event in run.history()
        if isinstance(event, events.Notice) and "Computing in float32" in event.what
    ]
    assert reasons == [read_plan(run).why]
    assert "value cannot be converted" in reasons[0], "the reason quotes PyTorch"


@pytest.mark.parametrize("task", ["dpo", "kto"])
@pytest.mark.sample(1)
@pytest.mark.slow
def test_preference_training_in_bfloat16_stays_close_to_float32(task, tmp_path, write):
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


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.sample(1)
@pytest.mark.slow
def test_a_loss_that_overflows_in_float16_starts_again_in_float32(step, tmp_path, monkeypatch):
    """A pretended GPU without bfloat16: a training that learned something is not started again."""
    own_trainer, computed = training._make_trainer, []
    monkeypatch.setattr(autotune, "choose_compute_dtype", lambda *args: ("float16", "pretended"))
    monkeypatch.setattr(
        training,
        "training_arguments",
        lambda *args, **kwargs: training_arguments(*args, **kwargs) | {"fp16": False},
    )

    def trainer_of(run, setup, options, callback):
        trainer = own_trainer(run, setup, options, callback)
        own_loss = trainer.compute_loss

        def compute_loss(*args, **kwargs):
            if kwargs.get("return_outputs"):  # an evaluation
                return own_loss(*args, **kwargs)
            computed.append(setup.plan.compute_dtype)
            overflows = setup.plan.compute_dtype == "float16" and len(computed) >= step
            return own_loss(*args, **kwargs) * (float("nan") if overflows else 1.0)

        trainer.compute_loss = compute_loss
        return trainer

    monkeypatch.setattr(training, "_make_trainer", trainer_of)
    run = make_run(tmp_path / "run", "demo", Recipe(max_steps=3, eval_steps=3, batch_size=4))
    if step == 2:
        with run.lock(), pytest.raises(UserError) as error:
            training.train(run)
        assert error.value.code == "training.not_finite"
        return
    with run.lock():
        assert training.train(run).event == "Finished"
    assert read_plan(run).compute_dtype == "float32"
    assert [step.step for step in steps_of(run.history())] == [1, 2, 3]


@pytest.mark.parametrize(
    ("model_type", "native", "dtype"),
    [
        ("llama", True, "bfloat16"),
        ("llama", False, "float16"),
        ("gemma3", False, "float32"),
        ("gemma3_text", True, "bfloat16"),
        ("t5", False, "float32"),
    ],
)
def test_models_that_are_known_to_overflow_compute_in_float32_without_bfloat16(
    model_type, native, dtype, monkeypatch
):
    monkeypatch.setattr(hardware, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kwargs: native)
    config = CONFIG_MAPPING[model_type]()
    assert inference_dtype(config) == dtype
    base = SimpleNamespace(config=config)
    assert choose_compute_dtype(Recipe(), base, CAUSAL_LM, 64)[0] == dtype
    if not native:
        with pytest.raises(UserError) as error:
            choose_compute_dtype(Recipe(compute_dtype="bfloat16"), base, CAUSAL_LM, 64)
        assert error.value.code == "training.compute_dtype_unsupported"


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("load", ["float32", "bfloat16"])
@pytest.mark.sample(1)
def test_weights_of_several_dtypes_are_packed_and_scored_by_their_labels(quantization, load):
    recipe, base = EXACT.model_copy(update={"quantization": quantization}), find_base("demo")
    model = new_adapter(load_base_model(base, recipe, load), recipe, base)
    precision.set_compute_dtype(model, "bfloat16")
    if frozen := frozen_dtype(model, "bfloat16"):
        cast_frozen_weights(model, base, "causal-lm", frozen)
    avoid_repeated_casts(model, "bfloat16")
    assert why_not_packed(model, 64, "bfloat16") is None
    assert score_labels_only(model, "bfloat16").computes_only_labeled


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.sample(1)
def test_on_a_gpu_embeddings_and_head_go_back_to_16_bits_and_norms_stay_float32(
    tied, tmp_path, monkeypatch
):
    folder = tiny_models.llama(tmp_path / "base", tie_word_embeddings=tied)
    base = find_base(folder)
    model = load_base_model(base, Recipe(), "bfloat16")
    monkeypatch.setattr(hardware, "device", lambda: "cuda")
    adapted = new_adapter(model, Recipe(), base).get_base_model()
    dtypes = {
        adapted.get_input_embeddings().weight.dtype,
        adapted.get_output_embeddings().weight.dtype,
    }
    assert dtypes == {torch.bfloat16}
    assert adapted.model.norm.weight.dtype == torch.float32
    shared = adapted.get_input_embeddings().weight is adapted.get_output_embeddings().weight
    assert shared == tied
