"""A process that is alone trains the same on a machine with one GPU and with several."""

import pytest
import torch

from peft_space.recipe import Recipe
from peft_space.runs.events import steps_of
from peft_space.training import train as training
from peft_space.training.prepare import make_run
from peft_space.training.trainers import training_arguments
from tests.fixtures.task_rows import preferred, rated, translated


def _steps(folder, rows, quantization):
    """(loss, tokens) of each step of a short training."""
    recipe = Recipe(
        quantization=quantization, max_steps=2, batch_size=4, compute_dtype="float32", eval_steps=2
    )
    run = make_run(folder, rows, recipe)
    with run.lock():
        training.train(run)
    return [(step.loss, step.tokens) for step in steps_of(run.history())]


@pytest.mark.parametrize(
    ("rows", "quantization"), [(translated, "nf4"), (preferred, "none"), (rated, "nf4")]
)
@pytest.mark.sample(1)
@pytest.mark.slow
def test_a_second_gpu_changes_neither_loss_nor_tokens(
    rows, quantization, tmp_path, write, monkeypatch
):
    data = str(write("rows.json", rows()))
    expected = _steps(tmp_path / "one", data, quantization)
    # the Trainer asks for the number of GPUs unless it is told to use the CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        training,
        "training_arguments",
        lambda *args, **kwargs: training_arguments(*args, **kwargs) | {"use_cpu": False},
    )
    assert _steps(tmp_path / "two", data, quantization) == expected
