"""Every kind of model of transformers trains, reloads and merges, or is refused in words."""

import json
import multiprocessing
import os
import random
import re
import textwrap
import traceback
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError

from peft_space import operations
from peft_space.errors import UserError
from peft_space.models.loading import base_of, load_base_model, task_spec_for
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from tests.census.tiny_kinds import KINDS, build, trained_task

_SECONDS = 240
"""For a kind, on a busy machine; most take five."""
_RECIPE = {
    "quantization": "none", "max_steps": 2, "batch_size": 2, "max_length": 64, "eval_split": 0.0,
}  # fmt: skip
_WORDS = "red green blue apple pear plum cat dog house tree".split()
NOT_BUILT = {
    "dots3_note": "sizes of its parts depend on each other",
    "gemma3n": "its vision tower needs timm",
    "gemma4_assistant": "reads another model's states",
    "gemma4_unified_assistant": "reads another model's states",
    "layoutlmv2": "needs detectron2",
    "musicgen": "writes sound",
    "musicgen_melody": "writes sound",
    "nemo_speechlm": "sizes of its parts depend on each other",
    "perceiver": "too large",
}
"""Kinds that have no tiny model here."""
STILL = {
    "blt": ("patcher", "splits the text into patches without a gradient"),
    "deepseek_v4": (
        "compressor",
        "reads what lies farther back than these rows; its indexer chooses without a gradient",
    ),
    "doge": ("dt_proj", "multiplied by the parameter A, which is zero in a new model"),
    "encoder-decoder": ("encoder", "this decoder has no attention to its encoder"),
    "gemma3n_text": (
        "altup.correction_coefs|per_layer",
        "correct_output_scale is zero in a new model; of correction_coefs training reads the "
        "weight past the adapter",
    ),
    "hunyuan_v1_moe": ("gate.wg", "this tiny model has one expert, so its share is always 1"),
    "led": ("global", "no token of a source has attention to the whole text"),
    "longformer": (
        "attention.self",
        "in a classifier's last block only the first token counts, which uses the global layers; "
        "a tagger has no such token",
    ),
    "mra": ("attention", "its attention gives zeros without its CUDA kernel"),
    "xlstm": ("ffn", "gated by a parameter that is zero in a new model"),
    "zaya": ("qkv_proj", "multiplied by the parameter temp, which is zero in a new model"),
}
"""Layers that these tiny models do not move in two steps, by a pattern of their names, and why."""


def _rows(task):
    generator = random.Random(0)

    def text(length):
        return " ".join(generator.choice(_WORDS) for _ in range(length))

    if task == "sequence-classification":
        return [{"text": text(5), "label": "ab"[number % 2]} for number in range(12)]
    if task == "token-classification":
        rows = [text(5).split() for _ in range(12)]
        return [
            {"tokens": row, "tags": ["C" if word in _WORDS[:3] else "O" for word in row]}
            for row in rows
        ]
    return [{"prompt": f"{n}. Say it: {text(4)}", "completion": text(3)} for n in range(12)]


def _through_the_app(kind, task, folder):
    """What becomes of a kind, and the LoRA layers that did not move."""
    import logging

    logging.disable(logging.WARNING)
    try:
        trained = trained_task(kind, task)
    except StrictDataclassClassValidationError as error:  # its own default config is not valid
        return {"outcome": "not built", "why": str(error)}
    if failures := build(kind, trained, folder / "base"):
        return {"outcome": "not built", "why": failures}
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in _rows(trained)))
    recipe = Recipe(base_model=str(folder / "base"), **_RECIPE)
    try:
        run = make_run(folder / "run", str(rows), recipe)
        with run.lock():
            train(run)
    except UserError as error:
        why = " ".join(str(error).replace(str(folder / "base"), "the model").split())
        return {"outcome": "refused", "code": error.code, "why": why}
    still = _still_layers(run, recipe)
    merged = operations.export(
        str(run.directory), str(folder / "merged"), {"target": "merged", "dtype": "float32"}
    )
    return {"outcome": "trained", "still": still, "merged": merged["proof"]["passed"]}


def _still_layers(run, recipe):
    """Layers of the reloaded adapter that are as they were before the training."""
    from peft import PeftModel

    base, _ = base_of(run)
    model = load_base_model(find_base(base.location), recipe, "float32", task_spec_for(run))
    adapted = PeftModel.from_pretrained(model, run.adapter)
    return [
        name.removeprefix("base_model.model.").partition(".lora_B")[0]
        for name, value in adapted.named_parameters()
        if "lora_B" in name and not value.any()
    ]


def _in_a_child(kind, task, folder):
    """The result of `_through_the_app` in a process that may be ended."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work():
        try:
            sender.send(_through_the_app(kind, task, folder))
        except Exception:  # noqa: BLE001 - the parent reports it
            sender.send({"outcome": "error", "why": traceback.format_exc()[-2000:]})
        os._exit(0)

    child = context.Process(target=work)
    child.start()
    result = receiver.recv() if receiver.poll(_SECONDS) else {"outcome": "timed out", "why": ""}
    child.kill()
    child.join()
    return result


@pytest.fixture(scope="module")
def results():
    """Outcomes by task and kind. All of them together are recorded in docs/models.md."""
    found = {}
    yield found
    path = os.environ.get("PEFT_SPACE_RECORD_MODELS")
    if path and len(found) == sum(map(len, KINDS.values())):
        Path(path).write_text(_report(found), encoding="utf-8")


CASES = [(task, kind) for task, kinds in KINDS.items() for kind in kinds]


@pytest.mark.parametrize(("task", "kind"), CASES, ids=["-".join(case) for case in CASES])
@pytest.mark.sample(1)
def test_a_kind_trains_reloads_and_merges_or_is_refused(task, kind, tmp_path, results):
    result = _in_a_child(kind, task, tmp_path)
    results[task, kind] = result
    outcome = result["outcome"]
    if outcome == "not built":
        assert kind in NOT_BUILT, result["why"]
        return
    assert outcome in ("trained", "refused"), result["why"]
    if outcome == "trained":
        expected = STILL.get(kind, ("nothing", ""))[0]
        assert [name for name in result["still"] if not re.search(expected, name)] == []
        assert result["merged"]


_TITLES = {"trained": "trained", "refused": "refused with a reason", "not built": "no tiny model"}


def _report(found):
    lines = [
        "# Base models",
        "",
        "Recorded by `make verify`. For every kind of model that transformers lists for a task of "
        "this app,",
        "the test builds a tiny random model. It trains two steps, loads the adapter again, and "
        "merges it.",
        "",
        f"{date.today()}, transformers {version('transformers')}, peft {version('peft')}, "
        f"torch {version('torch')}, on a CPU.",
        "",
        f"| task | kinds | {' | '.join(_TITLES.values())} | failed |",
        f"|---|---|{'---|' * len(_TITLES)}---|",
    ]
    for task, kinds in KINDS.items():
        counts = Counter(found[task, kind]["outcome"] for kind in kinds)
        cells = [counts.pop(outcome, 0) for outcome in _TITLES]
        lines.append(f"| {task} | {' | '.join(map(str, [len(kinds), *cells, counts.total()]))} |")
    for task, kinds in KINDS.items():
        lines += ["", f"## {task}", ""]
        for outcome, title in _TITLES.items():
            names = sorted(kind for kind in kinds if found[task, kind]["outcome"] == outcome)
            if names:
                text = f"**{title.capitalize()} ({len(names)}):** {', '.join(names)}."
                lines += [*textwrap.wrap(text, 99, break_on_hyphens=False), ""]
        refused = [kind for kind in kinds if found[task, kind]["outcome"] == "refused"]
        if refused:
            lines += ["| refused | code | what the user reads |", "|---|---|---|"]
            rows = [(kind, found[task, kind]) for kind in sorted(refused)]
            lines += [
                f"| {kind} | `{row['code']}` | {row['why'].replace('|', '/')} |"
                for kind, row in rows
            ]
    lines += ["", "## Layers that these tiny models did not move", "", "| kind | layers | why |"]
    lines += ["|---|---|---|", *(f"| {k} | {part} | {why} |" for k, (part, why) in STILL.items())]
    lines += ["", "## Kinds without a tiny model", "", "| kind | why |", "|---|---|"]
    lines += [f"| {k} | {why} |" for k, why in NOT_BUILT.items()]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"
