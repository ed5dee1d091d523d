"""What is chosen for this machine."""

import time

import pytest
import torch

from peft_space.models.loading import load_base_model, new_adapter
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe
from peft_space.training import autotune as planning
from peft_space.training.autotune import _measured


@pytest.fixture
def model():
    recipe, base = Recipe(quantization="none"), find_base("demo")
    return new_adapter(load_base_model(base, recipe, "float32"), recipe, base).eval()


def test_choosing_takes_no_time_that_anybody_waits_for_and_leaves_no_gradients(model):
    began = time.process_time()
    dtype, threads, why = _measured(model, 512)
    assert time.process_time() - began < 3
    assert dtype in ("float32", "bfloat16")
    assert 1 <= threads <= torch.get_num_threads()
    assert "bfloat16" in why
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_machine_that_halts_for_a_moment_does_not_choose_one_thread_for_good(monkeypatch):
    looks = [{1: [1.0], 2: [2.5]}, {1: [1.1], 2: [1.2]}]
    monkeypatch.setattr(planning, "_measure", lambda *_: looks.pop(0))
    assert planning._choose_threads(None, 512, "float32", 2)[0] == 2
    monkeypatch.setattr(planning, "_measure", lambda *_: {1: [1.0], 2: [2.0]})
    assert planning._choose_threads(None, 512, "float32", 2)[0] == 1
