"""What can be wrong with a base model or an adapter is told in one sentence, the same by the function, the command line and a worker process."""

import json
import re
import shutil
import subprocess
import sys
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
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 988097824\n"
WEIGHTS = (MODEL_DIR / "model.safetensors").read_bytes()
CONFIG = json.loads((MODEL_DIR / "config.json").read_text())
TOKENIZER_CONFIG = json.loads((MODEL_DIR / "tokenizer_config.json").read_text())
CODE = b"import pathlib\npathlib.Path(__file__).with_name('canary').touch()\nclass Mine: pass\n"
NOT_LOADED = "The weights of {name} cannot be loaded: "
AGAIN = "Download the model again, or choose another base model."
GGUF = "it is in GGUF (model-Q4_K_M.gguf), which is for running a model, not for training one. Choose the original that it was made from."
PICKLE = "they are kept in pytorch_model.bin, a pickle, which can run code and is never opened. Choose a model that is stored as safetensors."
NEEDS_CODE = "it needs code of its own to run, which is never allowed here. Choose a model that transformers supports."


def model(without="$", **files):
    """The files of the built-in model, without those whose names match, and with others (`__` stands for a point)."""
    kept = {
        path.name: path.read_bytes()
        for path in MODEL_DIR.iterdir()
        if not re.match(without, path.name)
    }
    return kept | {name.replace("__", "."): content for name, content in files.items()}


def as_json(value):
    return json.dumps(value).encode()


def in_float8():
    """The built-in model's weights in 8 bits, without scales."""
    weights = load_file(MODEL_DIR / "model.safetensors")
    return save({name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()})


def in_two_parts(second):
    index = as_json(
        {
            "weight_map": {
                "model.norm.weight": "model-00001-of-00002.safetensors",
                "lm_head.weight": second,
            }
        }
    )
    return model(
        "model",
        **{"model.safetensors.index.json": index, "model-00001-of-00002.safetensors": WEIGHTS},
    )


FOLDERS = {
    "code of its own": (
        model(
            config__json=as_json({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}),
            code__py=CODE,
        ),
        "The base model '{name}' cannot be loaded: " + NEEDS_CODE,
    ),
    "a tokenizer with code of its own": (
        model(
            tokenizer_config__json=as_json(
                TOKENIZER_CONFIG
                | {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
            ),
            code__py=CODE,
        ),
        "The tokenizer of the base model {name} cannot be loaded: " + NEEDS_CODE,
    ),
    "pickled weights": (model("model", pytorch_model__bin=b"PK"), NOT_LOADED + PICKLE),
    "no weights": (
        model("model", training_args__bin=b"PK"),
        NOT_LOADED
        + "there is no model.safetensors among its files. Choose a model that is stored as safetensors.",
    ),
    "a Git LFS pointer": (
        model(model__safetensors=POINTER),
        NOT_LOADED
        + f"model.safetensors is a Git LFS pointer of {len(POINTER)} bytes, not the weights. "
        "Run `git lfs pull` in its folder, or download the model again.",
    ),
    "GGUF alone": ({"model-Q4_K_M.gguf": b"GGUF"}, "The folder {name} is no base model: " + GGUF),
    "GGUF with a config": (model("model", **{"model-Q4_K_M.gguf": b"GGUF"}), NOT_LOADED + GGUF),
    "an adapter": (
        {"adapter_config.json": b"{}"},
        "The folder {name} is no base model: it is an adapter, not a base model. Give the base model that it was trained on.",
    ),
    "a model of pictures": (
        model(config__json=as_json(ViTConfig().to_dict())),
        "Models of the kind 'vit' do not continue text, so they cannot learn to answer. They can learn none of the tasks here. "
        "Choose another base model.",
    ),
    "no tokenizer": (
        model("tokenizer"),
        "The base model {name} has no tokenizer: there is no tokenizer.json among its files. "
        "Save the tokenizer beside the model, or choose another base model.",
    ),
    "no tokenizer, of a kind that comes up empty": (
        model("tokenizer", config__json=as_json(CONFIG | {"model_type": "qwen2"})),
        "The base model {name} has no tokenizer: there is no tokenizer.json among its files. "
        "Save the tokenizer beside the model, or choose another base model.",
    ),
    "a tokenizer that is a pointer": (
        model(tokenizer__json=POINTER),
        "The tokenizer of the base model {name} cannot be loaded: Expecting value: line 1 column 1 (char 0). Choose another base model.",
    ),
    "a layer that is not there": (
        model(),
        "The base model has no linear layer 'q_prj'. Did you mean q_proj? "
        "Choose from q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.",
    ),
    "weights in float8": (
        model(model__safetensors=in_float8()),
        NOT_LOADED
        + "model.embed_tokens.weight is stored as F8_E4M3, which cannot be trained. Choose the model in bfloat16, float16 or float32.",
    ),
    "weights cut off": (
        model(model__safetensors=WEIGHTS[:100_000]),
        NOT_LOADED
        + f"model.safetensors is damaged: it has 100,000 bytes and should have {len(WEIGHTS):,}. "
        + AGAIN,
    ),
    "an unreadable header": (
        model(model__safetensors=WEIGHTS[:8] + b"?" + WEIGHTS[9:]),
        NOT_LOADED + "model.safetensors is damaged: its header cannot be read. " + AGAIN,
    ),
    "an empty file": (
        model(model__safetensors=b""),
        NOT_LOADED + "model.safetensors is damaged: its header cannot be read. " + AGAIN,
    ),
    "a missing part": (
        in_two_parts("model-00002-of-00002.safetensors"),
        NOT_LOADED + "the part model-00002-of-00002.safetensors is missing. " + AGAIN,
    ),
    "a damaged index": (
        model("model", **{"model.safetensors.index.json": b"[]"}),
        NOT_LOADED + "model.safetensors.index.json is damaged. " + AGAIN,
    ),
    "a config that is not right": (
        model(config__json=as_json(CONFIG | {"hidden_size": "many"})),
        "The base model '{name}' cannot be loaded: Validation error for field 'hidden_size'. Choose another base model.",
    ),
}
"""Files of a folder, and what is said of it."""

GATED, PULL_ONLY = "maria/gated", "maria/pointer"
ON_THE_HUB = {
    "an agreement is asked for": (
        GATED,
        model(),
        "The base model '{name}' cannot be loaded: its authors ask for an agreement first. "
        "Accept it on the model's page on the Hub and sign in, then try again.",
    ),
    "an unknown name": (
        "maria/unknown",
        None,
        "The base model '{name}' cannot be loaded: the Hub knows no model of this name, or it is private. Check the spelling, or sign in.",
    ),
    "code of its own": (
        "maria/code",
        model(
            config__json=as_json({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}),
            code__py=CODE,
        ),
        "The base model '{name}' cannot be loaded: " + NEEDS_CODE,
    ),
    "pickled weights": (
        "maria/pickle",
        model("model", pytorch_model__bin=b"PK"),
        NOT_LOADED + PICKLE,
    ),
    "a Git LFS pointer": (
        "maria/pointer",
        model(model__safetensors=POINTER),
        NOT_LOADED
        + f"model.safetensors is a Git LFS pointer of {len(POINTER)} bytes, not the weights. "
        + AGAIN,
    ),
    "GGUF alone": (
        "maria/gguf",
        {"model-Q4_K_M.gguf": b"GGUF"},
        "The base model '{name}' cannot be loaded: " + GGUF,
    ),
    "neither config nor weights": (
        "maria/empty",
        {},
        "The base model '{name}' cannot be loaded: it has no config.json. Give another base model.",
    ),
    "no tokenizer": (
        "maria/dumb",
        model("tokenizer"),
        "The base model {name} has no tokenizer: there is no tokenizer.json among its files. "
        "Save the tokenizer beside the model, or choose another base model.",
    ),
    "weights in float8": (
        "maria/float8",
        model(model__safetensors=in_float8()),
        NOT_LOADED
        + "model.embed_tokens.weight is stored as F8_E4M3, which cannot be trained. Choose the model in bfloat16, float16 or float32.",
    ),
    "weights cut off": (
        "maria/short",
        model(model__safetensors=WEIGHTS[:100_000]),
        NOT_LOADED + "model.safetensors is damaged. " + AGAIN,
    ),
}
"""Name and files of a repository, and what is said of it."""

SPOKEN = """
import contextlib, io, json, sys
from peft_space.settings import prepare_libraries
prepare_libraries()
from peft_space.__main__ import main
from peft_space.errors import UserError
from peft_space.execution.worker import _last_message
from peft_space.models.load import load_adapted
from peft_space.recipe import make_recipe
from peft_space.run import Run
from peft_space.training.prepare import make_run

def function(verb, values):
    try:
        if verb == "compare":
            load_adapted(Run(values["run"]))
        else:
            make_run(values["directory"], values["data"], make_recipe(values["recipe"]))
    except UserError as error:
        return str(error)
    except Exception:
        return None  # what only the command line and the worker put into words

answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    verb, values, arguments = json.loads(line)
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        status = main(arguments)
    told = printed.getvalue()  # before libraries that took hold of it write more
    worker = _last_message({"verb": verb, "arguments": dict(values)}, lambda message: None)
    print(json.dumps([function(verb, values), status, told, worker]), file=answers, flush=True)
"""
"""A process that says of each request what the function, the command line and the worker's code say."""


def speaking(environment, before=""):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [sys.executable, "-c", before + SPOKEN], env=environment, text=True, cwd=ROOT, **pipes
    )


def said(process, verb, values, arguments):
    process.stdin.write(
        json.dumps([verb, values, [str(argument) for argument in arguments]]) + "\n"
    )
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@pytest.fixture(scope="module")
def speaker(hub_environment, hub_worker):
    with speaking(hub_environment) as process:
        yield process
        process.stdin.close()


def all_agree(speaker, ask, sentence, verb, values, arguments):
    function, status, err, _ = said(speaker, verb, values, arguments)
    assert function == sentence
    assert (status, err.splitlines()[-1:]) == (2, [sentence])
    assert "Traceback" not in err
    with pytest.raises(UserError) as refusal:
        ask(verb, **values)
    assert str(refusal.value) == sentence


def of_training(tmp_path, recipe):
    """What asks for a training: (verb, its arguments, those of the command line)."""
    values = {"directory": str(tmp_path / "run"), "data": "demo", "recipe": recipe}
    return (
        "make",
        values,
        ["train", "demo", "--recipe", json.dumps(recipe), "--out", tmp_path / "run"],
    )


@pytest.mark.parametrize("case", FOLDERS)
def test_what_is_wrong_with_a_folder_is_told_before_a_run_is_made(speaker, ask, tmp_path, case):
    files, sentence = FOLDERS[case]
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    recipe = {"base_model": str(folder)} | (
        {"target_modules": ["q_prj"]} if "layer" in case else {}
    )
    all_agree(speaker, ask, sentence.format(name=folder), *of_training(tmp_path, recipe))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("case", ON_THE_HUB)
def test_what_is_wrong_with_a_model_on_the_hub_is_told_without_downloading_weights(
    speaker, ask, the_hub, tmp_path, case
):
    name, files, sentence = ON_THE_HUB[case]
    if files is not None:
        the_hub.add_repository(name, files)
    if name == GATED:
        the_hub.fail_next("resolve", 403, times=100, code="GatedRepo")
    all_agree(
        speaker, ask, sentence.format(name=name), *of_training(tmp_path, {"base_model": name})
    )
    assert not list(tmp_path.iterdir())
    if "config.json" in (files or {}) and NOT_LOADED in sentence:
        assert not any("/main" in request.path for request in the_hub.requests), (
            "a branch may move while it is looked at"
        )
    fetched = [
        request
        for request in the_hub.requests
        if request.method == "GET" and request.path.endswith((".safetensors", ".bin", ".py"))
    ]
    assert all("range" in request.headers or name == PULL_ONLY for request in fetched)


POOR = """
import time
import peft_space.models.load
from tests import test_model_errors
peft_space.models.load.load_adapted = lambda run: getattr(test_model_errors, run.directory.name)()
time.sleep = lambda seconds: None  # between the client's attempts
"""


@pytest.fixture(scope="module")
def poor(hub_environment):
    """A process that reaches no Hub, and where comparing fails as the function of the run's name does."""
    with speaking(hub_environment | {"HF_ENDPOINT": "http://127.0.0.1:1"}, POOR) as process:
        yield process
        process.stdin.close()


def test_a_hub_that_cannot_be_reached_is_told(poor, tmp_path):
    function, status, err, worker = said(poor, *of_training(tmp_path, {"base_model": "maria/far"}))
    assert function == (
        "The base model 'maria/far' cannot be loaded: it is not on this machine and the Hub cannot be reached. "
        "Check the spelling and the network, or use demo."
    )
    assert (status, err.splitlines()[-1]) == (2, function)
    assert worker == {"error": function, "users": True}
    assert not list(tmp_path.iterdir())


# Adapters


def changed_weights(adapter, change):
    path = adapter / "adapter_model.safetensors"
    save_file(
        {
            new: tensor
            for name, old in load_file(path).items()
            for new, tensor in [change(name, old)]
        },
        path,
    )


def changed_config(adapter, **fields):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def of_a_wider_base(adapter):
    changed_weights(adapter, lambda name, old: (name, torch.cat([old, old], 1)))


def of_more_blocks(adapter):
    changed_weights(adapter, lambda name, old: (name.replace("layers.1.", "layers.31."), old))


def of_another_kind(adapter):
    changed_config(adapter, target_modules=["c_attn", "c_proj"])


def of_another_base(adapter):
    changed_config(adapter, base_model_name_or_path="maria/other", revision="0" * 40)


def cut_off(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def without_weights(adapter):
    (adapter / "adapter_model.safetensors").unlink()


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
MOVED = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
UNFIT = "The adapter in {adapter} does not fit the base model peft_space/demo/model: "
ADAPTERS = [
    (of_a_wider_base, rf"{UNFIT}its {FIRST} is 16 x \d+, and should be 16 x \d+\."),
    (of_more_blocks, rf"{UNFIT}it has no {MOVED}\."),
    (of_another_kind, UNFIT + r"the base has no layer 'c_attn'\."),
    (
        of_another_base,
        r"The adapter in {adapter} was trained on maria/other, and the base model of this run is peft_space/demo/model\.",
    ),
    (
        cut_off,
        r"The adapter in {adapter} cannot be loaded: adapter_model.safetensors is damaged: its header cannot be read\.",
    ),
    (
        without_weights,
        r"The adapter in {adapter} cannot be loaded: there is no adapter_model.safetensors\.",
    ),
]


@pytest.fixture(scope="module")
def untouched_run(tmp_path_factory):
    """A run with an adapter as training leaves it, untrained."""
    run = make_run(tmp_path_factory.mktemp("untouched") / "run", "demo", Recipe())
    base = pin_revision(find_base("demo"))
    new_adapter(load_base_model(base, run.recipe, "float32"), run.recipe, base).save_pretrained(
        run.path("adapter")
    )
    return run


@pytest.fixture
def changed_run(untouched_run, tmp_path):
    """A copy of it to be changed."""
    return Run(shutil.copytree(untouched_run.directory, tmp_path / "run"))


@pytest.mark.parametrize(
    ("change", "pattern"), ADAPTERS, ids=[change.__name__ for change, _ in ADAPTERS]
)
def test_an_adapter_that_does_not_fit_its_base_is_told(speaker, ask, changed_run, change, pattern):
    change(changed_run.adapter)
    arguments = (
        {"run": str(changed_run.directory), "prompts": ["Hi."]},
        ["compare", changed_run.directory, "--prompt", "Hi."],
    )
    sentence = said(speaker, "compare", *arguments)[0]
    assert re.fullmatch(
        pattern.format(adapter=re.escape(str(changed_run.adapter)))
        + " Put the adapter of this run back, or train anew.",
        sentence,
    )
    all_agree(speaker, ask, sentence, "compare", *arguments)


# Memory


def much(*args, **named):
    torch.empty(10**15)


def cuda(*args, **named):
    raise torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.89 GiB"
    )


def python(*args, **named):
    raise MemoryError


MEMORY = (
    " has not enough memory for this. Set a smaller batch_size or max_length in the recipe, hold the base in 4 bits (quantization nf4), "
    "or choose a smaller base model."
)
LACK = [
    (much, "This machine" + MEMORY),
    (cuda, "The GPU" + MEMORY),
    (python, "This machine" + MEMORY),
]


@pytest.mark.parametrize(("lack", "sentence"), LACK, ids=[lack.__name__ for lack, _ in LACK])
def test_want_of_memory_before_the_first_step_is_told_and_the_run_can_go_on(
    tmp_path, monkeypatch, lack, sentence
):
    run = make_run(tmp_path / "run", "demo", Recipe(max_steps=1))
    sentence = f"{sentence.split(' has ')[0]} has not enough memory for the base model. Hold it in 4 bits (quantization nf4), or choose a smaller one."
    with monkeypatch.context() as patch:
        patch.setattr("peft_space.training.train.new_adapter", lack)
        with pytest.raises(UserError) as refusal:
            operations.train(str(run.directory))
    assert str(refusal.value) == sentence
    last = run.history()[-1]
    assert isinstance(last, events.Failed)
    assert last.message == sentence
    assert not run.path("adapter").exists()
    assert not run.path("plan.json").exists()


@pytest.mark.parametrize(("lack", "sentence"), LACK, ids=[lack.__name__ for lack, _ in LACK])
def test_want_of_memory_in_comparing_is_told(poor, untouched_run, tmp_path, lack, sentence):
    run = shutil.copytree(untouched_run.directory, tmp_path / lack.__name__)
    _, status, err, worker = said(
        poor, "compare", {"run": str(run), "prompts": ["Hi."]}, ["compare", run, "--prompt", "Hi."]
    )
    assert (status, err.splitlines()[-1]) == (2, sentence)
    assert "Traceback" not in err
    assert worker == {"error": sentence, "users": True}


def test_a_tokenizer_that_knows_more_tokens_than_its_model_is_told_before_training(
    tokenizer, tmp_path
):
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(
        UserError,
        match=r"writes the token [\d,]+ for these rows, and the model has embeddings for 50 tokens alone",
    ):
        make_run(
            tmp_path / "run",
            "demo",
            Recipe(base_model=str(tmp_path / "model"), quantization="none"),
        )
    assert not (tmp_path / "run").exists()
