"""Trains adapters on GPTQ and AWQ bases: quantized, trained, scored, loaded with plain PEFT.

Needs a separate environment:

    python -m venv .venv-gptq
    .venv-gptq/bin/pip install -c constraints.txt -r requirements.txt
    .venv-gptq/bin/pip install --no-deps -r requirements-gptq.txt
    .venv-gptq/bin/python -m benchmarks.gptq_awq [gptq] [awq]

The base is the built-in model, quantized to 4 bits in groups of 128 and calibrated with 64 texts of
the sample data. If a method fails, its line has the reason.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

from peft_space.settings import prepare_libraries

METHODS = {"gptq": "gptq", "awq": "gemm"}
"""Method -> format of its packed weights."""
CALIBRATION_TEXTS = 64
STEPS = 20
MAX_DIFFERENCE = 1e-4
"""Limit for the logits, in float32 on both sides."""
LIBRARIES = ("torch", "transformers", "peft", "gptqmodel", "optimum")


def quantize(method: str, folder: Path) -> None:
    """Write the built-in model into `folder`, quantized."""
    from gptqmodel import GPTQModel, QuantizeConfig

    from peft_space.demo import MODEL_DIR, TRAIN_FILE

    texts = TRAIN_FILE.read_text(encoding="utf-8").splitlines()[:CALIBRATION_TEXTS]
    config = QuantizeConfig(bits=4, group_size=128, quant_method=method, format=METHODS[method])
    model = GPTQModel.load(str(MODEL_DIR), config, device="cpu")
    model.quantize(texts, batch_size=4)
    model.save(str(folder))


def trained(base: Path, folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Train and score a run on `base`, as the command line does.

    Returns:
        The run, the model as it was prepared for training, and the figures.
    """
    import peft

    from peft_space import operations
    from peft_space.runs.events import steps_of
    from peft_space.runs.run import Run

    prepared = []

    def prepare(*args: Any, **kwargs: Any) -> Any:
        prepared.append(original(*args, **kwargs))
        return prepared[-1]

    original = peft.prepare_model_for_kbit_training
    run = operations.make_run(str(folder), "demo", {"base_model": str(base), "max_steps": STEPS})[
        "run"
    ]
    began = time.perf_counter()
    with mock.patch("peft.prepare_model_for_kbit_training", prepare):
        operations.train(run)
    training = time.perf_counter() - began
    scores = operations.evaluate(run)
    steps = steps_of(Run(run).history())
    figures = {
        "loss_first": round(steps[0].loss, 4),
        "loss_last": round(steps[-1].loss, 4),
        "base_held_out_loss": round(scores["base"]["loss"], 4),
        "adapter_held_out_loss": round(scores["adapter"]["loss"], 4),
        "training_seconds": round(training, 1),
        "evaluation_seconds": round(time.perf_counter() - began - training, 1),
    }
    assert len(prepared) == 1, "prepare_model_for_kbit_training did not run"
    return Run(run), prepared[0], figures


def check_model(model: Any) -> dict[str, Any]:
    """Check a trained model: the base frozen and exact, an adapter on every quantized layer.

    Returns:
        The number of wrapped layers and their classes.
    """
    import torch
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear
    from peft.tuners.lora import LoraLayer

    base = {name: parameter for name, parameter in model.named_parameters() if "lora_" not in name}
    assert not any(parameter.requires_grad for parameter in base.values()), "the base is not frozen"
    norms = [parameter for name, parameter in base.items() if "norm" in name]
    assert norms, "no layer norms were found"
    assert all(norm.dtype == torch.float32 for norm in norms), "layer norms are not float32"
    layers = [module for module in model.modules() if isinstance(module, BaseQuantLinear)]
    wrappers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert {id(wrapper.base_layer) for wrapper in wrappers} == {id(layer) for layer in layers}, (
        "not every quantized layer has an adapter"
    )
    kinds = sorted(
        {f"{type(wrapper).__name__} on {type(wrapper.base_layer).__name__}" for wrapper in wrappers}
    )
    return {"wrapped": len(wrappers), "layers": ", ".join(kinds)}


def difference_to_plain_peft(run: Any, base: Path) -> tuple[float, str]:
    """Compare the app's logits with those of the adapter in plain transformers and PEFT.

    Returns:
        The largest difference, and the class of plain PEFT's layers.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from peft_space.models.loading import load_adapted

    ours = load_adapted(run)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run.adapter
    ).eval()
    ids = ours.tokenizer(
        "My order has not arrived yet. Where is it?", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        logits = [model(input_ids=ids).logits.float() for model in (ours.model, plain)]
        with plain.disable_adapter():
            assert not torch.equal(plain(input_ids=ids).logits.float(), logits[1]), (
                "the adapter changes nothing"
            )
    layer = next(
        module for name, module in plain.named_modules() if name.endswith("q_proj.base_layer")
    )
    return (logits[0] - logits[1]).abs().max().item(), type(layer).__name__


def measure(method: str, folder: Path) -> dict[str, Any]:
    """All figures of one method."""
    from peft_space.models.architecture import linear_layers
    from peft_space.models.loading import expected_parameter_counts
    from peft_space.models.resolve import find_base
    from peft_space.runs.plan import read_plan

    base = folder / method
    began = time.perf_counter()
    quantize(method, base)
    quantizing = time.perf_counter() - began
    run, model, figures = trained(base, folder / f"run-{method}")
    layers = check_model(model)
    plan = read_plan(run)
    assert plan is not None
    assert (plan.num_wrapped, plan.quantization) == (layers["wrapped"], method)
    full = expected_parameter_counts(run.recipe, linear_layers(find_base("demo").config))
    assert (plan.trainable_parameters, plan.all_parameters) == full, (
        "parameters are not counted as those of the base in full"
    )
    assert figures["loss_last"] < figures["loss_first"] / 2, f"the loss does not fall: {figures}"
    difference, plain_layer = difference_to_plain_peft(run, base)
    assert difference < MAX_DIFFERENCE, f"plain PEFT gives other logits, by {difference}"
    counted = {
        "trainable_parameters": plan.trainable_parameters,
        "all_parameters": plan.all_parameters,
    }
    seconds = {"quantizing_seconds": round(quantizing, 1)}
    plain = {"max_logit_difference_to_plain_peft": difference, "layers_in_plain_peft": plain_layer}
    return (
        {"method": method, "steps": STEPS}
        | figures
        | seconds
        | layers
        | counted
        | {"compute_dtype": plan.compute_dtype}
        | plain
    )


def main() -> None:
    prepare_libraries()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # gptqmodel uses half of the cores by default, and cannot load a model with one
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "4")
    if importlib.util.find_spec("gptqmodel") is None:
        sys.exit(f"gptqmodel is not installed.\n\n{__doc__}")
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    result, failed = sys.stdout, False
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(sys.stderr),
    ):
        # gptqmodel writes logs to the working folder and to stdout
        for method in sys.argv[1:] or METHODS:
            try:
                figures = measure(method, Path(folder))
            except Exception as error:  # noqa: BLE001 - a failure is a result too
                traceback.print_exc()
                figures, failed = (
                    {"method": method, "fails": f"{type(error).__name__}: {error}"},
                    True,
                )
            print(json.dumps(figures | {"versions": versions}), file=result, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
