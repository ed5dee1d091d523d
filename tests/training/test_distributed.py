"""Several processes train a run like a single one, and survive being killed."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from peft_space.recipe import Recipe
from peft_space.runs.events import steps_of
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.training.prepare import make_run
from tests.runtime.test_worker_pool import wait_for

RECIPE = Recipe(
    lora_dropout=0.0,
    quantization="none",
    compute_dtype="float32",
    batch_size=4,
    gradient_accumulation_steps=2,
    max_steps=10,
    save_steps=2,
)


def start(run: Run, num_processes: int) -> subprocess.Popen:
    environment = os.environ | {"PEFT_SPACE_PROCESSES": str(num_processes)}
    return subprocess.Popen(
        [sys.executable, "-m", "peft_space", "resume", str(run.directory)],
        env=environment,
        start_new_session=True,
    )


def losses(run: Run) -> list[float]:
    return [step.loss for step in steps_of(run.history())]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("alone") / "run", "demo", RECIPE)
    assert start(run, 1).wait() == 0
    return run


@pytest.mark.slow
def test_two_processes_train_like_one_and_resume_after_a_kill(alone, tmp_path):
    run = make_run(tmp_path / "run", "demo", RECIPE)
    killed = start(run, 2)
    wait_for(lambda: len(losses(run)) >= 5)
    processes = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    psutil.wait_procs(processes, timeout=20)
    wait_for(lambda: not run.is_locked())
    assert run.status() == "interrupted"
    assert start(run, 2).wait() == 0
    assert run.status() == "finished"
    plan = read_plan(run)
    assert (plan.num_processes, plan.batch_size, plan.gradient_accumulation_steps) == (2, 4, 1)
    assert losses(run) == pytest.approx(losses(alone), abs=1e-4)
    assert [step.tokens for step in steps_of(run.history())] == [
        step.tokens for step in steps_of(alone.history())
    ]


@pytest.mark.slow
def test_a_run_paused_by_two_processes_is_finished_by_one(alone, tmp_path):
    run = make_run(tmp_path / "run", "demo", RECIPE)
    working = start(run, 2)
    wait_for(lambda: len(losses(run)) >= 3)
    run.request_stop("pause")
    assert working.wait(timeout=60) == 0
    assert run.status() == "paused"
    assert start(run, 1).wait() == 0
    assert run.status() == "finished"
    assert losses(run) == pytest.approx(losses(alone), abs=1e-4)
