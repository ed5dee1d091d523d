"""The internals of bitsandbytes that the app uses behave as it expects."""

import bitsandbytes
import torch

from peft_space.compat.bitsandbytes import keep_4bit_layer_exact


def test_a_4bit_layer_computes_in_the_dtype_and_keeps_its_gradient_after_eval():
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16)
    assert hasattr(layer, "support_avx512bf16_for_cpu"), "bitsandbytes has renamed its switch"
    layer.to("cpu")
    keep_4bit_layer_exact(layer, torch.float32)
    unpacked = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert unpacked.dtype == torch.float32
    inputs = torch.ones(2, 64, requires_grad=True)
    layer.eval()
    with torch.no_grad():
        before = layer(inputs)
    layer.train()
    after = layer(inputs)
    after.sum().backward()
    assert torch.equal(before, after)
    assert before.dtype == torch.float32
    assert torch.allclose(after, inputs @ unpacked.T, atol=1e-5)
    assert inputs.grad.abs().sum() > 0


def test_an_8bit_layer_rounds_a_row_by_the_large_numbers_of_the_other_rows():
    """So the two sides of a comparison must not share a batch: see `can_answer_together`."""
    torch.manual_seed(0)
    options = {"bias": False, "has_fp16_weights": False, "threshold": 6.0}
    layer = bitsandbytes.nn.Linear8bitLt(64, 64, **options).to("cpu").eval()
    rows = torch.randn(2, 64).clamp(-5, 5)
    with torch.no_grad():
        calm = layer(rows)[0]
        rows[1, 3] = 50
        beside_a_large_number = layer(rows)[0]
    assert not torch.equal(calm, beside_a_large_number)
    assert torch.allclose(calm, beside_a_large_number, atol=0.1)
