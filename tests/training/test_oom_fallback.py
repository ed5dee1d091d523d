"""Memory that runs out: the training goes on with less of it, trains the same, and tells what it changed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_space import hardware
from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.plan import (
    Plan,
    as_asked,
    processes_for,
    read_plan,
    split_step_rows,
    write_plan,
)
from peft_space.runs.run import Run
from peft_space.runs.status import steps_of
from peft_space.runtime.supervisor import halve_max_length_of
from peft_space.training.oom_fallback import halve_max_length, out_of_memory_failure, reduce_memory
from peft_space.training.prepare import make_run
from tests.hub.test_push import PLAN

STEPS = {
    "max_steps": 3,
    "num_epochs": 1,
    "quantization": "none",
    "eval_split": 0.0,
    "compute_dtype": "float32",
}


def begun(folder, **changes) -> Run:
    """A run that is in its first step."""
    run = make_run(folder / "run", "demo", Recipe(**STEPS | changes))
    write_plan(run, Plan.model_validate(PLAN.model_dump() | as_asked(run.recipe)))
    run.append(events.Preparing(what="Loading"))
    run.append(events.Started(attempt=1, from_step=0, total_steps=3))
    return run


def used(run: Run) -> tuple[bool, int, int, int]:
    plan = read_plan(run)
    return (
        plan.gradient_checkpointing,
        plan.batch_size,
        plan.gradient_accumulation_steps,
        plan.max_length,
    )


def test_first_activations_are_given_up_then_the_batch_is_halved_and_the_rows_of_a_step_stay(
    tmp_path,
):
    run = begun(tmp_path, batch_size=6, gradient_accumulation_steps=2, max_length=300)
    seen = []
    while reduce_memory(run, "The GPU") and len(seen) < 9:
        seen.append(used(run))
        run.append(events.Started(attempt=2, from_step=0, total_steps=3))
    assert seen == [(True, 6, 2, 300), (True, 3, 4, 300), (True, 1, 12, 300)]
    assert all(
        "The GPU had not enough memory" in event.why
        for event in run.history()
        if isinstance(event, events.OutOfMemory)
    )
    assert run.recipe.batch_size == 6


def test_of_several_processes_that_run_out_only_the_first_changes_the_plan(tmp_path):
    run = begun(tmp_path, batch_size=8)
    first = reduce_memory(run, "The GPU")
    assert reduce_memory(run, "The GPU") == first
    assert used(run)[:2] == (True, 8)


def test_checkpointing_that_the_recipe_forbids_is_left_out(tmp_path):
    run = begun(tmp_path, batch_size=2, gradient_checkpointing="off")
    assert reduce_memory(run, "The GPU")
    assert used(run)[:2] == (False, 1)


def test_before_the_first_step_nothing_is_changed_for_nothing_would_help(tmp_path):
    run = begun(tmp_path)
    run.append(events.Preparing(what="Loading"))
    assert reduce_memory(run, "This machine") is None
    assert (
        "not enough memory for the base model" in out_of_memory_failure(run, "This machine").message
    )
    assert not out_of_memory_failure(run, "This machine").for_memory


def test_rows_are_shortened_only_where_that_was_offered(tmp_path):
    run = begun(tmp_path, batch_size=1, gradient_checkpointing="on", max_length=300)
    with pytest.raises(UserError, match="did not fail for memory"):
        halve_max_length_of(run)
    failed = out_of_memory_failure(run, "This machine")
    assert "even for 1 row of 300 tokens at once with gradient checkpointing" in failed.message
    run.append(failed)
    halve_max_length_of(run)
    assert used(run)[3] == 150
    assert "150 tokens" in run.history()[-1].what


def test_rows_are_not_cut_to_nothing(tmp_path):
    run = begun(tmp_path, max_length=100)
    assert halve_max_length(run) is None


def test_several_processes_share_the_rows_of_a_step():
    recipe = Recipe(batch_size=6, gradient_accumulation_steps=2)
    assert [processes_for(recipe, devices) for devices in (1, 2, 5, 8, 40)] == [1, 2, 4, 6, 12]
    for processes in (1, 2, 3, 4, 6, 12):
        batch_size, accumulated = split_step_rows(12, 6, processes)
        assert batch_size * accumulated * processes == 12
        assert batch_size <= 6


LIMITED = """
import os, resource, sys
from peft_space.settings import prepare_libraries
prepare_libraries()
from peft_space.events import OutOfMemory
from peft_space.models.base import find_base
from peft_space.models.families import linear_layers
from peft_space.models.memory import estimate
from peft_space.run import Run
from peft_space.training.train import attempt

run = Run(sys.argv[1])
need = estimate(linear_layers(find_base("demo").config, "causal-lm"), run.recipe, run.recipe.batch_size, 120)
while True:
    child = os.fork()  # each attempt a process of its own, and the libraries are imported once
    if not child:
        holds = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (holds + int(float(sys.argv[2]) * need.total),) * 2)
        with run.lock():
            attempt(run)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status or not isinstance(run.history()[-1], OutOfMemory):
        sys.exit(status)
"""


def train_limited(run: Run, share_of_need: float) -> int:
    """Attempts in fresh processes, as the supervisor of a training makes them; the status of the last."""
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(run.directory), str(share_of_need)]
    ).returncode


def test_a_training_that_does_not_fit_adapts_finishes_and_tells(tmp_path):
    run = make_run(tmp_path / "run", "demo", Recipe(**STEPS | {"batch_size": 64, "max_steps": 1}))
    assert train_limited(run, 0.25) == 0
    assert run.status() == "finished"
    changes = [event for event in run.history() if isinstance(event, events.OutOfMemory)]
    assert changes
    assert [step.step for step in steps_of(run.history())] == [1]
    plan = read_plan(run)
    assert plan.gradient_checkpointing
    assert plan.batch_size * plan.gradient_accumulation_steps == 64


@pytest.fixture
def memory_group():
    """A control group of the system in which processes can be limited."""
    roots = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")]
    own = next((group for group in hardware._cgroups() if group.is_dir()), None)
    folder = (own or roots[0]) / f"peft_space-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this system lets no control group be made: {error}")
    yield folder
    folder.rmdir()


def limited(folder: Path, num_bytes: int) -> Callable[[], None]:
    """Moves a child into the group, which may then take so much."""
    name = "memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes"
    (folder / name).write_text(str(num_bytes))
    return lambda: (folder / "cgroup.procs").write_text(str(os.getpid())) and None


@pytest.mark.slow
def test_a_training_that_the_system_ends_for_memory_goes_on_with_less(tmp_path, memory_group):
    changes = {"batch_size": 128, "num_epochs": 2, "gradient_checkpointing": "on", "save_steps": 1}
    run = make_run(tmp_path / "run", "demo", Recipe(**STEPS | changes))
    command = [sys.executable, "-m", "peft_space", "resume", str(run.directory)]
    kills = hardware.kills_for_memory()
    assert subprocess.run(command, preexec_fn=limited(memory_group, 750_000_000)).returncode == 0
    assert hardware.kills_for_memory() > kills
    assert run.status() == "finished"
    assert any(isinstance(event, events.OutOfMemory) for event in run.history())
    assert [step.step for step in steps_of(run.history())] == [1, 2, 3]
    assert read_plan(run).batch_size < 128
