"""Rows of similar length share a step, and a resumed training keeps their order."""

import json

import numpy as np
import pytest

from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.events import steps_of
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.training import autotune
from peft_space.training import train as training
from peft_space.training.prepare import make_run
from peft_space.training.trainers import ByLength, goes_by_length, padded_tokens, saved_by_length

LENGTHS = np.random.default_rng(0).lognormal(4, 0.8, 1003).astype(int) + 1


def order_in(epoch, rows_a_step=8, lengths=LENGTHS):
    order = ByLength(lengths, rows_a_step, seed=3)
    order.set_epoch(epoch)
    return list(order)


@pytest.mark.parametrize("count", [1003, 1000, 9, 8, 3])
def test_each_row_comes_once_per_epoch(count):
    assert sorted(order_in(0, lengths=LENGTHS[:count])) == list(range(count))


def test_seed_and_epoch_determine_the_order():
    assert order_in(1) == order_in(1)
    assert order_in(1) != order_in(2)


def test_long_and_short_steps_alternate():
    steps = LENGTHS[order_in(0)][:1000].reshape(-1, 8).mean(axis=1)
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 0.3


def test_the_rows_of_a_step_do_not_depend_on_the_batch_size():
    assert padded_tokens(LENGTHS, 4, 8) < padded_tokens(LENGTHS, 8, 8) < 1.15 * LENGTHS.mean()
    assert padded_tokens(LENGTHS, 8) > 1.7 * LENGTHS.mean()


def test_rows_are_grouped_if_that_saves_a_fifth_of_the_tokens():
    assert goes_by_length(LENGTHS, Recipe())
    assert saved_by_length(LENGTHS, Recipe()) > 0.4
    assert not goes_by_length(np.arange(90, 110), Recipe())
    assert not goes_by_length(LENGTHS, Recipe(), packing=True)


@pytest.mark.slow
def test_a_paused_run_resumes_in_the_same_order(tmp_path, monkeypatch):
    words = [
        "the",
        "fork",
        "is",
        "red",
        "and",
        "it",
        "came",
        "late",
        "so",
        "I",
        "want",
        "a",
        "new",
        "one",
        "please",
    ]
    texts = (words[: 1 + number % 13] * (1 + number % 3) for number in range(20))
    rows = [{"text": " ".join(text)} for text in texts]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    recipe = Recipe(
        max_steps=8,
        num_epochs=9,
        batch_size=4,
        quantization="none",
        eval_split=0,
        compute_dtype="float32",
    )  # 5 steps an epoch
    whole, paused = (
        make_run(tmp_path / name, str(tmp_path / "rows.jsonl"), recipe)
        for name in ("whole", "paused")
    )
    append = Run.append

    def pause(run, event):
        append(run, event)
        if (
            run.directory == paused.directory
            and isinstance(event, events.Step)
            and event.step in (2, 6)
            and event.attempt < 3
        ):
            run.request_stop("pause")

    monkeypatch.setattr(Run, "append", pause)
    monkeypatch.setattr(autotune, "why_not_packed", lambda *args: "its rows would not stay apart")
    for run, times in ((whole, 1), (paused, 3)):
        for _ in range(times):
            with run.lock():
                training.train(run)
    assert read_plan(whole).by_length
    assert any(
        "similar length" in event.what
        for event in whole.history()
        if isinstance(event, events.Notice)
    )
    assert [step.loss for step in steps_of(paused.history())] == [
        step.loss for step in steps_of(whole.history())
    ]
    assert len(steps_of(whole.history())) == 8
    assert (
        max(event.attempt for event in paused.history() if isinstance(event, events.Started)) == 3
    )
