"""Labels of the rows are matched with the outputs of a base that is a classifier already."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peft_space.errors import UserError
from peft_space.models.label_order import keeps_head, labels_in_order
from peft_space.models.loading import load_base_model
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe, TaskSpec
from peft_space.runs.events import Notice
from peft_space.training.import_adapter import import_adapter
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import COLOURS, WORDS, labelled

TASK = "sequence-classification"
IDS = torch.tensor([[2, 10, 11, 12, 13, 3]])


def classifier(folder, names, kind="bert"):
    """A base with a head for labels of these names, in this order."""
    if kind == "bert":
        tiny_models.bert(folder, WORDS)
    else:
        tiny_models.qwen2(folder)
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(names), id2label=dict(enumerate(names))
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def loaded(folder, found, **recipe):
    """(labels in order, logits of the base as the app loads it)."""
    base, recipe = find_base(folder), Recipe(base_model=folder, quantization="none", **recipe)
    labels = labels_in_order(found, recipe, base.config, TASK)
    model = load_base_model(base, recipe, "float32", TaskSpec(TASK, labels)).eval()
    with torch.inference_mode():
        return labels, model(input_ids=IDS).logits[0]


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
@pytest.mark.parametrize(
    ("names", "found", "expected"),
    [
        (["warm", "cold"], ["cold", "warm"], ("warm", "cold")),
        (["Warm", "COLD"], ["cold", "warm"], ("warm", "cold")),
        (["LABEL_0", "LABEL_1"], ["1", "0"], ("0", "1")),
        (
            ["LABEL_0", "LABEL_1", "LABEL_2"],
            ["label_2", "LABEL_0"],
            ("LABEL_0", "LABEL_1", "label_2"),
        ),
        (["b", "c", "a"], ["a", "b"], ("b", "c", "a")),
        (["1 star", "2 stars"], ["2 stars", "1 star"], ("1 star", "2 stars")),
    ],
)
@pytest.mark.sample(1)
def test_outputs_with_the_names_of_the_labels_stay(kind, names, found, expected, tmp_path):
    folder = classifier(tmp_path, names, kind)
    with torch.inference_mode():
        own = AutoModelForSequenceClassification.from_pretrained(folder).eval()(input_ids=IDS)
    labels, logits = loaded(folder, found)
    assert labels == expected
    assert torch.equal(logits, own.logits[0])


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["warm", "cold"], ["red", "blue"]),
        (["warm", "cold"], ["warm", "red"]),
        (["LABEL_0", "LABEL_1"], ["cold", "warm"]),
        (["LABEL_0", "LABEL_1"], ["1", "2"]),
    ],
)
@pytest.mark.sample(1)
def test_a_head_for_other_labels_is_replaced_by_a_new_one(kind, names, found, tmp_path):
    folder = classifier(tmp_path, names, kind)
    with torch.inference_mode():
        own = AutoModelForSequenceClassification.from_pretrained(folder).eval()(input_ids=IDS)
    labels, logits = loaded(folder, found)
    assert labels == tuple(sorted(found))
    assert not torch.allclose(logits, own.logits[0], atol=1e-4)
    assert torch.equal(logits, loaded(folder, found)[1]), "the seed draws the same head again"


def test_a_recipe_says_which_output_is_which_label(tmp_path):
    folder = classifier(tmp_path, ["LABEL_0", "LABEL_1"])
    config = find_base(folder).config
    recipe = Recipe(labels=["warm", "cold"])
    assert labels_in_order(["cold", "warm"], recipe, config, TASK) == ("warm", "cold")
    assert keeps_head(("warm", "cold"), recipe, config, TASK)
    assert not keeps_head(("cold", "warm"), Recipe(), config, TASK)
    for wrong in (["warm"], ["warm", "warm"], ["warm", "hot"]):
        with pytest.raises(UserError) as error:
            labels_in_order(["cold", "warm"], Recipe(labels=wrong), config, TASK)
        assert error.value.code == "training.labels_differ"


def test_an_imported_adapter_says_which_order_was_taken(tmp_path, write):
    folder = tiny_models.bert(tmp_path / "base", WORDS)
    order = [*COLOURS]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=4)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["classifier", "pooler"]
    )
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    config_file = Path(tmp_path / "adapter" / "adapter_config.json")
    assert json.loads(config_file.read_text())["base_model_name_or_path"] == folder
    data = str(write("rows.json", labelled()))
    runs = {
        name: import_adapter(tmp_path / name, str(tmp_path / "adapter"), data, recipe)
        for name, recipe in (("silent", {}), ("ordered", {"labels": order}))
    }
    stored = {
        name: json.loads(run.path("data", "task.json").read_text())["labels"]
        for name, run in runs.items()
    }
    assert stored == {"silent": sorted(order), "ordered": order}
    notices = [event for event in runs["silent"].history() if isinstance(event, Notice)]
    assert ", ".join(sorted(order)) in notices[0].what
    assert not runs["ordered"].history()
