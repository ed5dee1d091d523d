"""In real vLLM on a CPU, exported adapter and merged model answer as the adapter in float32."""

import json
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from peft_space import operations
from peft_space.export.export import serving_commands
from peft_space.export.merge import merge, merge_into
from peft_space.export.quantize import COMPRESSED
from peft_space.models.loading import base_of
from tests.engines.engines import environment, needs_gptqmodel, python_of
from tests.engines.trained import (
    FAMILIES,
    NUM_TOKENS,
    agreement,
    answers_of,
    answers_of_family,
    folder,
    run_of,
    run_of_family,
)

pytestmark = pytest.mark.slow


@contextmanager
def serving(model, *arguments, length=512, dtype="float32"):
    """Serve a model with vLLM and yield the address.

    Args:
        length: the most tokens of a prompt and its answer.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python_of("vllm"), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", dtype, "--enforce-eager", "--max-model-len", str(length)]
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
    return ask_in_detail(address, model, messages)["choices"][0]["message"]["content"]


def ask_in_detail(address, model, messages):
    """Return what the server says about the greedy answer to a conversation."""
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": NUM_TOKENS}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_exported_adapter_answers_in_vllm_as_in_float32(quantization, tmp_path, record):
    run, expected = run_of(quantization), answers_of(quantization)
    exported = operations.export(str(run.directory), str(tmp_path / "adapter"))["path"]
    base, _ = base_of(run)
    name, lora = _adapter_arguments(run, exported)
    with serving(base.location, *lora) as address:
        answers = [ask(address, name, messages) for messages in expected.conversations]
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


@pytest.mark.parametrize("name", FAMILIES)
def test_the_exports_of_a_family_answer_in_vllm_as_in_transformers(name, tmp_path, record):
    run, expected = run_of_family(name), answers_of_family(name)
    exported = operations.export(str(run.directory), str(tmp_path / "adapter"))["path"]
    base, _ = base_of(run)
    name, lora = _adapter_arguments(run, exported)
    (tmp_path / "merged").mkdir()
    merge(run, tmp_path / "merged", "float32", merge_into(run, "full"))
    for model, arguments, served in (
        (base.location, lora, name),
        (tmp_path / "merged", (), "base"),
    ):
        with serving(model, *arguments, length=256) as address:
            found = [ask_in_detail(address, served, one) for one in expected.conversations]
        # the same template and the same BOS, and answers that end by themselves
        lengths = [answer["usage"]["prompt_tokens"] for answer in found]
        assert lengths == [len(prompt) for prompt in expected.prompts]
        ended = [answer["choices"][0]["finish_reason"] == "stop" for answer in found]
        assert ended == [answer[-1] in expected.stops for answer in expected.answers]
        answers = [answer["choices"][0]["message"]["content"] for answer in found]
        what = "adapter, --enable-lora" if arguments else "merged in float32"
        _record_answers(record, f"{name}, {what}", expected, answers)
        assert answers == expected.texts


@pytest.mark.parametrize("method", COMPRESSED)
def test_a_model_in_4_bits_answers_in_vllm_nearly_as_the_adapter(method, tmp_path, record):
    needs_gptqmodel()
    run, expected = run_of("none"), answers_of("none")
    exported = operations.export(
        str(run.directory), str(tmp_path / "out"), {"target": "merged", "dtype": method}
    )["path"]
    with serving(exported, dtype="bfloat16") as address:
        answers = [ask(address, "base", messages) for messages in expected.conversations]
    what = f"trained on the unquantized base, merged as {method.upper()}"
    same = _record_answers(record, what, expected, answers)
    assert same >= 0.9 * len(answers)


def _adapter_arguments(run, folder):
    """The name of the adapter, and the arguments after the base in the app's command."""
    command = serving_commands(run, "adapter", Path(folder), "bfloat16")["vLLM"]
    arguments = shlex.split(command)[3:]
    return arguments[arguments.index("--lora-modules") + 1].partition("=")[0], arguments


def _record(record, quantization, what, expected, answers):
    trained = "the base in NF4" if quantization == "nf4" else "the unquantized base"
    _record_answers(record, f"trained on {trained}, {what}", expected, answers)


def _record_answers(record, what, expected, answers):
    """Record how many answers are equal, and return their number."""
    version = subprocess.run(
        [python_of("vllm"), "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"],
        capture_output=True,
        text=True,
        env=environment(),
    ).stdout.strip()
    same, alike = agreement(expected.texts, answers)
    record(
        f"vLLM (vllm-cpu {version}), prompts over HTTP, greedy",
        what,
        f"{same} of {len(answers)} answers equal the adapter's in float32 "
        f"({alike:.1%} of characters)",
    )
    return same
