"""One child creates a run and trains it; the parent stays light, and a kill frees the lock."""

import contextlib
import json
import subprocess
import sys

import psutil
import pytest

from peft_space.errors import UserError
from peft_space.recipe import make_recipe
from peft_space.runs import events
from peft_space.runs.run import Run
from peft_space.runtime import supervisor
from peft_space.runtime.supervisor import make_and_train, start_training
from peft_space.training.prepare import make_run
from tests.fixtures.waiting import wait_for

RECIPE = {"max_steps": 2, "quantization": "none", "compute_dtype": "float32", "eval_split": 0.0}


def arguments(folder, **changes):
    common = {"data": "demo", "recipe": RECIPE, "held_out": None, "column_mapping": {}}
    return {"directory": str(folder), **common, **changes}


@contextlib.contextmanager
def watching(run):
    assert run.status() == "new"
    yield


@pytest.mark.slow
def test_one_process_creates_a_run_and_trains_it(tmp_path):
    run, outcome = make_and_train(arguments(tmp_path / "run"), watching)
    assert isinstance(outcome, events.Finished)
    assert (outcome.step, run.status(), run.is_locked()) == (2, "finished", False)


@pytest.mark.slow
def test_invalid_data_is_reported_with_its_code_and_leaves_no_run(tmp_path):
    with pytest.raises(UserError) as error:
        make_and_train(arguments(tmp_path / "run", data=str(tmp_path / "none.jsonl")), watching)
    assert error.value.code
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_process_that_supervises_a_new_training_does_not_import_torch(tmp_path):
    code = (
        "import contextlib, json, sys; from peft_space.runtime.supervisor import make_and_train; "
        "make_and_train(json.loads(sys.argv[1]), lambda run: contextlib.nullcontext()); "
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, json.dumps(arguments(tmp_path / "run"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_after_a_kill_of_the_parent_the_training_ends_and_releases_the_lock(tmp_path):
    recipe = RECIPE | {"max_steps": 4000, "num_epochs": 1000}
    command = [sys.executable, "-m", "peft_space", "train", "demo", "--out", str(tmp_path / "run")]
    parent = subprocess.Popen([*command, "--recipe", json.dumps(recipe)])
    wait_for((tmp_path / "run" / "run.json").is_file, 120)
    run = Run(tmp_path / "run")
    wait_for(lambda: any(isinstance(event, events.Step) for event in run.history()), 120)
    [child] = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    assert run.is_locked(), "the child holds the lock until it ends"
    wait_for(lambda: not run.is_locked())
    # where nobody reaps orphans, an ended process remains as a zombie
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert run.status() == "interrupted"


# The process that waits for the next training


@pytest.fixture
def standby(monkeypatch):
    """The process that `keep_standby` starts, when its child waits too."""
    monkeypatch.setattr(supervisor, "_SECONDS_AFTER_TRAINING", 1e6)
    monkeypatch.setattr(supervisor, "_standby", supervisor._Standby())
    supervisor.keep_standby()
    process = psutil.Process(supervisor._standby._process.pid)
    wait_for(process.children)
    yield process
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def new_run(folder):
    return make_run(folder, "demo", make_recipe(RECIPE))


@pytest.mark.slow
def test_a_training_takes_the_process_that_waits_and_writes_its_log(tmp_path, standby):
    [child] = standby.children()
    run = new_run(tmp_path / "run")
    start_training(run)
    wait_for(lambda: run.status() == "running")
    assert run.is_locked()
    assert child in standby.children()
    wait_for(lambda: run.status() == "finished", 120)
    wait_for(lambda: "Finished" in run.path("worker.log").read_text())
    wait_for(lambda: not run.is_locked())


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["the process", "its child"])
def test_after_a_kill_of_what_waits_the_next_training_starts_anew(tmp_path, standby, killed):
    victim = standby if killed == "the process" else standby.children()[0]
    victim.kill()
    psutil.wait_procs([victim], 10)
    run = new_run(tmp_path / "run")
    start_training(run)
    wait_for(lambda: run.status() == "finished", 120)


@pytest.mark.slow
def test_what_waits_ends_with_the_page():
    code = (
        "import psutil; from peft_space.runtime import supervisor; supervisor.keep_standby(); "
        "print(supervisor._standby._process.pid, flush=True); input()"
    )
    page = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    waiting = psutil.Process(int(page.stdout.readline()))
    wait_for(waiting.children)
    everyone = [waiting, *waiting.children()]
    page.kill()
    page.wait()
    wait_for(lambda: not any(map(psutil.Process.is_running, everyone)))
