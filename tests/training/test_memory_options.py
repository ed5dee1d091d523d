"""Recipe fields that trade memory and time change neither losses nor adapter."""

import pytest
from safetensors.torch import load_file

from peft_space.errors import UserError
from peft_space.estimation.memory import estimate
from peft_space.models.architecture import linear_layers
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe
from peft_space.runs.events import steps_of
from peft_space.training.prepare import make_run
from peft_space.training.train import train

STEPS = {"max_steps": 2, "quantization": "none", "eval_split": 0.0, "compute_dtype": "float32"}


def trained(folder, **fields):
    """Losses and adapter of two steps."""
    run = make_run(folder, "demo", Recipe(**STEPS | fields))
    with run.lock():
        train(run)
    weights = load_file(run.path("adapter", "adapter_model.safetensors"))
    return [step.loss for step in steps_of(run.history())], weights


@pytest.mark.parametrize(
    "fields",
    [
        {"gradient_checkpointing": "on", "checkpoint_every_n_layers": 2},
        {"gradient_checkpointing": "on", "activation_offloading": True},
        pytest.param({"torch_compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.slow
def test_losses_and_adapter_are_those_without(tmp_path, fields):
    fields = fields | {"lora_dropout": 0.0}  # compiled blocks draw other random numbers
    losses, weights = trained(tmp_path / "plain", lora_dropout=0.0)
    changed_losses, changed_weights = trained(tmp_path / "changed", **fields)
    assert changed_losses == pytest.approx(losses, abs=1e-5)
    for name, weight in weights.items():
        # the mean, because Adam makes rounding large where a gradient is nearly 0
        assert (changed_weights[name] - weight).abs().mean() < 1e-5


@pytest.mark.parametrize(
    "fields", [{"optim": "paged_adamw_8bit"}, {"use_liger_kernel": True}], ids=str
)
@pytest.mark.sample(1)
def test_what_this_machine_lacks_is_said_before_a_model_is_loaded(tmp_path, fields):
    with pytest.raises(UserError) as error:
        trained(tmp_path / "run", **fields)
    assert error.value.code == "training.unavailable_here"
    assert next(iter(fields)) in str(error.value)


@pytest.mark.slow
def test_the_estimate_counts_them():
    layers = linear_layers(find_base("demo").config)

    def need(**fields):
        recipe = Recipe(quantization="none", gradient_checkpointing="on", **fields)
        return estimate(layers, recipe, 8, 256, "cuda", "bfloat16")

    plain = need()
    assert need(checkpoint_every_n_layers=2).activations > plain.activations
    assert need(activation_offloading=True).activations < plain.activations
    assert need(optim="paged_adamw_8bit").optimizer == plain.optimizer / 4
