"""Quantizations and adapter methods prepare the base model correctly and produce a plain LoRA."""

import json

import pytest
import torch
from safetensors.torch import load_file

from peft_space import operations
from peft_space.models.loading import load_adapted, load_base_model, new_adapter
from peft_space.models.lora_init import initial_base, load_initial_adapter, write_initial_adapter
from peft_space.models.resolve import find_base, pin_revision
from peft_space.recipe import CAUSAL_LM, Recipe
from peft_space.runs.events import evaluations_of, steps_of
from peft_space.runs.run import Run
from peft_space.training.prepare import make_run
from peft_space.training.train import TrainOptions, train

IDS = torch.arange(20, 60)[None]
SHORT = {"max_steps": 4, "eval_split": 0.1, "lora_rank": 4, "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def base():
    return pin_revision(find_base("demo"))


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


def whole(base):
    return logits(load_base_model(base, Recipe(quantization="none"), "float32"))


@pytest.mark.parametrize(
    ("quantization", "double", "kind"),
    [
        ("nf4", True, "Linear4bit"),
        pytest.param("nf4", False, "Linear4bit", marks=pytest.mark.slow),
        pytest.param("fp4", True, "Linear4bit", marks=pytest.mark.slow),
        pytest.param("fp4", False, "Linear4bit", marks=pytest.mark.slow),
        ("int8", True, "Linear8bitLt"),
    ],
)
@pytest.mark.sample(1)
@pytest.mark.slow
def test_an_adapter_on_a_quantized_base_model_learns(quantization, double, kind, base, tmp_path):
    recipe = Recipe(
        quantization=quantization,
        double_quantization=double,
        lora_rank=4,
        max_steps=6,
        learning_rate=2e-3,
    )
    model = new_adapter(load_base_model(base, recipe, "float32"), recipe, base)
    wrapped = [module for name, module in model.named_modules() if name.endswith("base_layer")]
    assert {type(module).__name__ for module in wrapped} == {kind}
    if kind == "Linear4bit":
        assert {module.weight.quant_type for module in wrapped} == {quantization}
        assert {module.weight.quant_state.nested for module in wrapped} == {double}
    assert type(model.get_output_embeddings()) is torch.nn.Linear, "the head is not quantized"
    assert all(
        not parameter.requires_grad
        for name, parameter in model.named_parameters()
        if "lora_" not in name
    )
    run = make_run(tmp_path / "run", "demo", recipe)
    with run.lock():
        train(run)
    losses = [step.loss for step in steps_of(run.history())]
    assert losses[-1] < 0.9 * losses[0]
    assert json.loads(run.path("plan.json").read_text())["quantization"] == quantization


def test_rslora_scales_by_the_square_root_of_the_rank_and_dora_has_magnitudes(base):
    for method, scale in (("lora", 2.0), ("rslora", 2.0), ("dora", 2.0)):
        recipe = Recipe(
            quantization="none", method=method, lora_rank=64, layers_to_transform=[2]
        )  # the first two blocks have rows of zeros
        model = new_adapter(load_base_model(base, recipe, "float32"), recipe, base)
        layer = model.base_model.model.model.layers[2].self_attn.q_proj
        assert layer.scaling["default"] == pytest.approx(scale), method
        assert bool(layer.lora_magnitude_vector) == (method == "dora")


def test_only_the_chosen_blocks_get_an_adapter(base):
    recipe = Recipe(quantization="none", layers_to_transform=[0, 2], lora_rank=2)
    model = new_adapter(load_base_model(base, recipe, "float32"), recipe, base)
    assert {
        name.split("layers.")[1].split(".")[0] for name in model.base_model.targeted_module_names
    } == {"0", "2"}


@pytest.mark.slow
def test_pissa_starts_as_the_base_model_and_ends_as_a_lora_of_it(base, tmp_path):
    recipe = Recipe(quantization="none", method="pissa", **SHORT)
    write_initial_adapter(tmp_path / "start", base, recipe, CAUSAL_LM)
    changed = load_base_model(initial_base(tmp_path / "start", base), recipe, "float32")
    assert (logits(changed) - whole(base)).abs().max() > 0.1, (
        "without its strongest part, the base model answers differently"
    )
    started = new_adapter(
        changed, recipe, base, put=lambda model: load_initial_adapter(model, tmp_path / "start")
    )
    assert torch.allclose(logits(started), whole(base), atol=1e-3)

    run = operations.make_run(
        str(tmp_path / "run"), "demo", recipe.model_dump(exclude_defaults=True)
    )["run"]
    operations.train(run)
    scores = operations.evaluate(run)
    trained = evaluations_of(Run(run).history())[-1].loss
    assert scores["adapter"]["loss"] == pytest.approx(trained, abs=2e-3), (
        "the evaluated adapter is the trained one"
    )
    assert scores["base"]["loss"] > scores["adapter"]["loss"] + 0.1
    config = json.loads((Run(run).adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 8, True)
    adapted = load_adapted(Run(run))
    with adapted.model.disable_adapter():
        assert torch.equal(logits(adapted.model), whole(base)), (
            "with the adapter off, the model is the base model"
        )
    assert not Run(run).path("start").exists()


def test_loftq_starts_closer_to_the_unquantized_base_than_plain_quantization(base, tmp_path):
    recipe = Recipe(method="loftq", lora_rank=16)
    write_initial_adapter(tmp_path / "start", base, recipe, CAUSAL_LM)
    plain = load_base_model(base, Recipe(), "float32")
    lost = (logits(plain) - whole(base)).norm()
    started = new_adapter(
        load_base_model(base, recipe, "float32"),
        recipe,
        base,
        put=lambda model: load_initial_adapter(model, tmp_path / "start"),
    )
    assert (logits(started) - whole(base)).norm() < 0.9 * lost


@pytest.mark.parametrize("method", ["pissa", pytest.param("loftq", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_pissa_and_loftq_resume_exactly_and_learn_in_4_bit(method, tmp_path):
    recipe = Recipe(method=method, **SHORT)
    whole_run, paused = (make_run(tmp_path / name, "demo", recipe) for name in ("whole", "paused"))
    with whole_run.lock():
        train(whole_run)
    with paused.lock():
        assert train(paused, TrainOptions(deadline=0.0)).event == "Paused"
        assert train(paused).event == "Finished"
    first, second = (
        load_file(run.adapter / "adapter_model.safetensors") for run in (whole_run, paused)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    scores = operations.evaluate(str(whole_run.directory))
    assert scores["adapter"]["loss"] < scores["base"]["loss"] - 0.1
