"""Quantizes GGUF files to 4 or 5 bits with llama.cpp's library, which is an optional extra.

llama.cpp runs in a child process: in an environment with llama-cpp-python, and a fault in it ends
only the child.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from peft_space.errors import UserError
from peft_space.export.gguf import Numbers

_ROOT = Path(__file__).parents[3]
_FILE_TYPES = {"q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M", "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M"}
BY_LLAMA_CPP = tuple(_FILE_TYPES)
"""The formats that only llama.cpp writes."""
_SCRIPT = """
import sys, llama_cpp
source, out, kind, threads = sys.argv[1:]
options = llama_cpp.llama_model_quantize_default_params()
options.ftype, options.nthread = getattr(llama_cpp, kind), int(threads)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), out.encode(), options))
"""


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


def quantize(source: Path, out: Path, numbers: Numbers) -> None:
    """Quantize a GGUF file in 16 or 32 bits.

    Args:
        source: the file.
        out: the file to create.
        numbers: one of `BY_LLAMA_CPP`.

    Raises:
        UserError: llama.cpp is not installed, or it cannot quantize the model.
    """
    threads = os.cpu_count() or 1
    command = [python_with_llama_cpp(), "-c", _SCRIPT, source, out, _FILE_TYPES[numbers], threads]
    removed = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode or not out.is_file():
        out.unlink(missing_ok=True)
        lines = [line for line in done.stderr.strip().splitlines() if "error" in line.lower()]
        reason = (lines or done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise UserError(
            "export.not_quantized",
            f"llama.cpp cannot quantize this model to {numbers}: {reason[:300].rstrip('.')}. "
            "Export it as q8_0.",
        )
