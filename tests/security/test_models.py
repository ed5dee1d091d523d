"""No model or adapter of a stranger runs code, reaches out, or takes all memory: each is refused in a sentence, or loads as if nothing were there."""

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
from peft_space.errors import UserError
from peft_space.models.loading import load_base_model
from peft_space.models.resolve import find_base, pin_revision
from peft_space.recipe import Recipe
from tests.fixtures.malicious_models import ADAPTERS, CASES, OTHER, Bait, Case, slug

ROWS = [
    {"prompt": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "completion": "b"},
    {"prompt": "c", "completion": "d"},
]
QUICK = {
    "auto_map beside a known kind", "auto_map with an unknown kind", "_attn_implementation_internal", "a new line in model_type",
    "custom_generate", "pickled weights", "an index with ..", "weights linked to a pickle", "an adapter beside the model",
    "a known tokenizer with code", "a tokenizer that is a model", "a config nested deeply", "a thousand billion parameters",
}  # fmt: skip
"""A sample for every push; the rest are among the slow ones."""
DANGEROUS = ("pickle.find_class", "subprocess.Popen", "os.system", "socket.connect")
happened: list[tuple] = []


def watch(event, given):
    """What code of theirs would do. (Children of ours hand over what they made as pickles of their own.)"""
    if event in DANGEROUS and (event != "pickle.find_class" or given[1] == "exec"):
        happened.append((event, *given))


sys.addaudithook(watch)


def params(cases: dict[str, Case], quick=()):
    return [
        pytest.param(cases[name], id=name, marks=() if name in quick else pytest.mark.slow)
        for name in cases
    ]


@pytest.fixture
def bait(tmp_path, monkeypatch):
    """Nobody takes it; and whoever is asked whether code may run says yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    monkeypatch.syspath_prepend(str(tmp_path / "model"))
    laid = Bait(tmp_path)
    happened.clear()
    yield laid
    assert not laid.taken()
    assert happened == []
    laid.socket.close()


def checked_and_loaded(verb, recipe):
    verb(recipe=recipe)
    load_base_model(pin_revision(find_base(recipe["base_model"])), Recipe(**recipe), "float32")


@pytest.mark.parametrize("case", params(CASES, QUICK))
def test_a_malicious_base_model_runs_no_code_and_connects_to_nothing(case, bait, tmp_path, write):
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    case.make(folder, bait)
    recipe = {"base_model": str(folder), "quantization": "none"}
    rows = str(write("rows.json", ROWS))
    if case.words is None:
        assert (
            operations.check(rows, recipe=recipe)["to_train"]
            + operations.check(rows, recipe=recipe)["held_out"]
            == 2
        )
        model = load_base_model(pin_revision(find_base(str(folder))), Recipe(**recipe), "float32")
        assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False).shape == (
            1,
            4,
        )
        return
    for verb in (
        functools.partial(operations.check, rows),
        functools.partial(operations.make_run, str(tmp_path / "run"), rows),
    ):
        with pytest.raises(UserError) as refusal:
            checked_and_loaded(verb, recipe)
        assert case.words in str(refusal.value)
        assert len(str(refusal.value)) < 1_000


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    ).save_pretrained(folder)
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
    for given in (str(folder), shutil.make_archive(str(tmp_path / "packed"), "zip", folder)):
        if case.words is None:
            run = operations.import_adapter(
                str(tmp_path / given[-3:]), given, rows, {"quantization": "none"}
            )["run"]
            assert operations.compare(run, ["a"])["fairness"]["fair"]
            continue
        with pytest.raises(UserError) as refusal:
            operations.import_adapter(str(tmp_path / "run"), given, rows)
        assert case.words in str(refusal.value)
        assert not (tmp_path / "run").exists()


def on_the_hub(case, bait, tmp_path):
    """The files of a malicious model as a repository holds them."""
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
    the_hub.add_repository(
        OTHER,
        {
            "code.py": bait.code.encode(),
            "config.json": json.dumps({"model_type": "llama"}).encode(),
        },
    )
    the_hub.requests.clear()
    rows, recipe = (
        str(write("rows.json", ROWS)),
        {"base_model": repo, "quantization": "none", "max_steps": 1},
    )
    happened.clear()  # this process is no client of it
    if case.words is None:
        ask("dry_run", data=rows, recipe=recipe)
    else:
        with pytest.raises(UserError, match=case.words):
            ask("dry_run", data=rows, recipe=recipe)
    assert the_hub.requests
    assert not [request.path for request in the_hub.requests if OTHER in request.path]
    assert not [
        request.path for request in the_hub.requests if request.path.endswith((".py", ".bin"))
    ]


def test_there_are_more_than_forty():
    assert len(CASES) + len(ADAPTERS) >= 40
    assert set(CASES) > QUICK
