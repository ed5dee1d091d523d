"""Each task is learnt for real, far beyond chance, from batches that are what the preview shows, and its adapter comes back the same."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file

from peft_space import operations
from peft_space.data.arrow_store import MASKED
from peft_space.errors import UserError
from peft_space.evaluation.results import read_scores
from peft_space.models.loading import load_adapted
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from peft_space.runs.status import evaluations_of, steps_of
from tests.fixtures import tiny_models
from tests.training.test_train import see_batches

COLOURS = {"red": "rot", "green": "grün", "blue": "blau", "white": "weiß"}
THINGS = ["lamp", "kettle", "chair", "mug", "shelf", "clock"]
PLACES = ["Oslo", "Rome", "Lima"]
WORDS = {
    *COLOURS,
    *COLOURS.values(),
    *THINGS,
    *PLACES,
    "the",
    "is",
    "in",
    "a",
    "I",
    "bought",
    "and",
    "it",
    "ist",
}
OFTEN = Recipe(
    quantization="none",
    lora_rank=8,
    lora_dropout=0.0,
    learning_rate=5e-3,
    batch_size=8,
    num_epochs=12,
    eval_split=0.2,
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_models.bert(tmp_path_factory.mktemp("bert"), WORDS)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return tiny_models.t5(tmp_path_factory.mktemp("t5"), WORDS)


def labelled():
    return [
        {"text": f"I bought the {colour} {thing} in {place}", "label": colour}
        for colour, thing, place in triples()
    ]


def pairs():
    return [
        {
            "sentence1": f"a {one} {thing}",
            "sentence2": f"the {thing} is {two}",
            "label": "same" if one == two else "other",
        }
        for one, two, thing in itertools.product(COLOURS, COLOURS, THINGS)
        if one == two or THINGS.index(thing) % 3 == 0
    ]


def tagged():
    return [
        {
            "tokens": ["a", colour, thing, "in", place],
            "ner_tags": ["O", "B-COLOUR", "O", "O", "B-PLACE"],
        }
        for colour, thing, place in triples()
    ]


def translated():
    return [
        {"source": f"the {thing} is {colour}", "target": f"{thing} ist {german}"}
        for colour, german in COLOURS.items()
        for thing in THINGS
    ]


def preferred():
    return [
        {
            "prompt": f"Tell me about the {colour} {thing}.",
            "chosen": f"The {thing} is {colour}.",
            "rejected": f"I like {place}.",
        }
        for colour, thing, place in triples()
    ]


def rated():
    return [
        {
            "prompt": f"Tell me about the {colour} {thing}.",
            "completion": f"The {thing} is {colour}." if good else f"I like {place}.",
            "label": good,
        }
        for colour, thing, place in triples()
        for good in (True, False)
    ]


def triples():
    return itertools.product(COLOURS, THINGS, PLACES)


def trained(rows, recipe, tmp_path, write):
    """(run, result of evaluate) after the whole journey by the verbs."""
    run = operations.make_run(
        str(tmp_path / "run"),
        str(write("rows.json", rows)),
        recipe.model_dump(exclude_defaults=True),
    )["run"]
    assert operations.train(run)["event"] == "Finished"
    return Run(run), operations.evaluate(run)


def test_labels_are_learnt_by_an_encoder_whose_head_is_kept_and_comes_back(bert, tmp_path, write):
    run, scores = trained(
        labelled(), OFTEN.model_copy(update={"base_model": bert}), tmp_path, write
    )
    assert scores["base"]["accuracy"] < 0.6
    assert scores["adapter"]["accuracy"] > 0.9
    assert evaluations_of(run.history())[-1].metrics["accuracy"] == pytest.approx(
        scores["adapter"]["accuracy"]
    )
    assert scores["majority"]["label"] in COLOURS
    assert scores["majority"]["share"] < scores["adapter"]["accuracy"]
    table = scores["confusion"]["adapter"]
    assert sum(map(sum, table)) == scores["num_rows"]
    assert sum(table[at][at] for at in range(4)) / scores["num_rows"] == pytest.approx(
        scores["adapter"]["accuracy"]
    )
    assert scores["intervals"]["difference"]["accuracy"][0] > 0
    assert scores["general"] is None, "it answers no questions"
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert "base_model.model.classifier.weight" in weights
    assert json.loads((run.adapter / "adapter_config.json").read_text())["modules_to_save"] == [
        "bert.pooler.dense",
        "classifier",
    ], "the base has no pooler"
    [answer] = operations.compare(str(run.directory), ["I bought the green mug in Rome"])["answers"]
    assert answer["adapter"].startswith("green: ")
    assert list(answer["chances"]["base"]) == sorted(COLOURS)
    assert sum(answer["chances"]["adapter"].values()) == pytest.approx(1)
    assert plain_peft_gives_the_same_logits(run, bert, torch.tensor([[2, 10, 11, 12, 3]]))
    card = (run.adapter / "README.md").read_text()
    assert "base = AutoModelForSequenceClassification.from_pretrained(" in card
    assert "labels = ['blue', 'green', 'red', 'white']" in card
    assert "pipeline_tag: text-classification" in card


def plain_peft_gives_the_same_logits(run, base, ids):
    """What somebody gets who follows the card, whose head is drawn anew, against what the app shows."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(99)
    theirs = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(COLOURS)),
        run.adapter,
    ).eval()
    with torch.inference_mode():
        return torch.allclose(
            theirs(input_ids=ids).logits, load_adapted(run).model(input_ids=ids).logits, atol=1e-5
        )


def test_two_texts_are_told_apart_by_their_types(bert, tmp_path, write, monkeypatch):
    seen = []
    see_batches(monkeypatch, seen)
    run = operations.make_run(
        str(tmp_path / "run"),
        str(write("rows.json", pairs())),
        {"base_model": bert, "quantization": "none", "max_steps": 2},
    )["run"]
    operations.train(run)
    ids, types = seen[0]["input_ids"][0].tolist(), seen[0]["token_type_ids"][0].tolist()
    assert ids.index(3) + 1 == types.index(1), "the second text begins after the first [SEP]"


def test_tags_are_learnt_by_an_encoder(bert, tmp_path, write):
    run, scores = trained(
        tagged(), OFTEN.model_copy(update={"base_model": bert, "num_epochs": 6}), tmp_path, write
    )
    assert scores["adapter"]["macro_f1"] > 0.95 > scores["base"]["macro_f1"] + 0.3
    [answer] = operations.compare(str(run.directory), ["a blue clock in Oslo"])["answers"]
    assert answer["adapter"] == "a/O blue/B-COLOUR clock/O in/O Oslo/B-PLACE"
    assert answer["tags"]["adapter"] == [
        ("a", "O"),
        ("blue", "B-COLOUR"),
        ("clock", "O"),
        ("in", "O"),
        ("Oslo", "B-PLACE"),
    ]
    assert scores["adapter"]["entity_f1"] > 0.9 > scores["base"]["entity_f1"] + 0.3
    assert scores["majority"]["label"] == "O"


@pytest.mark.slow
def test_labels_are_learnt_by_a_decoder_in_4_bit(tmp_path, write):
    recipe = Recipe(lora_rank=8, num_epochs=6, eval_split=0.2, batch_size=4)
    run, scores = trained(labelled(), recipe, tmp_path, write)
    assert scores["adapter"]["accuracy"] > 0.8 > scores["base"]["accuracy"]
    assert "base_model.model.score.weight" in load_file(run.adapter / "adapter_model.safetensors")


def test_one_text_is_written_from_another(t5, tmp_path, write):
    recipe = OFTEN.model_copy(
        update={
            "base_model": t5,
            "num_epochs": 60,
            "lora_rank": 32,
            "learning_rate": 1e-2,
            "eval_split": 0.1,
        }
    )
    run, scores = trained(translated(), recipe, tmp_path, write)
    assert scores["base"]["exact_match"] == 0
    assert scores["adapter"]["chrf"] > scores["base"]["chrf"]
    assert scores["adapter"]["loss"] < 0.2 * scores["base"]["loss"]
    answer = operations.compare(str(run.directory), ["the lamp is red"])["answers"][0]
    assert answer["adapter"].endswith("ist rot"), (
        "the colour is translated; which thing it is, so small a model mixes up on some machines"
    )
    assert "ist rot" not in answer["base"]


@pytest.mark.parametrize(("rows", "task"), [(preferred(), "dpo"), (rated(), "kto")])
def test_what_is_better_is_learnt_with_the_base_as_reference(
    rows, task, tmp_path, write, monkeypatch
):
    adapters = see_adapters(monkeypatch)
    recipe = Recipe(
        quantization="none", lora_rank=8, learning_rate=1e-3, num_epochs=2, batch_size=8
    )
    run, scores = trained(rows, recipe, tmp_path, write)
    assert adapters == {("default",)}, (
        "there is no copy of the adapter in memory: the reference is the base"
    )
    happened = run.history()
    margins = [
        step.metrics["reward margin"]
        for step in steps_of(happened)
        if "reward margin" in step.metrics
    ]
    assert abs(margins[0]) < 0.05, "the adapter begins as the base"
    assert sum(margins[-3:]) / 3 > 0.3
    assert scores["base"]["margin"] == 0
    assert scores["adapter"]["margin"] > 0.3
    assert scores["intervals"]["adapter"]["margin"][0] > 0
    assert scores["general"]["agreement"] < 1
    assert sorted(path.name for path in run.adapter.iterdir() if path.is_dir()) == [], (
        "no copy of the adapter is kept"
    )
    if task == "dpo":
        assert scores["adapter"]["preferred"] >= scores["base"]["preferred"]


def see_adapters(monkeypatch):
    """Which adapters the model has at each step of a training."""
    from transformers import Trainer

    seen, step = set(), Trainer.training_step

    def spying(self, model, *args, **kwargs):
        seen.add(tuple(model.peft_config))
        return step(self, model, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", spying)
    return seen


TASKS = {
    "sequence-classification": (labelled, "bert"),
    "token-classification": (tagged, "bert"),
    "seq2seq-lm": (translated, "t5"),
    "dpo": (preferred, None),
    "kto": (rated, None),
    "causal-lm": (translated, None),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_preview_is_the_batch(task, tmp_path, write, monkeypatch, request):
    make_rows, model = TASKS[task]
    recipe = {
        "quantization": "none",
        "max_steps": 1,
        "batch_size": 200,
        "eval_split": 0.0,
        "lora_rank": 2,
    }
    recipe |= {"base_model": request.getfixturevalue(model)} if model else {}
    path = str(write("rows.json", make_rows()))
    checked = operations.check(path, recipe=recipe, rows_shown=200)
    assert checked["task"] == task
    seen = []
    see_batches(monkeypatch, seen)
    operations.train(operations.make_run(str(tmp_path / "run"), path, recipe)["run"])
    assert sorted(shown_in(checked["examples"], task)) == sorted(
        trained_in(seen[0], task, Run(tmp_path / "run"))
    )


def shown_in(examples, task):
    """Of each row of the preview how many tokens it has, which are trained, and what else is learnt."""
    for one in examples:
        fate = [trained for _, trained in one["tokens"]]
        match task:
            case "sequence-classification":
                yield len(fate), one["label"]
            case "token-classification":
                yield len(fate), [tag for _, tag in one["tags"]]
            case "seq2seq-lm":
                yield len(fate), [trained for _, trained in one["target"]]
            case "dpo":
                yield fate, [trained for _, trained in one["rejected"]]
            case "kto":
                yield fate, one["label"]
            case "causal-lm":
                yield (fate,)


def trained_in(batch, task, run):
    """The same of each row of a batch."""
    labels = json.loads(run.path("data", "goal.json").read_text())["labels"]
    lengths = batch["attention_mask"].sum(1).tolist()
    marks = batch.get("completion_mask", batch.get("labels")).tolist()
    rows = len(lengths) // 2 if task == "dpo" else len(lengths)
    for at in range(rows):
        match task:
            case "sequence-classification":
                yield lengths[at], labels[marks[at]]
            case "token-classification":
                yield (
                    lengths[at],
                    ["" if mark == MASKED else labels[mark] for mark in marks[at][: lengths[at]]],
                )
            case "seq2seq-lm":
                yield lengths[at], [mark != MASKED for mark in marks[at] if mark != MASKED]
            case "dpo":
                yield tuple(
                    [mark == 1 for mark in marks[place][: lengths[place]]]
                    for place in (at, at + rows)
                )
            case "kto":
                yield (
                    [mark == 1 for mark in marks[at][: lengths[at]]],
                    "good" if batch["label"][at] else "not good",
                )
            case "causal-lm":
                yield ([mark != MASKED for mark in marks[at][: lengths[at]]],)


def test_kto_gives_each_prompt_the_answer_of_the_row_before(
    tmp_path, write, monkeypatch, tokenizer
):
    seen = []
    see_batches(monkeypatch, seen)
    recipe = {"max_steps": 1, "batch_size": 4, "eval_split": 0.0, "lora_rank": 2}
    operations.train(
        operations.make_run(str(tmp_path / "run"), str(write("rows.json", rated())), recipe)["run"]
    )
    batch = seen[0]

    def answers(prefix):
        ids, masks = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"]
        return [row[mask == 1].tolist() for row, mask in zip(ids, masks, strict=True)]

    assert answers("KL_") == [answers("")[-1], *answers("")[:-1]]


@pytest.mark.parametrize(
    ("rows", "recipe", "said"),
    [
        (
            labelled,
            {"task": "causal-lm"},
            "Rows read as labelled text do not show what causal-lm learns. Set the task to sequence-classification",
        ),
        (
            translated,
            {"base_model": "bert"},
            "Models of the kind 'bert' do not continue text, so they cannot learn to answer. They can learn",
        ),
        (lambda: [row | {"label": "same"} for row in labelled()], {}, "rows.json has one label"),
        (rated, {"batch_size": 1}, "batch_size has to be 2"),
        (preferred, {"method": "pissa"}, "PiSSA changes the base"),
        (preferred, {"lora_rank": 128}, "high_rank_reason"),
    ],
)
def test_what_does_not_go_together_is_refused(rows, recipe, said, tmp_path, write, bert):
    recipe = recipe | ({"base_model": bert} if recipe.get("base_model") else {})
    with pytest.raises(UserError, match=said):
        operations.make_run(str(tmp_path / "run"), str(write("rows.json", rows())), recipe)
    assert not (tmp_path / "run").exists()


def test_a_head_cannot_be_deselected_and_a_wish_is_added_to_it(bert):
    from peft_space.models.architecture import linear_layers, modules_to_save
    from peft_space.models.resolve import find_base

    layers = linear_layers(find_base(bert).config, "sequence-classification")
    assert modules_to_save(Recipe(modules_to_save=[]), layers) == ["classifier"]
    assert modules_to_save(Recipe(modules_to_save=["pooler"]), layers) == ["classifier", "pooler"]


def test_the_scores_of_a_task_are_kept_in_its_run(bert, tmp_path, write):
    recipe = Recipe(base_model=bert, quantization="none", max_steps=1)
    run, found = trained(labelled(), recipe, tmp_path, write)
    assert read_scores(run).adapter.accuracy == found["adapter"]["accuracy"]
