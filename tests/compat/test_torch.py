"""PyTorch's error messages still contain the words that the app looks for."""

import pytest
import torch

from peft_space.compat.torch import is_dtype_error


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
