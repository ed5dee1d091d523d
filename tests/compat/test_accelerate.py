"""The internals of accelerate that the app uses still exist and still have their effect."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from peft_space.compat.transformers import forget_preparation


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    """Accelerators share a state that refuses another mixed precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_model_is_prepared_again_only_after_its_preparation_is_forgotten():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    assert "_is_accelerate_prepared" in model.__dict__
    forget_preparation(model)
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    assert hasattr(prepared, "_original_forward"), "it computes with autocast again"
