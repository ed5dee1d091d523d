"""The inference engines, each in a separate environment.

`make engines` builds them, or environment variables name their folders.
"""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python_of(engine):
    """Return the Python interpreter of an engine's environment."""
    return program(engine, "python")


def program(engine, name):
    """Return a program in an engine's environment; skip the test if it does not exist."""
    variable = f"PEFT_SPACE_{engine.upper()}"
    path = Path(os.environ.get(variable, ROOT / ".engines" / engine)) / "bin" / name
    if not path.exists():
        reason = f"no environment with {engine}: run `make engines`, or set {variable}"
        print(f"SKIPPED: {reason}")
        pytest.skip(reason)
    return str(path)


def needs_gptqmodel():
    """Skip the test without the library that writes models in GPTQ and AWQ."""
    if importlib.util.find_spec("gptqmodel") is None:
        reason = "gptqmodel is not installed: pip install --no-deps -r requirements-gptq.txt"
        print(f"SKIPPED: {reason}")
        pytest.skip(reason)


def environment():
    """Return the environment variables, without those of this project's environment."""
    removed = ("PYTHONPATH", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if name not in removed}
    return variables | {"OMP_NUM_THREADS": "1"}


def ask_llama_cpp(model, prompts=(), stops=(), adapter=None, **options):
    """Return what llama.cpp makes of a GGUF file: metadata, tokens of texts, greedy answers.

    Args:
        model: the GGUF file.
        prompts: token ids of each prompt.
        stops: token ids that end an answer.
        adapter: the GGUF file of an adapter.
        options: texts, num_tokens, exact, logits and context, as llama_cpp_worker.py reads them.
    """
    defaults = {"texts": [], "num_tokens": 48, "exact": True, "logits": False, "context": 512}
    files = {"model": str(model), "adapter": str(adapter) if adapter else None}
    request = defaults | options | files | {"prompts": list(prompts), "stops": list(stops)}
    done = subprocess.run(
        [python_of("llama_cpp"), Path(__file__).with_name("llama_cpp_worker.py")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
