"""In real vLLM on a CPU, exported adapter and merged model answer as the adapter in float32."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from peft_space import operations
from peft_space.export.merge import merge, merge_into
from peft_space.models.loading import base_of
from tests.engines.engines import environment, python_of
from tests.engines.trained import NUM_TOKENS, agreement, answers_of, folder, run_of

pytestmark = pytest.mark.slow


@contextmanager
def serving(model, *arguments):
    """Serve a model with vLLM and yield the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python_of("vllm"), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    command += ["--served-model-name", "base", *map(str, arguments)]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    with folder() as scratch:
        log = Path(scratch, "log")
        with open(log, "w", encoding="utf-8") as file:
            server = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment() | settings,
                start_new_session=True,
                cwd=scratch,
            )
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def _wait(server, address, log):
    deadline = time.monotonic() + 420
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text(encoding="utf-8")[-3000:])


def ask(address, model, messages):
    """Return the greedy answer to a conversation; the server applies the chat template."""
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": NUM_TOKENS}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_exported_adapter_answers_in_vllm_as_in_float32(quantization, tmp_path, record):
    run, expected = run_of(quantization), answers_of(quantization)
    exported = operations.export(str(run.directory), str(tmp_path / "adapter"))["path"]
    base, _ = base_of(run)
    lora = (
        "--enable-lora",
        "--lora-modules",
        f"tuned={exported}",
        "--max-lora-rank",
        run.recipe.lora_rank,
    )
    with serving(base.location, *lora) as address:
        answers = [ask(address, "tuned", messages) for messages in expected.conversations]
        untouched = [ask(address, "base", messages) for messages in expected.conversations[:4]]
    _record(record, quantization, "adapter, --enable-lora", expected, answers)
    assert answers == expected.texts
    assert untouched != expected.texts[:4]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_merged_model_answers_in_vllm_as_the_adapter_in_float32(quantization, tmp_path, record):
    run, expected = run_of(quantization), answers_of(quantization)
    merge(run, tmp_path, "float32", merge_into(run, "full"))
    with serving(tmp_path) as address:
        answers = [ask(address, "base", messages) for messages in expected.conversations]
    _record(record, quantization, "merged in float32", expected, answers)
    assert answers == expected.texts


def _record(record, quantization, what, expected, answers):
    version = subprocess.run(
        [python_of("vllm"), "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"],
        capture_output=True,
        text=True,
        env=environment(),
    ).stdout.strip()
    same, alike = agreement(expected.texts, answers)
    trained = "the base in NF4" if quantization == "nf4" else "the unquantized base"
    record(
        f"vLLM (vllm-cpu {version}), the demo's held-out prompts over HTTP, greedy",
        f"trained on {trained}, {what}",
        f"{same} of {len(answers)} answers equal the adapter's in float32 "
        f"({alike:.1%} of characters)",
    )
