"""Trainings with the arithmetic of a GPU, pretended on a CPU: each trains, scores and compares.

The base is loaded in bfloat16, computes under autocast and answers in bfloat16. PEFT sees
autocast on. Nothing falls back to float32.
"""

import json
import math

import pytest
import torch

from peft_space import hardware, operations
from peft_space.models import loading
from peft_space.recipe import Recipe
from peft_space.runs.events import evaluations_of, steps_of
from peft_space.runs.plan import read_plan
from peft_space.training import autotune
from peft_space.training import train as training
from peft_space.training.prepare import make_run
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import WORDS, labelled, preferred, rated, tagged, translated

_BASES = {
    "bert": lambda folder: tiny_models.bert(folder, WORDS),
    "deberta": lambda folder: tiny_models.deberta(folder, WORDS),
    "t5": lambda folder: tiny_models.t5(folder, WORDS),
    "llama": tiny_models.llama,
    "qwen2": tiny_models.qwen2,
}
_CASES = {
    "labels": ("bert", labelled, {}),
    "labels-of-deberta": ("deberta", labelled, {}),
    "labels-of-llama": ("llama", labelled, {"task": "sequence-classification"}),
    "tags-nf4": ("bert", tagged, {"quantization": "nf4"}),
    "translation": ("t5", translated, {}),
    "translation-nf4": ("t5", translated, {"quantization": "nf4"}),
    "answers": ("demo", None, {}),
    "answers-nf4": ("demo", None, {"quantization": "nf4"}),
    "answers-int8": ("demo", None, {"quantization": "int8"}),
    "checkpointing": ("demo", None, {"gradient_checkpointing": "on"}),
    "checkpointing-nf4": ("demo", None, {"quantization": "nf4", "gradient_checkpointing": "on"}),
    "biases": ("qwen2", None, {"lora_bias": "all"}),
    "biases-nf4": ("qwen2", None, {"lora_bias": "all", "quantization": "nf4"}),
    "head": ("demo", None, {"modules_to_save": ["lm_head"]}),
    "head-nf4": ("demo", None, {"modules_to_save": ["lm_head"], "quantization": "nf4"}),
    "embeddings": ("demo", None, {"modules_to_save": ["embed_tokens"]}),
    "dora": ("llama", None, {"method": "dora"}),
    "dora-nf4": ("llama", None, {"method": "dora", "quantization": "nf4"}),
    "pissa": ("llama", None, {"method": "pissa"}),
    "loftq": ("llama", None, {"method": "loftq", "quantization": "nf4"}),
    "dpo": ("llama", preferred, {}),
    "dpo-nf4": ("llama", preferred, {"quantization": "nf4", "gradient_checkpointing": "on"}),
    "kto-nf4": ("llama", rated, {"quantization": "nf4"}),
}
_SHORT = Recipe(
    quantization="none", max_steps=4, eval_steps=2, save_steps=4, batch_size=4, eval_split=0.2,
    max_length=64,
)  # fmt: skip


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Compute and answer in bfloat16 under autocast, and prepare models as on a GPU."""
    is_enabled, new_adapter = torch.is_autocast_enabled, training.new_adapter

    def adapter_as_on_a_gpu(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(hardware, "device", lambda: "cuda")
            patch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
            return new_adapter(*args, **kwargs)

    monkeypatch.setattr(training, "new_adapter", adapter_as_on_a_gpu)
    monkeypatch.setattr(training, "_load_dtype", lambda *_: "bfloat16")
    monkeypatch.setattr(training, "_train_with_dtype_fallback", training._train)
    monkeypatch.setattr(autotune, "frozen_dtype", lambda *_: "")
    monkeypatch.setattr(autotune, "choose_compute_dtype", lambda *_: ("bfloat16", "Pretended."))
    # PEFT asks for the device of a GPU, which is the one that has autocast here
    monkeypatch.setattr(
        torch, "is_autocast_enabled", lambda *device: is_enabled(*(device or ("cpu",)))
    )
    monkeypatch.setattr(loading, "inference_dtype", lambda *_: "bfloat16")
    monkeypatch.setattr(loading, "fits_in_memory", lambda _: False)


@pytest.mark.parametrize("name", _CASES)
@pytest.mark.sample(1)
def test_a_training_in_the_arithmetic_of_a_gpu_scores_and_compares(name, like_a_gpu, tmp_path):
    kind, rows, changes = _CASES[name]
    base = "demo" if kind == "demo" else str(_BASES[kind](tmp_path / kind))
    data = "demo"
    if rows is not None:
        data = str(tmp_path / "rows.json")
        (tmp_path / "rows.json").write_text(json.dumps(rows()))
    run = make_run(tmp_path / "run", data, _SHORT.model_copy(update={"base_model": base} | changes))
    with run.lock():
        training.train(run)
    losses = [step.loss for step in steps_of(run.history())]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert read_plan(run).compute_dtype == "bfloat16"

    found = operations.evaluate(str(run.directory))
    held_out = evaluations_of(run.history())[-1].loss
    scores, task = found["adapter"], read_plan(run).task
    assert math.isfinite(scores["loss"])
    if task == "dpo":  # its score is the loss of the better answers, and the margin that of both
        assert math.log1p(math.exp(-scores["margin"])) == pytest.approx(held_out, rel=0.1)
    elif task != "kto":
        assert scores["loss"] == pytest.approx(held_out, rel=0.05)
    compared = operations.compare(str(run.directory), ["the lamp is red"])
    assert compared["fairness"]["fair"]
