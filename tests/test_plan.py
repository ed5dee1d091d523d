"""What is chosen for this machine, and that it changes no numbers."""

import time

import pytest
import torch

from peft_space.models.base import find_base
from peft_space.models.load import load_base_model, new_adapter
from peft_space.recipe import Recipe
from peft_space.training.plan import _measured, computing_in, hold_in_compute_dtype


@pytest.fixture
def model():
    recipe, base = Recipe(quantization="none"), find_base("demo")
    return new_adapter(load_base_model(base, recipe, "float32"), recipe, base).eval()


def loss_and_gradients(model):
    ids = torch.arange(5, 69).reshape(2, 32)
    with computing_in(model, "bfloat16"):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def test_weights_held_in_bfloat16_give_the_same_numbers_as_those_that_are_cast_in_each_step(model):
    loss, gradients = loss_and_gradients(model)
    model.zero_grad()
    hold_in_compute_dtype(model, "bfloat16")
    assert model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
    assert model.get_input_embeddings().weight.dtype == torch.float32
    again, same = loss_and_gradients(model)
    assert again == loss
    assert all(torch.equal(one, other) for one, other in zip(gradients, same, strict=True))


def test_dora_keeps_the_weights_whose_norm_it_takes(model):
    model.peft_config["default"].use_dora = True
    hold_in_compute_dtype(model, "bfloat16")
    assert model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.float32


def test_choosing_takes_no_time_that_anybody_waits_for_and_leaves_no_gradients(model):
    began = time.process_time()
    dtype, threads, why = _measured(model, 512)
    assert time.process_time() - began < 3
    assert dtype in ("float32", "bfloat16")
    assert 1 <= threads <= torch.get_num_threads()
    assert "bfloat16" in why
    assert all(parameter.grad is None for parameter in model.parameters())
