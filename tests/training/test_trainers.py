"""Each task is trained far beyond chance, from batches that equal the preview."""

import json
import math
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from peft_space import operations
from peft_space.data.arrow_store import MASKED
from peft_space.data.dataset import load_run_data
from peft_space.errors import UserError
from peft_space.evaluation.results import read_scores
from peft_space.models.loading import load_adapted
from peft_space.recipe import Recipe
from peft_space.runs.events import evaluations_of, steps_of
from peft_space.runs.run import Run
from peft_space.training.import_adapter import import_adapter
from peft_space.training.prepare import make_run
from peft_space.training.train import ModelCache, TrainOptions, train
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import (
    COLOURS,
    WORDS,
    labelled,
    pairs,
    preferred,
    rated,
    record_batches,
    rows_in,
    tagged,
    translated,
)

REPEATED = Recipe(
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


def trained(rows, recipe, tmp_path, write):
    """(run, result of evaluate) after preparing, training and evaluating."""
    run = operations.make_run(
        str(tmp_path / "run"),
        str(write("rows.json", rows)),
        recipe.model_dump(exclude_defaults=True),
    )["run"]
    assert operations.train(run)["event"] == "Finished"
    return Run(run), operations.evaluate(run)


@pytest.mark.slow
def test_an_encoder_learns_labels_and_its_head_is_saved_and_loaded(bert, tmp_path, write):
    run, scores = trained(
        labelled(), REPEATED.model_copy(update={"base_model": bert}), tmp_path, write
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
    assert scores["general"] is None, "a classifier does not generate text"
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
    """Return True if plain PEFT, used as the model card says, gives the logits of the app."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(99)
    plain = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(COLOURS)),
        run.adapter,
    ).eval()
    with torch.inference_mode():
        return torch.allclose(
            plain(input_ids=ids).logits, load_adapted(run).model(input_ids=ids).logits, atol=1e-5
        )


@pytest.mark.slow
def test_two_texts_have_different_token_types(bert, tmp_path, write, monkeypatch):
    batches = record_batches(monkeypatch)
    run = operations.make_run(
        str(tmp_path / "run"),
        str(write("rows.json", pairs())),
        {"base_model": bert, "quantization": "none", "max_steps": 2},
    )["run"]
    operations.train(run)
    ids, types = batches[0]["input_ids"][0].tolist(), batches[0]["token_type_ids"][0].tolist()
    assert ids.index(3) + 1 == types.index(1), "the second text begins after the first [SEP]"


@pytest.mark.slow
def test_an_encoder_learns_tags(bert, tmp_path, write):
    run, scores = trained(
        tagged(), REPEATED.model_copy(update={"base_model": bert, "num_epochs": 6}), tmp_path, write
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
def test_a_decoder_in_4_bit_learns_labels(tmp_path, write):
    recipe = Recipe(lora_rank=8, num_epochs=6, eval_split=0.2, batch_size=4)
    run, scores = trained(labelled(), recipe, tmp_path, write)
    assert scores["adapter"]["accuracy"] > 0.8 > scores["base"]["accuracy"]
    assert "base_model.model.score.weight" in load_file(run.adapter / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_seq2seq_model_learns_to_translate(t5, tmp_path, write):
    recipe = REPEATED.model_copy(
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
        "on some machines, so small a model translates the colour but confuses the things"
    )
    assert "ist rot" not in answer["base"]


@pytest.mark.parametrize(("rows", "task"), [(preferred(), "dpo"), (rated(), "kto")])
@pytest.mark.sample(1)
@pytest.mark.slow
def test_preferences_are_learned_with_the_base_model_as_reference(
    rows, task, tmp_path, write, monkeypatch
):
    adapters = record_adapters(monkeypatch)
    recipe = Recipe(
        quantization="none", lora_rank=8, learning_rate=1e-3, num_epochs=2, batch_size=8
    )
    run, scores = trained(rows, recipe, tmp_path, write)
    assert adapters == {("default",)}, (
        "there is no copy of the adapter in memory: the reference is the base model"
    )
    happened = run.history()
    margins = [
        step.metrics["reward margin"]
        for step in steps_of(happened)
        if "reward margin" in step.metrics
    ]
    assert abs(margins[0]) < 0.05, "the adapter starts as the base model"
    assert sum(margins[-3:]) / 3 > 0.3
    assert scores["base"]["margin"] == 0
    assert scores["adapter"]["margin"] > 0.3
    assert scores["intervals"]["adapter"]["margin"][0] > 0
    assert scores["general"]["agreement"] < 1
    assert sorted(path.name for path in run.adapter.iterdir() if path.is_dir()) == [], (
        "no copy of the adapter is saved"
    )
    if task == "dpo":
        assert scores["adapter"]["preferred"] >= scores["base"]["preferred"]


def record_adapters(monkeypatch):
    """Return a set that receives the names of the model's adapters at each step."""
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
@pytest.mark.sample(1)
def test_the_batch_equals_the_preview(task, tmp_path, write, monkeypatch, request):
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
    checked = operations.check(path, recipe=recipe, show=200)
    assert checked["task"] == task
    batches = record_batches(monkeypatch)
    operations.train(operations.make_run(str(tmp_path / "run"), path, recipe)["run"])
    assert sorted(previewed_rows(checked["examples"], task)) == sorted(
        rows_of_batch(batches[0], task, Run(tmp_path / "run"))
    )


def previewed_rows(examples, task):
    """For each row of the preview: its number of tokens, trained tokens, and label."""
    for row in examples:
        mask = [trained for _, trained in row["tokens"]]
        match task:
            case "sequence-classification":
                yield len(mask), row["label"]
            case "token-classification":
                yield len(mask), [tag for _, tag in row["tags"]]
            case "seq2seq-lm":
                yield len(mask), [trained for _, trained in row["target"]]
            case "dpo":
                yield mask, [trained for _, trained in row["rejected"]]
            case "kto":
                yield mask, row["label"]
            case "causal-lm":
                yield (mask,)


def rows_of_batch(batch, task, run):
    """For each row of a batch, what `previewed_rows` yields."""
    if task == "causal-lm":
        for _, row_labels in rows_in(batch):
            yield ([label != MASKED for label in row_labels],)
        return
    labels = json.loads(run.path("data", "task.json").read_text())["labels"]
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


@pytest.mark.slow
def test_kto_pairs_each_prompt_with_the_answer_of_the_previous_row(
    tmp_path, write, monkeypatch, tokenizer
):
    batches = record_batches(monkeypatch)
    recipe = {"max_steps": 1, "batch_size": 4, "eval_split": 0.0, "lora_rank": 2}
    operations.train(
        operations.make_run(str(tmp_path / "run"), str(write("rows.json", rated())), recipe)["run"]
    )
    batch = batches[0]

    def answers(prefix):
        ids, masks = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"]
        return [row[mask == 1].tolist() for row, mask in zip(ids, masks, strict=True)]

    mismatched, own = answers("KL_"), answers("")
    assert mismatched[1:] == own[:-1]


@pytest.mark.parametrize(
    ("rows", "recipe", "part"),
    [
        (labelled, {"task": "causal-lm"}, "sequence-classification"),
        (translated, {"base_model": "bert"}, "'bert'"),
    ],
)
def test_a_task_that_rows_or_model_do_not_suit_is_rejected(
    rows, recipe, part, tmp_path, write, bert
):
    recipe = recipe | ({"base_model": bert} if "base_model" in recipe else {})
    with pytest.raises(UserError) as error:
        operations.make_run(str(tmp_path / "run"), str(write("rows.json", rows())), recipe)
    assert part in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "recipe", "code"),
    [
        (lambda: [row | {"label": "same"} for row in labelled()], {}, "training.label_count"),
        (rated, {"batch_size": 1}, "training.kto_batch_too_small"),
        (preferred, {"method": "pissa"}, "recipe.red_line"),
        (preferred, {"lora_rank": 128}, "recipe.red_line"),
    ],
)
@pytest.mark.sample(1)
def test_a_recipe_that_does_not_suit_the_rows_is_rejected(rows, recipe, code, tmp_path, write):
    with pytest.raises(UserError) as error:
        operations.make_run(str(tmp_path / "run"), str(write("rows.json", rows())), recipe)
    assert error.value.code == code
    assert not (tmp_path / "run").exists()


def test_a_head_is_always_saved_and_other_modules_are_added_to_it(bert):
    from peft_space.models.architecture import linear_layers, modules_to_save
    from peft_space.models.resolve import find_base

    layers = linear_layers(find_base(bert).config, "sequence-classification")
    assert modules_to_save(Recipe(modules_to_save=[]), layers) == ["classifier"]
    assert modules_to_save(Recipe(modules_to_save=["pooler"]), layers) == ["classifier", "pooler"]


@pytest.mark.slow
def test_the_scores_of_a_task_are_stored_in_its_run(bert, tmp_path, write):
    recipe = Recipe(base_model=bert, quantization="none", max_steps=1)
    run, scores = trained(labelled(), recipe, tmp_path, write)
    assert read_scores(run).adapter.accuracy == scores["adapter"]["accuracy"]


def test_the_held_out_loss_of_a_training_is_that_of_its_scores(tmp_path, write):
    recipe = Recipe(quantization="none", max_steps=1, batch_size=4, eval_split=0.5)
    rows = [{"prompt": "go " * n, "completion": "up " * n} for n in range(1, 19)]
    run, scores = trained(rows, recipe, tmp_path, write)
    assert len(load_run_data(run).held_out) % 4 == 1, "the last batch has one row"
    [evaluated] = evaluations_of(run.history())
    assert evaluated.loss == pytest.approx(scores["adapter"]["loss"], rel=1e-4)


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELS, TAGS = {"task": "sequence-classification"}, {"task": "token-classification"}
SPLIT = {
    "answers": (translated, lambda folder: "demo", {"task": "causal-lm"}),
    "answers of T5": (translated, lambda folder: tiny_models.t5(folder, WORDS, dropout_rate=0), {}),
    "answers of BART": (translated, lambda folder: tiny_models.bart(folder, WORDS), {}),
    "labels": (labelled, lambda folder: tiny_models.bert(folder, WORDS, **NO_DROPOUT), {}),
    "labels of ModernBERT": (labelled, lambda folder: tiny_models.modernbert(folder, WORDS), {}),
    "labels of BART": (labelled, lambda folder: tiny_models.bart(folder, WORDS), LABELS),
    "labels of a decoder": (labelled, tiny_models.qwen2, LABELS),
    "tags": (tagged, lambda folder: tiny_models.bert(folder, WORDS, **NO_DROPOUT), {}),
    "tags of ModernBERT": (tagged, lambda folder: tiny_models.modernbert(folder, WORDS), {}),
    "tags of a decoder": (
        tagged,
        lambda folder: tiny_models.llama(folder, classifier_dropout=0.0),
        TAGS,
    ),
    "preferences": (preferred, lambda folder: "demo", {}),
    "ratings": (rated, lambda folder: "demo", {}),
}


def steps_in_batches_of(batch_size, kind, tmp_path, write):
    """(loss, gradient norm) of a step of 8 rows and of the next, shorter one; held-out losses."""
    rows, base, changes = SPLIT[kind]
    folder = tmp_path / "base"
    recipe = Recipe(
        quantization="none",
        lora_dropout=0.0,
        compute_dtype="float32",
        max_steps=2,
        eval_split=0.3,
        eval_steps=1,
        base_model=str(folder) if folder.exists() else base(folder),
        batch_size=batch_size,
        gradient_accumulation_steps=8 // batch_size,
        **changes,
    )
    data = str(write("rows.json", random.Random(0).sample(rows(), 16)))
    run = make_run(tmp_path / f"run{batch_size}", data, recipe)
    assert len(load_run_data(run).train) % 8
    assert len(load_run_data(run).held_out) % 2
    with run.lock():
        train(run)
    steps = [(step.loss, step.grad_norm) for step in steps_of(run.history())]
    if kind == "ratings":  # TRL estimates the KL term of held-out rows from each batch
        return steps
    return steps + [(event.loss, event.loss) for event in evaluations_of(run.history())]


@pytest.mark.parametrize("kind", SPLIT)
@pytest.mark.sample(1)
def test_a_step_does_not_depend_on_how_its_rows_are_split(kind, tmp_path, write):
    whole = np.array(steps_in_batches_of(8, kind, tmp_path, write))
    for batch_size in (4, 2, 1):
        split = steps_in_batches_of(batch_size, kind, tmp_path, write)
        assert np.array(split) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(("rows", "task"), [(preferred, "dpo"), (rated, "kto")])
@pytest.mark.slow
def test_preferences_go_on_from_an_adapter_as_the_reference(rows, task, tmp_path, write):
    first = Run(_made(preferred, write, tmp_path / "first", learning_rate=5e-2, max_steps=3))
    operations.train(str(first.directory))
    data = str(write("rows.json", rows()[:24]))
    values = {"max_steps": 4, "save_steps": 2, "batch_size": 8, "lora_dropout": 0.0}
    values |= {"quantization": "none", "compute_dtype": "float32", "eval_split": 0.0}
    runs = [
        import_adapter(tmp_path / name, str(first.adapter), data, values)
        for name in ("whole", "resumed", "kept in memory")
    ]
    pauses = TrainOptions(deadline=0.0)
    for run, options in zip(
        runs,
        (TrainOptions(), pauses, TrainOptions(deadline=0.0, model_cache=ModelCache())),
        strict=True,
    ):
        with run.lock():
            while train(run, options).event == "Paused":
                pass
    losses = [[step.loss for step in steps_of(run.history())] for run in runs]
    no_preference = {"dpo": math.log(2), "kto": 0.5}[task]
    assert losses[0][0] == pytest.approx(no_preference, abs=1e-4)
    assert losses[1] == losses[2] == losses[0]
    weights = [load_file(run.adapter / "adapter_model.safetensors") for run in runs]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in other)
    assert not list(runs[0].directory.rglob("ref")), "the reference is not saved"


def _made(rows, write, folder, **recipe):
    data = str(write("first.json", rows()[:24]))
    return operations.make_run(str(folder), data, {"quantization": "none", **recipe})["run"]


def test_answers_of_one_rating_cannot_be_learned(tmp_path, write):
    good = [row for row in rated() if row["label"]]
    with pytest.raises(UserError) as error:
        make_run(tmp_path / "run", str(write("rows.json", good)), Recipe())
    assert error.value.code == "training.one_sided_ratings"
    bad = [row for row in rated() if not row["label"]]
    checked = operations.check(str(write("few.json", good + bad[:4])), recipe={"seed": 1})
    assert [one["kind"] for one in checked["findings"] if one["kind"] == "unbalanced"]
