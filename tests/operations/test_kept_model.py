"""A process that held a model gives its memory back when others need it."""

import weakref

import pytest
import torch

from peft_space import hardware, operations
from peft_space.errors import UserError
from peft_space.operations import evaluation
from peft_space.operations.evaluation import (
    load_cached,
    release_model,
    release_model_for_training,
)
from peft_space.runtime import machine_queue
from peft_space.storage import file_lock


@pytest.fixture
def waiting_training(tmp_path, monkeypatch):
    """The ticket of another process that waits for the machine."""
    monkeypatch.setattr(machine_queue, "_queue", lambda: tmp_path)
    ticket = tmp_path / "1-training"
    with file_lock.file_lock(ticket):
        yield ticket
    release_model()


def _weights_of(run):
    model = load_cached(run).model
    return [weakref.ref(parameter) for parameter in model.parameters()]


@pytest.mark.slow
def test_no_tensor_of_a_released_model_is_left(short_run):
    weights = _weights_of(str(short_run.directory))
    release_model()
    assert [weight for weight in weights if weight() is not None] == []


@pytest.mark.slow
def test_a_training_that_waits_evicts_the_kept_model_of_a_gpu(
    short_run, waiting_training, monkeypatch
):
    weights = _weights_of(str(short_run.directory))
    release_model_for_training()
    assert weights[0]() is not None, "a CPU keeps it"
    monkeypatch.setattr(hardware, "device", lambda: "cuda")
    release_model_for_training()
    assert [weight for weight in weights if weight() is not None] == []


@pytest.mark.slow
def test_a_kept_model_stays_while_nobody_needs_the_gpu(short_run, tmp_path, monkeypatch):
    monkeypatch.setattr(machine_queue, "_queue", lambda: tmp_path)
    weights = _weights_of(str(short_run.directory))
    monkeypatch.setattr(hardware, "device", lambda: "cuda")
    release_model_for_training()
    assert weights[0]() is not None
    release_model()


@pytest.mark.parametrize("training", [True, False])
def test_answers_beside_a_training_that_fills_the_gpu_are_refused_in_words(
    training, short_run, waiting_training, monkeypatch
):
    release_model()
    if not training:
        waiting_training.unlink()

    def fail(run):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("peft_space.models.loading.load_adapted", fail)
    with pytest.raises(UserError if training else torch.OutOfMemoryError) as error:
        operations.compare(str(short_run.directory), ["Hello"])
    assert not training or error.value.code == "evaluation.memory_in_use"
    assert not evaluation._loaded
