"""Faults of a base model or an adapter are reported alike by function, command line and worker."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig

from peft_space import operations
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.models.loading import load_base_model, new_adapter
from peft_space.models.resolve import find_base, pin_revision
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.run import Run
from peft_space.training.prepare import make_run

ROOT = Path(__file__).parents[2]
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 988097824\n"
)
WEIGHTS = (MODEL_DIR / "model.safetensors").read_bytes()
CONFIG = json.loads((MODEL_DIR / "config.json").read_text())
TOKENIZER_CONFIG = json.loads((MODEL_DIR / "tokenizer_config.json").read_text())
CODE = b"import pathlib\npathlib.Path(__file__).with_name('canary').touch()\nclass Mine: pass\n"
DAMAGED, FLOAT8 = "models.weights_damaged", "models.weights_unsupported"


def model(without="$", **files):
    """The built-in model's files, without those that match, and with others (`__` is a dot)."""
    files_left = {
        path.name: path.read_bytes()
        for path in MODEL_DIR.iterdir()
        if not re.match(without, path.name)
    }
    return files_left | {name.replace("__", "."): content for name, content in files.items()}


def as_json(value):
    return json.dumps(value).encode()


def in_float8():
    """The built-in model's weights in float8, without scales."""
    weights = load_file(MODEL_DIR / "model.safetensors")
    return save({name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()})


def in_two_parts(second):
    first = "model-00001-of-00002.safetensors"
    index = {"weight_map": {"model.norm.weight": first, "lm_head.weight": second}}
    return model("model", **{"model.safetensors.index.json": as_json(index), first: WEIGHTS})


OWN_CODE = model(
    config__json=as_json({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}),
    code__py=CODE,
)
OWN_TOKENIZER = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
PICKLED = model("model", pytorch_model__bin=b"PK")
GGUF = {"model-Q4_K_M.gguf": b"GGUF"}
FOLDERS = {
    "its own code": (OWN_CODE, "models.needs_code", "{name}"),
    "a tokenizer with its own code": (
        model(tokenizer_config__json=as_json(TOKENIZER_CONFIG | OWN_TOKENIZER), code__py=CODE),
        "models.needs_code",
        "{name}",
    ),
    "pickled weights": (PICKLED, "models.weights_unsupported", "pytorch_model.bin"),
    "no weights": (
        model("model", training_args__bin=b"PK"),
        "models.weights_unsupported",
        "model.safetensors",
    ),
    "a Git LFS pointer": (model(model__safetensors=POINTER), DAMAGED, "git lfs pull"),
    "GGUF alone": (GGUF, "models.weights_unsupported", "model-Q4_K_M.gguf"),
    "GGUF with a config": (
        model("model", **GGUF),
        "models.weights_unsupported",
        "model-Q4_K_M.gguf",
    ),
    "an adapter": ({"adapter_config.json": b"{}"}, "models.not_a_base_model", "adapter"),
    "an image model": (
        model(config__json=as_json(ViTConfig().to_dict())),
        "models.task_unsupported",
        "'vit'",
    ),
    "no tokenizer": (model("tokenizer"), "models.no_tokenizer", "tokenizer.json"),
    "no tokenizer, of a class that loads empty": (
        model("tokenizer", config__json=as_json(CONFIG | {"model_type": "qwen2"})),
        "models.no_tokenizer",
        "tokenizer.json",
    ),
    "a tokenizer that is a pointer": (
        model(tokenizer__json=POINTER),
        "models.invalid_tokenizer",
        "line 1 column 1",
    ),
    "an unknown layer": (model(), "models.unknown_module", "'q_prj'. Did you mean q_proj?"),
    "weights in float8": (model(model__safetensors=in_float8()), FLOAT8, "F8_E4M3"),
    "truncated weights": (
        model(model__safetensors=WEIGHTS[:100_000]),
        DAMAGED,
        f"100,000 bytes instead of {len(WEIGHTS):,}",
    ),
    "an unreadable header": (
        model(model__safetensors=WEIGHTS[:8] + b"?" + WEIGHTS[9:]),
        DAMAGED,
        "model.safetensors",
    ),
    "an empty file": (model(model__safetensors=b""), DAMAGED, "model.safetensors"),
    "a missing part": (
        in_two_parts("model-00002-of-00002.safetensors"),
        DAMAGED,
        "model-00002-of-00002.safetensors",
    ),
    "a damaged index": (
        model("model", **{"model.safetensors.index.json": b"[]"}),
        DAMAGED,
        "model.safetensors.index.json",
    ),
    "an invalid config": (
        model(config__json=as_json(CONFIG | {"hidden_size": "many"})),
        "models.invalid_config",
        "hidden_size",
    ),
}
"""The files of a folder, the code of the error, and a value in its message."""

GATED, POINTER_REPO = "maria/gated", "maria/pointer"
ON_THE_HUB = {
    "gated": (GATED, model(), "hub.gated"),
    "an unknown name": ("maria/unknown", None, "hub.not_found"),
    "its own code": ("maria/code", OWN_CODE, "models.needs_code"),
    "pickled weights": ("maria/pickle", PICKLED, "models.weights_unsupported"),
    "a Git LFS pointer": (POINTER_REPO, model(model__safetensors=POINTER), DAMAGED),
    "GGUF alone": ("maria/gguf", GGUF, "models.weights_unsupported"),
    "neither config nor weights": ("maria/empty", {}, "models.not_a_base_model"),
    "no tokenizer": ("maria/dumb", model("tokenizer"), "models.no_tokenizer"),
    "weights in float8": ("maria/float8", model(model__safetensors=in_float8()), FLOAT8),
    "truncated weights": ("maria/short", model(model__safetensors=WEIGHTS[:100_000]), DAMAGED),
}
"""The name and files of a repository, and the code of the error."""

ASKED_PROCESS = """
import contextlib, io, json, sys
from peft_space.settings import prepare_libraries
prepare_libraries()
from peft_space import operations
from peft_space.__main__ import main
from peft_space.errors import UserError, user_message

def call(operation, values):
    try:
        getattr(operations, operation)(**values)
    except UserError as error:
        return str(error), error.code, user_message(error)
    except Exception as error:
        return str(error), None, user_message(error)

answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    operation, values, arguments = json.loads(line)
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        status = main(arguments)
    printed = printed.getvalue()  # before the libraries write more
    print(json.dumps([*call(operation, values), status, printed]), file=answers, flush=True)
"""
"""A process that calls each operation as a function and as a command."""


@dataclass
class Answer:
    """What a function and a command report."""

    message: str
    code: str | None
    shown: str
    """The message as every surface shows it, with its code."""
    status: int
    printed: str


def start_process(environment, before=""):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", before + ASKED_PROCESS]
    return subprocess.Popen(command, env=environment, text=True, cwd=ROOT, **pipes)


def ask_process(process, operation, values, arguments):
    request = [operation, values, [str(argument) for argument in arguments]]
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer = Answer(*json.loads(process.stdout.readline()))
    assert (answer.status, answer.printed.splitlines()[-1]) == (2, answer.shown)
    assert "Traceback" not in answer.printed
    return answer


@pytest.fixture(scope="module")
def process(hub_environment, hub_worker):
    with start_process(hub_environment) as started:
        yield started
        started.stdin.close()


def ask_all(process, ask, operation, values, arguments):
    """The answer of the function, which the command line and a worker must repeat."""
    answer = ask_process(process, operation, values, arguments)
    with pytest.raises(UserError) as error:
        ask(operation, **values)
    assert str(error.value) == answer.message
    return answer


def training(tmp_path, recipe):
    """A request to make a run: (operation, its arguments, those of the command line)."""
    values = {"directory": str(tmp_path / "run"), "data": "demo", "recipe": recipe}
    command = ["train", "demo", "--recipe", json.dumps(recipe), "--out", tmp_path / "run"]
    return "make_run", values, command


@pytest.mark.parametrize("case", FOLDERS)
@pytest.mark.sample(1)
@pytest.mark.slow
def test_faults_of_a_folder_are_reported_before_a_run_is_made(process, ask, tmp_path, case):
    files, code, value = FOLDERS[case]
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    recipe = {"base_model": str(folder)}
    if case == "an unknown layer":
        recipe["target_modules"] = ["q_prj"]
    answer = ask_all(process, ask, *training(tmp_path, recipe))
    assert answer.code == code
    assert value.format(name=folder) in answer.message
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("case", ON_THE_HUB)
@pytest.mark.sample(1)
@pytest.mark.slow
def test_faults_on_the_hub_are_reported_without_downloading_weights(
    process, ask, the_hub, tmp_path, case
):
    name, files, code = ON_THE_HUB[case]
    if files is not None:
        the_hub.add_repository(name, files)
    if name == GATED:
        the_hub.fail_next("resolve", 403, times=100, code="GatedRepo")
    answer = ask_all(process, ask, *training(tmp_path, {"base_model": name}))
    assert answer.code == code
    assert name in answer.message
    assert not list(tmp_path.iterdir())
    if "config.json" in (files or {}) and code.startswith("models.weights"):
        assert not any("/main" in request.path for request in the_hub.requests), (
            "a branch may move between two requests"
        )
    downloads = [
        request
        for request in the_hub.requests
        if request.method == "GET" and request.path.endswith((".safetensors", ".bin", ".py"))
    ]
    assert all("range" in request.headers or name == POINTER_REPO for request in downloads)


FAILING = """
import time
import peft_space.models.loading
from tests.models import test_model_errors

def load_adapted(run):
    return getattr(test_model_errors, run.directory.name)()

peft_space.models.loading.load_adapted = load_adapted
time.sleep = lambda seconds: None  # between the client's attempts
"""


@pytest.fixture(scope="module")
def failing_process(hub_environment):
    """A process without the Hub, in which comparing calls the function of the run's name."""
    environment = hub_environment | {"HF_ENDPOINT": "http://127.0.0.1:1"}
    with start_process(environment, FAILING) as started:
        yield started
        started.stdin.close()


@pytest.mark.slow
def test_an_unreachable_hub_is_reported(failing_process, tmp_path):
    answer = ask_process(failing_process, *training(tmp_path, {"base_model": "maria/far"}))
    assert answer.code == "hub.unreachable"
    assert "maria/far" in answer.message
    assert not list(tmp_path.iterdir())


# Adapters


def changed_weights(adapter, change):
    path = adapter / "adapter_model.safetensors"
    save_file(dict(change(name, tensor) for name, tensor in load_file(path).items()), path)


def changed_config(adapter, **fields):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def of_a_wider_base(adapter):
    changed_weights(adapter, lambda name, old: (name, torch.cat([old, old], 1)))


def of_more_blocks(adapter):
    changed_weights(adapter, lambda name, old: (name.replace("layers.1.", "layers.31."), old))


def of_another_type(adapter):
    changed_config(adapter, target_modules=["c_attn", "c_proj"])


def of_another_base(adapter):
    changed_config(adapter, base_model_name_or_path="maria/other", revision="0" * 40)


def truncated(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def without_weights(adapter):
    (adapter / "adapter_model.safetensors").unlink()


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
MOVED = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
MISMATCH, ADAPTER_DAMAGED = "models.adapter_mismatch", "models.adapter_damaged"
ADAPTERS = [
    (of_a_wider_base, MISMATCH, rf"{FIRST} is 16 x \d+ instead of 16 x \d+"),
    (of_more_blocks, MISMATCH, MOVED),
    (of_another_type, MISMATCH, "'c_attn'"),
    (of_another_base, MISMATCH, "maria/other.* peft_space/demo/model"),
    (truncated, ADAPTER_DAMAGED, "adapter_model.safetensors is damaged"),
    (without_weights, ADAPTER_DAMAGED, "there is no adapter_model.safetensors"),
]


@pytest.fixture(scope="module")
def untouched_run(tmp_path_factory):
    """A run with an untrained adapter in the form that training writes."""
    run = make_run(tmp_path_factory.mktemp("untouched") / "run", "demo", Recipe())
    base = pin_revision(find_base("demo"))
    model = load_base_model(base, run.recipe, "float32")
    new_adapter(model, run.recipe, base).save_pretrained(run.path("adapter"))
    return run


@pytest.fixture
def changed_run(untouched_run, tmp_path):
    """A copy of that run."""
    return Run(shutil.copytree(untouched_run.directory, tmp_path / "run"))


@pytest.mark.parametrize(
    ("change", "code", "pattern"), ADAPTERS, ids=[change.__name__ for change, *_ in ADAPTERS]
)
@pytest.mark.slow
def test_an_adapter_that_does_not_fit_its_base_is_reported(
    process, ask, changed_run, change, code, pattern
):
    change(changed_run.adapter)
    values = {"run": str(changed_run.directory), "prompts": ["Hi."]}
    command = ["compare", changed_run.directory, "--prompt", "Hi."]
    answer = ask_all(process, ask, "compare", values, command)
    assert answer.code == code
    assert str(changed_run.adapter) in answer.message
    assert re.search(pattern, answer.message)


# Memory


def allocate_too_much(*args, **kwargs):
    torch.empty(10**15)


def cuda_out_of_memory(*args, **kwargs):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def python_out_of_memory(*args, **kwargs):
    raise MemoryError


OUT_OF_MEMORY = [
    (allocate_too_much, "This machine"),
    (cuda_out_of_memory, "The GPU"),
    (python_out_of_memory, "This machine"),
]
each_out_of_memory = pytest.mark.parametrize(
    ("fail", "device"), OUT_OF_MEMORY, ids=[fail.__name__ for fail, _ in OUT_OF_MEMORY]
)


@each_out_of_memory
@pytest.mark.sample(1)
def test_out_of_memory_before_the_first_step_is_reported(tmp_path, monkeypatch, fail, device):
    run = make_run(tmp_path / "run", "demo", Recipe(max_steps=1))
    with monkeypatch.context() as patch:
        patch.setattr("peft_space.training.train.new_adapter", fail)
        with pytest.raises(UserError, match=device) as error:
            operations.train(str(run.directory))
    last = run.history()[-1]
    assert isinstance(last, events.Failed)
    assert last.message == str(error.value)
    assert not run.path("adapter").exists()
    assert not run.path("plan.json").exists()


@each_out_of_memory
@pytest.mark.sample(1)
def test_out_of_memory_in_a_comparison_is_reported(
    failing_process, untouched_run, tmp_path, fail, device
):
    run = shutil.copytree(untouched_run.directory, tmp_path / fail.__name__)
    values = {"run": str(run), "prompts": ["Hi."]}
    answer = ask_process(failing_process, "compare", values, ["compare", run, "--prompt", "Hi."])
    assert "[machine.out_of_memory]" in answer.shown
    assert device in answer.shown


@pytest.mark.slow
def test_a_tokenizer_with_more_tokens_than_the_model_is_rejected(tokenizer, tmp_path):
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = Recipe(base_model=str(tmp_path / "model"), quantization="none")
    with pytest.raises(UserError, match=r"\b50\b"):
        make_run(tmp_path / "run", "demo", recipe)
    assert not (tmp_path / "run").exists()
