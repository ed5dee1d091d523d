"""No model or adapter runs code, connects somewhere, or takes all memory.

Each is rejected with a UserError, or loads as if it were harmless.
"""

import functools
import io
import json
import shutil
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from peft_space import operations
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError, user_message
from peft_space.models.loading import load_base_model
from peft_space.models.resolve import find_base, pin_revision
from peft_space.recipe import Recipe
from tests.fixtures.malicious_models import ADAPTERS, CASES, OTHER, Bait, Case, slug

ROWS = [
    {"prompt": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "completion": "b"},
    {"prompt": "c", "completion": "d"},
]
QUICK = {
    "auto_map beside a known kind",
    "auto_map with an unknown kind",
    "_attn_implementation_internal",
    "a new line in model_type",
    "custom_generate",
    "pickled weights",
    "an index with ..",
    "weights linked to a pickle",
    "an adapter beside the model",
    "a known tokenizer with code",
    "a tokenizer that is a model",
    "a config nested deeply",
    "a thousand billion parameters",
}
"""Cases that run on every push. The others are slow tests."""
DANGEROUS = ("pickle.find_class", "subprocess.Popen", "os.system", "socket.connect")
dangerous_events: list[tuple] = []


def watch(event, args):
    """Record what malicious code would do. The app's own child processes exchange pickles too."""
    if event in DANGEROUS and (event != "pickle.find_class" or args[1] == "exec"):
        dangerous_events.append((event, *args))


sys.addaudithook(watch)


def params(cases: dict[str, Case], quick=()):
    return [
        pytest.param(cases[name], id=name, marks=() if name in quick else pytest.mark.slow)
        for name in cases
    ]


@pytest.fixture
def bait(tmp_path, monkeypatch):
    """Check that no code takes the bait, even if every question on the terminal is answered yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    monkeypatch.syspath_prepend(str(tmp_path / "model"))
    bait = Bait(tmp_path)
    dangerous_events.clear()
    yield bait
    assert not bait.taken()
    assert dangerous_events == []
    bait.socket.close()


def prepare_and_load(operation, recipe):
    operation(recipe=recipe)
    load_base_model(pin_revision(find_base(recipe["base_model"])), Recipe(**recipe), "float32")


@pytest.mark.parametrize("case", params(CASES, QUICK))
@pytest.mark.sample(1)
def test_a_malicious_base_model_runs_no_code_and_connects_to_nothing(case, bait, tmp_path, write):
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    case.make(folder, bait)
    recipe = {"base_model": str(folder), "quantization": "none"}
    rows = str(write("rows.json", ROWS))
    if case.expected is None:
        checked = operations.check(rows, recipe=recipe)
        assert checked["to_train"] + checked["held_out"] == 2
        model = load_base_model(pin_revision(find_base(str(folder))), Recipe(**recipe), "float32")
        ids = model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False)
        assert ids.shape == (1, 4)
        return
    for operation in (
        functools.partial(operations.check, rows),
        functools.partial(operations.make_run, str(tmp_path / "run"), rows),
    ):
        with pytest.raises(UserError) as error:
            prepare_and_load(operation, recipe)
        assert case.expected in user_message(error.value)
        assert len(str(error.value)) < 1_000


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "case", params(ADAPTERS, ("a module for megatron", "a base that is an address"))
)
def test_a_malicious_adapter_runs_no_code_and_connects_to_nothing(
    case, bait, adapter, tmp_path, write
):
    folder = shutil.copytree(adapter, tmp_path / "model")
    case.make(folder, bait)
    rows = str(write("rows.json", ROWS))
    for source in (str(folder), shutil.make_archive(str(tmp_path / "packed"), "zip", folder)):
        if case.expected is None:
            directory, recipe = str(tmp_path / source[-3:]), {"quantization": "none"}
            run = operations.import_adapter(directory, source, rows, recipe)["run"]
            assert operations.compare(run, ["a"])["fairness"]["fair"]
            continue
        with pytest.raises(UserError) as error:
            operations.import_adapter(str(tmp_path / "run"), source, rows)
        assert case.expected in user_message(error.value)
        assert not (tmp_path / "run").exists()


def on_the_hub(case, bait, tmp_path):
    """The files of a malicious model in a repository."""
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    case.make(folder, bait)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "auto_map to another repository",
        "auto_map beside a known kind",
        "_attn_implementation_internal",
        "an adapter beside the model",
        "an index with ..",
        "a tokenizer with code",
        "custom_generate",
        "generating by another model",
    ],
)
def test_a_malicious_model_on_the_hub_leads_to_no_other_repository(
    name, bait, the_hub, ask, hub_environment, tmp_path, write
):
    case = CASES[name]
    repo = f"evil/{slug(name)}"
    the_hub.add_repository(repo, on_the_hub(case, bait, tmp_path))
    config = json.dumps({"model_type": "llama"}).encode()
    the_hub.add_repository(OTHER, {"code.py": bait.code.encode(), "config.json": config})
    the_hub.requests.clear()
    rows = str(write("rows.json", ROWS))
    recipe = {"base_model": repo, "quantization": "none", "max_steps": 1}
    dangerous_events.clear()  # the worker process, not this one, connects to the Hub
    if case.expected is None:
        ask("dry_run", data=rows, recipe=recipe)
    else:
        with pytest.raises(UserError):
            ask("dry_run", data=rows, recipe=recipe)
    paths = [request.path for request in the_hub.requests]
    assert paths
    assert not [path for path in paths if OTHER in path or path.endswith((".py", ".bin"))]


def test_there_are_at_least_forty_cases():
    assert len(CASES) + len(ADAPTERS) >= 40
    assert set(CASES) > QUICK
