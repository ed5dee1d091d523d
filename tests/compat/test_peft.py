"""The internals of PEFT that the app uses still exist and still have their effect."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from peft_space.compat.peft import set_input_casts


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_casts_of_inputs_can_be_switched_off(enabled, dtype):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.bfloat16))
    layer = inject_adapter_in_model(LoraConfig(target_modules=["0"], r=2), model)[0]
    layer.lora_A["default"].float()
    dtypes = []
    layer.lora_A["default"].register_forward_pre_hook(
        lambda module, inputs: dtypes.append(inputs[0].dtype)
    )
    set_input_casts(layer, enabled)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.zeros(1, 4, dtype=torch.bfloat16))
    assert dtypes == [dtype]
