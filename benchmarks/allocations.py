"""Counts what a training step allocates, on tensors with shapes but no contents.

`python -m benchmarks.allocations`. The memory estimate asks one block of each kind what it keeps
for the backward pass. This script runs the whole step and follows every tensor from its allocation
to its release, in the dtypes of a GPU. Neither needs a GPU.
"""

import json
import weakref
from typing import Any

SIZES = {
    "hidden_size": 4_096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}
"""Of Llama 3.1 8B."""
CASES = [
    (rows, length, quantization, checkpointing)
    for rows, length in ((1, 2_048), (4, 512))
    for quantization in ("nf4", "none")
    for checkpointing in ("on", "off")
]


class Allocations:
    """Bytes of the tensors that exist, and the most that existed at once.

    Args:
        existing: tensors that do not count.
    """

    def __init__(self, existing: list[Any]):
        self.now = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in existing}

    def record(self, result: Any) -> None:
        """Count the storage of an operation's result until its release."""
        if not hasattr(result, "untyped_storage"):
            return
        storage = result.untyped_storage()
        if storage._cdata in self._known or not storage.nbytes():  # a view, or changed in place
            return
        self._known.add(storage._cdata)
        self.add(storage.nbytes())
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes()).atexit = False

    def add(self, num_bytes: int) -> None:
        """Count some bytes more, or less."""
        self.now += num_bytes
        self.most = max(self.most, self.now)

    def _release(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self.now -= num_bytes


def counted(layers: Any, recipe: Any, rows: int, length: int, dtype: str) -> int:
    """Peak bytes of a step on a GPU: its weights, adapter and optimizer, and all allocations."""
    import torch

    from peft_space.compat.torch import each_result, fake_tensors, materialize_fake
    from peft_space.estimation import activations, memory

    parts = memory.estimate(layers, recipe, rows, length, "cuda", dtype)
    model = memory.with_adapter(layers, recipe, "cuda", dtype)
    activations._drop_out_as_on_a_gpu(model)
    loss = memory._loss_bytes(layers, rows * length, "cuda", dtype)
    with fake_tensors():
        materialize_fake(model, "cpu")
        if recipe.gradient_checkpointing == "on":
            model.activation_checkpointing_enable()
        batch = activations._fake_batch(layers.task, rows, length, "cpu")
        log = Allocations([*model.parameters(), *model.buffers(), *batch.values()])
        with each_result(log.record):
            with torch.autocast("cpu", getattr(torch, dtype)):
                result = activations._run(model.train(), layers.task, batch)
            log.add(loss)
            log.add(-loss)
            result.float().sum().backward()
    return parts.weights + parts.adapter + parts.optimizer + log.most


def main() -> None:
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    import transformers

    from peft_space.estimation.memory import estimate
    from peft_space.models.architecture import linear_layers
    from peft_space.recipe import make_recipe

    layers = linear_layers(transformers.LlamaConfig(**SIZES))
    for rows, length, quantization, checkpointing in CASES:
        recipe = make_recipe(
            {"quantization": quantization, "gradient_checkpointing": checkpointing}
        )
        estimated = estimate(layers, recipe, rows, length, "cuda", "bfloat16").total
        truth = counted(layers, recipe, rows, length, "bfloat16")
        line = {
            "rows": rows,
            "length": length,
            "quantization": quantization,
            "gradient_checkpointing": checkpointing,
            "estimated_gb": round(estimated / 1e9, 2),
            "counted_gb": round(truth / 1e9, 2),
            "error": round(estimated / truth - 1, 3),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
