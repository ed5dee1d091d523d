"""Training in ZeroGPU slices: the real `spaces` package, and a fake of the service behind it."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import zipfile

import gradio as gr
import pytest
from gradio_client import Client

from peft_space import operations
from peft_space.demo import PICTURES_FILE
from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.events import steps_of
from peft_space.runtime import slice_lengths
from peft_space.runtime.zerogpu import gpu_error
from peft_space.training.prepare import make_run
from tests.fixtures import fake_zerogpu
from tests.fixtures.fake_zerogpu import HASTY_SECONDS, TRAINED, Lender
from tests.fixtures.waiting import wait_for

PLAIN = Recipe(quantization="none", batch_size=4, lora_dropout=0.1, eval_split=0.1, eval_steps=100)


@pytest.fixture
def lender():
    with Lender() as lending:
        yield lending


def spaces_error(title, message):
    """An error as the `spaces` package raises it in Gradio."""
    return gr.Error(message, title=title)


def digests(run):
    """SHA-256 of the adapter's trained files."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.adapter.glob("adapter_*")
    }


def pause_reason(run):
    assert run.status() == "paused"
    last = run.history()[-1]
    assert isinstance(last, events.Paused)
    return last.why


def trained_alone(path, recipe, data="demo"):
    """The same training in one process, without slices or interruption."""
    run = make_run(path, data, recipe)
    command = [sys.executable, "-m", "peft_space", "resume", str(run.directory)]
    subprocess.run(
        command, cwd=fake_zerogpu.ROOT, env=dict(os.environ), check=True, capture_output=True
    )
    return run


def test_slices_are_as_long_as_needed_and_stop_in_time():
    history: list[events.Event] = []
    assert slice_lengths.next_slice_seconds(history, 60) == 60
    assert slice_lengths.margin_of(history, 60) == 10.5
    history += [
        events.SliceStarted(at=0, seconds=60),
        events.Started(at=4, attempt=1, from_step=0, total_steps=200),
    ]
    history += [
        events.Step(
            at=4 + number,
            attempt=1,
            step=number,
            loss=1,
            learning_rate=1,
            grad_norm=1,
            tokens=1,
            seconds=1,
        )
        for number in range(1, 46)
    ]
    history += [events.Checkpointed(at=51, step=45), events.Paused(at=51, step=45)]
    assert slice_lengths.margin_of(history, 60) == 1 + 1.5 * 2 + 0.5
    left = slice_lengths.slice_account(history, 60)
    # 155 steps of 1 s, in slices of 60 - 4 - 4.5 s
    assert (left.slices, left.seconds, left.slices_left) == (1, 51, 4)
    assert slice_lengths.next_slice_seconds(history, 60) == 60
    nearly = [*history, events.Checkpointed(at=52, step=190)]
    assert slice_lengths.next_slice_seconds(nearly, 60) == 23  # a fifth more than 4 + 10 + 4.5
    without_checkpoint = [*history, *[events.SliceStarted(at=60, seconds=60)] * 3]
    with pytest.raises(UserError) as error:
        slice_lengths.next_slice_seconds(without_checkpoint, 60)
    assert error.value.code == "runtime.slice_too_short"


@pytest.mark.slow
def test_two_slices_train_as_one_training_does(tmp_path, lender):
    run = make_run(tmp_path / "sliced", "demo", PLAIN.model_copy(update={"max_steps": 40}))
    with lender.trainer() as trainer:
        trainer.train(run.directory, 5)
    assert run.status() == "finished"
    assert (
        len(lender.asked)
        == len([event for event in run.history() if isinstance(event, events.SliceStarted)])
        >= 2
    )
    assert len(set(lender.pids)) == 1  # the process, and the base in it, are used again
    assert slice_lengths.slice_account(run.history(), 5).slices == len(lender.asked)


@pytest.mark.slow
def test_slices_with_pictures_give_the_same_bytes_as_one_training(tmp_path, lender):
    changed = {"base_model": "demo-pictures", "max_steps": 30, "save_steps": 10}
    recipe, data = PLAIN.model_copy(update=changed), str(PICTURES_FILE)
    alone = trained_alone(tmp_path / "alone", recipe, data)
    run = make_run(tmp_path / "sliced", data, recipe)
    with lender.trainer() as trainer:
        trainer.train(run.directory, 5)
    assert run.status() == "finished"
    assert len(lender.asked) >= 2
    assert digests(run) == digests(alone)


@pytest.mark.slow
def test_six_slices_with_three_kills_give_the_same_bytes_as_one_training(tmp_path, lender):
    recipe = PLAIN.model_copy(update={"max_steps": 300, "save_steps": 10, "quantization": "nf4"})
    aborted = spaces_error("ZeroGPU worker error", "GPU task aborted")
    alone = trained_alone(tmp_path / "alone", recipe)
    run, rng = make_run(tmp_path / "sliced", "demo", recipe), random.Random(0)
    with lender.trainer() as trainer:
        for number in range(3):
            trainer.begin(run.directory, 8)
            killed_at = 80 * number + rng.randint(15, 70)
            # each kill makes the next worker a fresh one
            wait_for(lambda killed_at=killed_at: is_at(run, killed_at), 300)
            fake_zerogpu.kill(lender.pids[-1])
            trainer.wait()
            assert pause_reason(run) == gpu_error(aborted, 8)[1]
        trainer.train(run.directory, 8)
    assert run.status() == "finished"
    assert len(lender.pids) == 4
    assert len([event for event in run.history() if isinstance(event, events.SliceStarted)]) >= 6
    assert digests(run) == digests(alone)
    losses = [(step.step, step.loss) for step in steps_of(run.history())]
    assert losses == [(step.step, step.loss) for step in steps_of(alone.history())]


@pytest.mark.slow
def test_a_rejected_slice_says_why_and_the_run_can_be_resumed(tmp_path, lender):
    run = make_run(tmp_path / "run", "demo", PLAIN.model_copy(update={"max_steps": 30}))
    aborted = spaces_error("ZeroGPU worker error", "GPU task aborted")
    refusals = [
        ("longest", 3.0, float("inf"), "shorter slices"),
        ("quota", 2.0, float("inf"), "quota"),
        ("expired", True, False, "sign-in"),
        ("no_gpu", True, False, "No GPU"),
    ]
    with lender.trainer() as trainer:
        for name, refusing, lending, subject in refusals:
            setattr(lender, name, refusing)
            trainer.train(run.directory, 20)
            assert subject in pause_reason(run)
            assert "\n" not in pause_reason(run)
            setattr(lender, name, lending)
        lender.overrun = 1.0
        trainer.train(run.directory, 20)
        assert pause_reason(run) == gpu_error(aborted, 20)[1]
        lender.overrun = None
        trainer.train(run.directory, 20)
    assert run.status() == "finished"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The page on ZeroGPU, and the service that lends it GPUs."""
    with Lender() as lending:
        running = fake_zerogpu.Page(
            tmp_path_factory.mktemp("zerogpu"), PEFT_SPACE_SLICE_SECONDS="15", **lending.environment
        )
        running.start()
        yield running, lending
        running.kill()


@pytest.mark.slow
def test_programs_train_and_compare_in_slices_through_the_api(space):
    running, lending = space
    client = Client(running.url, verbose=False)
    recipe = PLAIN.model_dump(exclude_defaults=True) | {"max_steps": 150}
    started = client.predict(data="demo", recipe=recipe, api_name="/train")
    assert started["status"] == "new"
    calls = 0
    while True:
        told = client.predict(run=started["run"], api_name="/resume")
        calls += 1
        if not told["more"]:
            break
        assert told["status"] == "paused"
        assert told["slices"]["slices"] == calls
    assert told["status"] == "finished"
    assert calls >= 2
    before = len(lending.asked)
    answered = client.predict(
        run=started["run"], prompts=["Hello"], sampling={"max_new_tokens": 4}, api_name="/compare"
    )
    assert answered["fairness"]["fair"]
    scored, calls = {"more": True}, 0
    while scored["more"]:  # a busy machine needs more than one slice
        scored = client.predict(run=started["run"], api_name="/evaluate")
        calls += 1
    assert scored["num_rows"]
    measured = client.predict(data="demo", recipe=recipe, api_name="/dry_run")
    assert measured["memory"] > 0
    assert len(lending.asked) == before + calls + 2
    lending.quota = 1
    with pytest.raises(Exception, match="quota"):
        client.predict(run=started["run"], prompts=["Hello"], api_name="/compare")
    lending.quota = float("inf")


@pytest.fixture(scope="module")
def much_to_score(tmp_path_factory):
    return fake_zerogpu.much_to_score(tmp_path_factory.mktemp("much") / "run")


@pytest.fixture
def hasty(tmp_path, much_to_score):
    """A page with slices so short that an evaluation needs several, and the service behind it."""
    with Lender() as lending:
        running = fake_zerogpu.hasty_page(tmp_path / "hasty", much_to_score, lending)
        running.start()
        yield running, lending
        running.kill()


def asked_until_done(client, **asked):
    """The result of an endpoint that may take several slices, and the earlier results."""
    before = []
    while (found := client.predict(run=TRAINED, **asked))["more"]:
        before.append(found)
        assert len(before) < 30
    return found, before


@pytest.mark.slow
def test_evaluation_and_vote_continue_over_slices_to_the_same_result(hasty, much_to_score):
    running, lending = hasty
    client = Client(running.url, verbose=False)
    found, before = asked_until_done(client, api_name="/evaluate")
    assert before
    assert [0 <= one["share"] < 1 for one in before] == [True] * len(before)
    assert sorted(one["share"] for one in before) == [one["share"] for one in before]
    assert len(lending.asked) == len(before) + 1
    assert {name: value for name, value in found.items() if name != "more"} == json.loads(
        json.dumps(operations.evaluate(str(much_to_score.directory)))
    )
    sampling = {"max_new_tokens": 8, "temperature": 0.7}
    found, before = asked_until_done(
        client, count=100, sampling=sampling, seed=3, api_name="/vote_pairs"
    )
    assert before
    assert (
        found["pairs"]
        == operations.vote_pairs(
            str(much_to_score.directory), count=100, sampling=sampling, seed=3
        )["pairs"]
    )
    assert not list((running.home / "runs" / "local" / TRAINED).glob("*ing.jsonl"))


@pytest.mark.slow
def test_after_a_rejected_slice_the_evaluation_keeps_its_progress(hasty):
    running, lending = hasty
    client = Client(running.url, verbose=False)
    share = client.predict(run=TRAINED, api_name="/evaluate")["share"]
    lending.no_gpu = True
    with pytest.raises(Exception, match="No GPU was available"):
        client.predict(run=TRAINED, api_name="/evaluate")
    lending.no_gpu = False
    threading.Timer(2, fake_zerogpu.kill, [lending.pids[-1]]).start()
    with pytest.raises(Exception, match="The GPU was taken away"):
        client.predict(run=TRAINED, api_name="/evaluate")
    assert client.predict(run=TRAINED, api_name="/evaluate").get("share", 1.0) > share
    endless = {
        "count": 8,
        "sampling": {"max_new_tokens": 4096, "temperature": 5},
        "api_name": "/vote_pairs",
    }
    with pytest.raises(Exception, match=f"slices of {HASTY_SECONDS} s"):
        asked_until_done(client, **endless)


def is_at(run, step):
    """Return True if a training is in the middle of a slice, at that step or later."""
    history = run.history()
    return bool(history) and isinstance(history[-1], events.Step) and history[-1].step >= step


@pytest.mark.slow
def test_an_adapter_is_verified_in_a_slice_and_a_merged_model_on_the_cpu(
    space, much_to_score, tmp_path
):
    running, lending = space
    shutil.copytree(much_to_score.directory, running.home / "runs" / "local" / TRAINED)
    client = Client(running.url, verbose=False, download_files=tmp_path)
    for target, slices_taken in (("adapter", 1), ("merged", 0)):
        before = len(lending.asked)
        with zipfile.ZipFile(
            client.predict(
                run=TRAINED, options={"target": target, "dtype": "float32"}, api_name="/export"
            )
        ) as made:
            [proof] = [name for name in made.namelist() if name.endswith("proof.json")]
            assert json.loads(made.read(proof))["passed"]
        assert len(lending.asked) == before + slices_taken
