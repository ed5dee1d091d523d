"""The internals of PyTorch that the app uses behave as it expects."""

import pytest
import torch

from peft_space.compat.torch import (
    each_result,
    fake_tensors,
    is_dtype_error,
    materialize_fake,
    storage_address,
)


def test_fake_tensors_have_shapes_and_no_contents():
    with fake_tensors():
        product = torch.empty(10**6, 10**5) @ torch.empty(10**5, 3)
    assert product.shape == (10**6, 3)


def test_views_share_the_address_of_their_storage():
    tensor = torch.zeros(4)
    address = storage_address(tensor.untyped_storage())
    assert storage_address(tensor[1:].untyped_storage()) == address
    assert storage_address(torch.zeros(4).untyped_storage()) != address


def test_each_result_of_an_operation_is_seen():
    results = []
    with each_result(results.append):
        total = torch.ones(2) + torch.ones(2)
    assert any(result is total for result in results)


def test_materialized_parameters_keep_ties_and_leave_the_meta_device():
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        model.register_buffer("scale", torch.empty(1))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad = False
    with fake_tensors():
        materialize_fake(model, "cpu")
    assert model[1].weight is model[0].weight
    assert not model[0].bias.requires_grad
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"cpu"}


@pytest.mark.parametrize(
    "compute",
    [
        lambda: torch.zeros(2, 2, dtype=torch.bfloat16) @ torch.zeros(2, 2),
        lambda: torch.nn.LayerNorm(2, dtype=torch.bfloat16)(torch.zeros(2, 2)),
        lambda: torch.zeros(2, dtype=torch.bfloat16).numpy(),
    ],
    ids=["matrix product", "norm", "numpy"],
)
def test_errors_of_bfloat16_are_recognized(compute):
    with pytest.raises((RuntimeError, TypeError)) as error:
        compute()
    assert is_dtype_error(error.value)


def test_other_errors_are_not_dtype_errors():
    with pytest.raises(RuntimeError) as error:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not is_dtype_error(error.value)
