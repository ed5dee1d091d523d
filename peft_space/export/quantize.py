"""Quantizes exports to 4 or 5 bits with libraries that are optional extras.

llama.cpp quantizes GGUF files, and gptqmodel merged models. Each runs in a child process: in an
environment with that library, and a fault in it ends only the child.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from peft_space.errors import UserError
from peft_space.export.gguf import Numbers
from peft_space.models.quantization import GPTQ_EXTRA, missing_gptq_packages

_ROOT = Path(__file__).parents[2]
_FILE_TYPES = {"q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M", "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M"}
BY_LLAMA_CPP = tuple(_FILE_TYPES)
"""The formats that only llama.cpp writes."""
_LLAMA_CPP_SCRIPT = """
import sys, llama_cpp
source, out, kind, threads = sys.argv[1:]
options = llama_cpp.llama_model_quantize_default_params()
options.ftype, options.nthread = getattr(llama_cpp, kind), int(threads)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), out.encode(), options))
"""
Compressed = Literal["gptq", "awq"]
"""Formats of 4 bits that gptqmodel writes and vLLM serves."""
COMPRESSED: tuple[Compressed, ...] = get_args(Compressed)
_GROUP_SIZES = (128, 64, 32)
"""Weights that share a scale: the largest that divides all layers. vLLM has kernels for these."""
_GPTQMODEL_SCRIPT = """
import json, sys
from gptqmodel import GPTQModel, QuantizeConfig
source, out, method, group_size, texts = sys.argv[1:]
rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in json.load(open(texts))]
layout = {"gptq": "gptq", "awq": "gemm"}[method]
config = QuantizeConfig(bits=4, group_size=int(group_size), quant_method=method, format=layout)
model = GPTQModel.load(source, config, trust_remote_code=False)
model.quantize(rows, batch_size=1)
model.save(out)
"""
_OF_THIS_MACHINE = "offload_to_disk_path"
"""A field of the written configs with a temporary folder."""


def python_with_llama_cpp() -> str:
    """Return the Python interpreter that can import llama-cpp-python.

    The folder of its environment is in PEFT_SPACE_LLAMA_CPP, or it is this environment, or the one
    that `make engines` builds.

    Raises:
        UserError: there is none.
    """
    folders = [_ROOT / ".engines" / "llama_cpp"]
    if chosen := os.environ.get("PEFT_SPACE_LLAMA_CPP"):
        folders.insert(0, Path(chosen))
    elif importlib.util.find_spec("llama_cpp"):
        return sys.executable
    found = next((path for path in (f / "bin" / "python" for f in folders) if path.exists()), None)
    if found is None:
        raise UserError(
            "export.llama_cpp_missing",
            "Only llama.cpp's library writes GGUF in 4 or 5 bits, and it is not installed. "
            "Run `pip install llama-cpp-python`, which compiles it, or export as q8_0.",
        )
    return str(found)


def quantize_gguf(source: Path, out: Path, numbers: Numbers) -> None:
    """Quantize a GGUF file in 16 or 32 bits.

    Args:
        source: the file.
        out: the file to create.
        numbers: one of `BY_LLAMA_CPP`.

    Raises:
        UserError: llama.cpp is not installed, or it cannot quantize the model.
    """
    threads = str(os.cpu_count() or 1)
    command = [python_with_llama_cpp(), "-c", _LLAMA_CPP_SCRIPT, str(source), str(out)]
    errors = _run([*command, _FILE_TYPES[numbers], threads])
    if errors is not None or not out.is_file():
        out.unlink(missing_ok=True)
        raise UserError(
            "export.not_quantized",
            f"llama.cpp cannot quantize this model to {numbers}: {_reason(errors)}. "
            "Export it as q8_0.",
        )


def check_gptqmodel() -> None:
    """Check that gptqmodel and the packages that load its files are installed.

    Raises:
        UserError: one is missing.
    """
    if missing := missing_gptq_packages():
        raise UserError(
            "export.gptqmodel_missing",
            f"Models in GPTQ and AWQ need packages that are not installed: {', '.join(missing)}. "
            f"Install them with `{GPTQ_EXTRA}`, or choose bfloat16.",
        )


def group_size_for(widths: Sequence[int]) -> int:
    """Return the number of weights that share a scale: the largest that divides all layers.

    Args:
        widths: the numbers of inputs of the layers. The smallest size is returned if none fits.
    """
    fitting = (size for size in _GROUP_SIZES if all(width % size == 0 for width in widths))
    return next(fitting, _GROUP_SIZES[-1])


def compress(
    model: Path, out: Path, method: Compressed, group_size: int, calibration: list[list[int]]
) -> None:
    """Quantize the blocks of a merged model to 4 bits.

    Args:
        model: the merged model in 16 bits. A file with the calibration is written into it.
        out: the folder to create.
        method: how to choose the 4 bits.
        group_size: weights that share a scale.
        calibration: token ids of rows. The method makes the outputs for these rows similar.

    Raises:
        UserError: gptqmodel is not installed, or it cannot quantize the model.
    """
    check_gptqmodel()
    texts = model / "calibration.json"
    texts.write_text(json.dumps(calibration))
    command = [sys.executable, "-W", "ignore", "-c", _GPTQMODEL_SCRIPT, str(model), str(out)]
    command += [method, str(group_size), str(texts)]
    # on fewer than four cores its import fails without this; it writes logs into its folder
    errors = _run(command, cwd=model, GPTQMODEL_CPU_WORKERS="4")
    if errors is not None or not list(out.glob("*.safetensors")):
        raise UserError(
            "export.not_quantized",
            f"gptqmodel cannot quantize this model as {method.upper()}: {_reason(errors)}. "
            "Export it in bfloat16.",
        )
    (out / "quant_log.csv").unlink(missing_ok=True)
    for path in (out / "config.json", out / "quantize_config.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        for part in (values, values.get("quantization_config", {})):
            part.get("meta", {}).pop(_OF_THIS_MACHINE, None)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _run(command: list[str], cwd: Path | None = None, **variables: str) -> str | None:
    """Run a command in the folder `cwd`, without this process's environment of Python.

    Returns:
        What it wrote to stderr if it failed, otherwise None.
    """
    removed = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    done = subprocess.run(
        command, capture_output=True, text=True, env=variables | environment, cwd=cwd, check=False
    )
    return done.stderr if done.returncode else None


def _reason(errors: str | None) -> str:
    """The last line about an error, without its final period."""
    lines = (errors or "").strip().splitlines()
    about = [line for line in lines if "error" in line.lower()]
    reason = (about or lines or ["it gave no reason"])[-1]
    return reason[:300].rstrip(".")
