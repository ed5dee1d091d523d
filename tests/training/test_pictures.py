"""Models with a vision tower learn from rows with pictures, resume exactly, and are exported."""

import json
import re
import shutil
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from peft_space import operations
from peft_space.data.batches import collator_of
from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.tokenize import tokenize
from peft_space.errors import UserError
from peft_space.models.loading import load_base_model, new_adapter, tokenizer_of
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe, TaskSpec
from peft_space.runs.archive import pack
from peft_space.runs.events import Finished, Paused, steps_of
from peft_space.runs.run import Run
from peft_space.training.prepare import make_run
from peft_space.training.train import TrainOptions, train
from tests.fixtures.pictures import COLORS, captioned, chats, picture
from tests.fixtures.vision_models import MAKERS

TASK = TaskSpec("image-text-to-text")
SHORT = {"quantization": "none", "max_steps": 3, "batch_size": 4, "max_length": 256}


def go(run, deadline=None):
    with run.lock():
        return train(run, TrainOptions(deadline=deadline))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("Gemma 3", marks=pytest.mark.slow),
        "Qwen2.5-VL",
        pytest.param("Idefics3", marks=pytest.mark.slow),
        pytest.param("SmolVLM", marks=pytest.mark.slow),
    ],
)
def base(request, tmp_path_factory):
    """The folder of a tiny model that reads pictures."""
    return MAKERS[request.param](tmp_path_factory.mktemp("vision") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return captioned(tmp_path_factory.mktemp("data") / "rows.zip", size=(50, 30))


@pytest.fixture(scope="module")
def trained(base, data, tmp_path_factory):
    """A short training. Not to be changed."""
    run = make_run(tmp_path_factory.mktemp("run") / "run", data, Recipe(base_model=base, **SHORT))
    assert isinstance(go(run), Finished)
    return run


def first_batch(run, tokenizer):
    rows = load_run_data(run).train
    tokens = tokenize(tokenizer, rows, 256, task=TASK.task)
    return collator_of(TASK, tokenizer)([tokens[0], tokens[1]])


def test_only_the_language_model_gets_an_adapter(trained):
    weights = load_file(trained.adapter / "adapter_model.safetensors")
    assert weights
    towers = ("vision", "visual", "projector", "connector", "merger")
    assert not [name for name in weights if any(tower in name for tower in towers)]
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)


def test_the_loss_is_that_of_the_model_itself_and_depends_on_the_picture(trained, base):
    found = find_base(base)
    model = load_base_model(found, trained.recipe, "float32", TASK).eval()
    batch = first_batch(trained, tokenizer_of(trained, found, TASK.task))
    from peft_space.models.label_scorer import score_labels_only

    with torch.no_grad():
        own = model(**batch).loss
        adapted = new_adapter(model, trained.recipe, found, TASK).eval()
        scorer = score_labels_only(adapted)
        ours = adapted(**batch).loss
        changed = adapted(**{**batch, "pixel_values": batch["pixel_values"].flip(-1) + 1}).loss
    assert scorer.computes_only_labeled
    assert ours == pytest.approx(own.item(), abs=1e-5)
    assert ours != pytest.approx(changed.item(), abs=1e-6)


def test_a_training_that_pauses_after_each_step_ends_with_the_same_bytes(trained, base, data,
                                                                         tmp_path):  # fmt: skip
    run = make_run(tmp_path / "run", data, trained.recipe)
    outcomes = [go(run, deadline=time.time()) for _ in range(2)]
    assert all(isinstance(outcome, Paused) for outcome in outcomes)
    assert isinstance(go(run), Finished)
    name = "adapter_model.safetensors"
    assert (run.adapter / name).read_bytes() == (trained.adapter / name).read_bytes()
    losses = [[step.loss for step in steps_of(one.history())] for one in (run, trained)]
    assert losses[0] == losses[1]


def test_a_tower_without_an_adapter_keeps_nothing_for_gradients(base, data, tmp_path, monkeypatch):
    recipe = Recipe(base_model=base, gradient_checkpointing="on", **SHORT | {"max_steps": 1})
    run = make_run(tmp_path / "run", data, recipe)
    with_gradients = []

    def watch(module, inputs, output):
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        if module.training and torch.is_grad_enabled():
            with_gradients.append(tensor.requires_grad)

    def adapter_with_watch(*args, **kwargs):
        model = new_adapter(*args, **kwargs)
        for name, module in model.named_modules():
            if re.fullmatch(r".*(visual|vision_tower|vision_model)", name):
                module.register_forward_hook(watch)
        return model

    monkeypatch.setattr("peft_space.training.train.new_adapter", adapter_with_watch)
    assert isinstance(go(run), Finished)
    assert with_gradients
    assert not any(with_gradients)


def test_both_sides_answer_a_new_picture_and_the_check_covers_it(trained, tmp_path):
    (tmp_path / "new.png").write_bytes(picture("cyan", (40, 25)))
    compared = operations.compare(
        str(trained.directory),
        ["What does the picture show?"],
        pictures=[str(tmp_path / "new.png")],
        sampling={"max_new_tokens": 3},
    )
    assert compared["fairness"]["fair"]
    assert compared["fairness"]["num_with_pictures"] == 1
    with pytest.raises(UserError) as refused:
        operations.compare(
            str(trained.directory), ["a", "b"], pictures=[str(tmp_path / "new.png")] * 3
        )
    assert refused.value.code == "evaluation.unusable_picture"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as refused:
        operations.compare(str(trained.directory), ["a"], pictures=[str(tmp_path / "broken.png")])
    assert refused.value.code == "evaluation.unusable_picture"


def test_held_out_rows_are_scored_with_their_pictures(trained):
    scores = operations.evaluate(str(trained.directory))
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    [sample] = scores["samples"]
    assert trained.path("data", "pictures", sample["pictures"][0]).is_file()


def test_exports_are_proven_on_rows_with_pictures_and_load_elsewhere(trained, base, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    run = str(trained.directory)
    adapter = operations.export(run, str(tmp_path / "adapter"), {"target": "adapter"})
    assert adapter["proof"]["passed"]
    merged = operations.export(
        run, str(tmp_path / "merged"), {"target": "merged", "dtype": "float32"}
    )
    assert merged["proof"]["passed"]
    found = find_base(base)
    tokenizer = tokenizer_of(trained, found, TASK.task)
    batch = first_batch(trained, tokenizer)
    batch.pop("labels")
    load = AutoModelForImageTextToText.from_pretrained
    with torch.no_grad():
        plain = PeftModel.from_pretrained(load(base), tmp_path / "adapter").eval()
        ours = load_base_model(found, trained.recipe, "float32", TASK)
        ours = PeftModel.from_pretrained(ours, trained.adapter).eval()
        expected = ours(**batch).logits
        assert torch.equal(plain(**batch).logits, expected)
        whole = load(tmp_path / "merged").eval()
        assert (whole(**batch).logits - expected).abs().max() < 1e-5
    for folder in ("adapter", "merged"):
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert {"processor_config.json", "preprocessor_config.json"} & names
        card = (tmp_path / folder / "README.md").read_text()
        assert "AutoProcessor" in card
        assert "vllm serve" in card
    with pytest.raises(UserError) as refused:
        operations.export(run, str(tmp_path / "gguf"), {"target": "gguf"})
    assert refused.value.code == "export.gguf_task"


def test_the_projector_is_trained_in_full_if_the_recipe_says_so(base, data, tmp_path):
    recipe = Recipe(base_model=base, train_projector=True, **SHORT | {"max_steps": 2})
    run = make_run(tmp_path / "run", data, recipe)
    assert isinstance(go(run), Finished)
    weights = load_file(run.adapter / "adapter_model.safetensors")
    parts = ("projector", "connector", "merger")
    assert [name for name in weights if any(part in name for part in parts)]
    merged = operations.export(
        str(run.directory), str(tmp_path / "merged"), {"target": "merged", "dtype": "float32"}
    )
    assert merged["proof"]["passed"]


def test_texts_train_a_model_that_reads_pictures(base, tmp_path):
    run = make_run(tmp_path / "run", "demo", Recipe(base_model=base, **SHORT))
    assert isinstance(go(run), Finished)
    assert not run.path("data", "pictures").exists()


def test_rows_with_and_without_pictures_are_trained_together(base, tmp_path):
    contents = [
        ("Which color?", color, [picture(color)] * (number % 3))
        for number, color in enumerate(COLORS)
    ]
    rows = chats(tmp_path / "rows.jsonl", contents)
    run = make_run(tmp_path / "run", rows, Recipe(base_model=base, **SHORT))
    assert isinstance(go(run), Finished)
    assert operations.evaluate(str(run.directory))["num_rows"] == 1


def test_a_model_of_texts_refuses_rows_with_pictures(data):
    with pytest.raises(UserError) as refused:
        operations.check(data, {"base_model": "demo"})
    assert refused.value.code == "models.reads_no_pictures"


def test_a_run_without_its_source_file_has_all_it_needs(trained, tmp_path):
    moved = Run(shutil.copytree(trained.directory, tmp_path / "moved"))
    shown = load_run_data(moved).train[0].messages[0]["images"]
    assert all(str(moved.directory) in path for path in shown)
    with Image.open(shown[0]) as image:
        assert image.size == (50, 30)
    assert json.loads(moved.path("data", "task.json").read_text())["task"] == TASK.task


def test_an_archive_of_a_run_contains_its_pictures(trained):
    packed = pack(trained)
    names = {path.name for path in trained.path("data", "pictures").iterdir()}
    assert {f"data/pictures/{name}" for name in names} <= set(packed)
    assert len(names) == len(COLORS)
