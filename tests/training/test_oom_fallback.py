"""After memory runs out, training continues with less of it, and reports what changed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AlbertConfig

from peft_space import hardware
from peft_space.errors import UserError
from peft_space.estimation.memory import estimate_within
from peft_space.models.architecture import linear_layers
from peft_space.models.loading import adapter_config
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.events import steps_of
from peft_space.runs.plan import (
    Plan,
    plan_fields_of,
    processes_for,
    read_plan,
    split_step_rows,
    write_plan,
)
from peft_space.runs.run import Run
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


def started_run(folder, **changes) -> Run:
    """A run in its first step."""
    run = make_run(folder / "run", "demo", Recipe(**STEPS | changes))
    write_plan(run, Plan.model_validate(PLAN.model_dump() | plan_fields_of(run.recipe)))
    run.append(events.Preparing(what="Loading"))
    run.append(events.Started(attempt=1, from_step=0, total_steps=3))
    return run


def settings_of(run: Run) -> tuple[bool, int, int, int]:
    plan = read_plan(run)
    return (
        plan.gradient_checkpointing,
        plan.batch_size,
        plan.gradient_accumulation_steps,
        plan.max_length,
    )


def test_checkpointing_comes_first_then_smaller_batches_with_the_same_rows_per_step(
    tmp_path,
):
    run = started_run(tmp_path, batch_size=6, gradient_accumulation_steps=2, max_length=300)
    tried = []
    while reduce_memory(run, "The GPU") and len(tried) < 9:
        tried.append(settings_of(run))
        run.append(events.Started(attempt=2, from_step=0, total_steps=3))
    assert tried == [(True, 6, 2, 300), (True, 3, 4, 300), (True, 1, 12, 300)]
    assert all(
        "The GPU" in event.why for event in run.history() if isinstance(event, events.OutOfMemory)
    )
    assert run.recipe.batch_size == 6


def test_only_the_first_of_several_processes_changes_the_plan(tmp_path):
    run = started_run(tmp_path, batch_size=8)
    first = reduce_memory(run, "The GPU")
    assert reduce_memory(run, "The GPU") == first
    assert settings_of(run)[:2] == (True, 8)


def test_checkpointing_that_the_recipe_forbids_is_skipped(tmp_path):
    run = started_run(tmp_path, batch_size=2, gradient_checkpointing="off")
    assert reduce_memory(run, "The GPU")
    assert settings_of(run)[:2] == (False, 1)


def test_before_the_first_step_the_plan_is_not_changed(tmp_path):
    run = started_run(tmp_path)
    run.append(events.Preparing(what="Loading"))
    assert reduce_memory(run, "This machine") is None
    failure = out_of_memory_failure(run, "This machine")
    assert failure.code == "training.out_of_memory"
    assert not failure.for_memory


def test_the_length_limit_is_halved_only_after_the_app_offered_it(tmp_path):
    run = started_run(tmp_path, batch_size=1, gradient_checkpointing="on", max_length=300)
    with pytest.raises(UserError):
        halve_max_length_of(run)
    failure = out_of_memory_failure(run, "This machine")
    assert failure.for_memory
    assert "1 row of 300 tokens" in failure.message
    run.append(failure)
    halve_max_length_of(run)
    assert settings_of(run)[3] == 150
    assert "150 tokens" in run.history()[-1].what


def test_the_length_limit_does_not_fall_below_64_tokens(tmp_path):
    run = started_run(tmp_path, max_length=100)
    assert halve_max_length(run) is None


def test_processes_share_the_rows_of_a_step():
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
from peft_space.runs.events import OutOfMemory
from peft_space.models.resolve import find_base
from peft_space.models.architecture import linear_layers
from peft_space.estimation.memory import estimate
from peft_space.runs.run import Run
from peft_space.training.train import attempt

run = Run(sys.argv[1])
layers = linear_layers(find_base("demo").config, "causal-lm")
need = estimate(layers, run.recipe, run.recipe.batch_size, 120)
while True:
    child = os.fork()  # each attempt has its own process, and the libraries are imported once
    if not child:
        status = [line.split() for line in open("/proc/self/status")]
        used = next(int(words[1]) * 1024 for words in status if words[0] == "VmData:")
        limit = used + int(float(sys.argv[2]) * need.total)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with run.lock():
            attempt(run)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status or not isinstance(run.history()[-1], OutOfMemory):
        sys.exit(status)
"""


def train_limited(run: Run, share_of_need: float) -> int:
    """Make attempts in new processes, as the supervisor does, and return the last exit status."""
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(run.directory), str(share_of_need)]
    ).returncode


@pytest.mark.slow
def test_a_training_that_does_not_fit_adapts_and_finishes(tmp_path):
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
    """A control group that can limit the memory of processes."""
    roots = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")]
    own = next((group for group in hardware._cgroups() if group.is_dir()), None)
    folder = (own or roots[0]) / f"peft_space-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"a control group cannot be created: {error}")
    yield folder
    folder.rmdir()


def limited(folder: Path, num_bytes: int) -> Callable[[], None]:
    """Limit the group, and return a function that moves a child process into it."""
    name = "memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes"
    (folder / name).write_text(str(num_bytes))
    return lambda: (folder / "cgroup.procs").write_text(str(os.getpid())) and None


@pytest.mark.slow
def test_a_training_killed_by_the_system_continues_with_less_memory(tmp_path, memory_group):
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


def test_an_architecture_without_checkpointing_is_never_asked_for_it():
    config = AlbertConfig(
        vocab_size=64, hidden_size=16, embedding_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    layers = linear_layers(config, "sequence-classification")
    with pytest.raises(UserError) as error:
        adapter_config(Recipe(gradient_checkpointing="on"), layers, layers.task)
    assert error.value.code == "models.no_checkpointing"
    _, checkpointing = estimate_within(layers, Recipe(quantization="none"), 2, 16, num_bytes=1)
    assert not checkpointing
