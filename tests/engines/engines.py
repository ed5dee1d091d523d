"""The engines that an export is for, each in an environment of its own: `make engines` builds them, or variables name their folders."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python_of(engine):
    """The Python of an engine's environment."""
    return program(engine, "python")


def program(engine, name):
    """A program in an engine's environment. Skips, saying what is missing, where there is none."""
    variable = f"PEFT_SPACE_{engine.upper()}"
    path = Path(os.environ.get(variable, ROOT / ".engines" / engine)) / "bin" / name
    if not path.exists():
        reason = f"no environment with {engine}: `make engines` makes it, or name its folder in {variable}"
        print(f"SKIPPED: {reason}")
        pytest.skip(reason)
    return str(path)


def environment():
    """Without what belongs to ours."""
    own = ("PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in own} | {
        "OMP_NUM_THREADS": "1"
    }


def ask_llama_cpp(
    model,
    prompts=(),
    stops=(),
    texts=(),
    adapter=None,
    num_tokens=48,
    exact=True,
    logits=False,
    context=512,
):
    """What llama.cpp says of a GGUF file: its metadata, texts as tokens, and the greedy answers to prompts of token ids."""
    asked = {
        "model": str(model), "adapter": str(adapter) if adapter else None, "prompts": list(prompts), "stops": list(stops),
        "texts": list(texts), "num_tokens": num_tokens, "exact": exact, "logits": logits, "context": context,
    }  # fmt: skip
    done = subprocess.run(
        [python_of("llama_cpp"), Path(__file__).with_name("llama_cpp_worker.py")],
        input=json.dumps(asked), capture_output=True, text=True, env=environment(), timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
