"""Several processes train a run like a single one, and survive being killed."""

import os
import random
import signal
import socket
import subprocess
import sys
from unittest import mock

import numpy as np
import psutil
import pytest

from peft_space.data.batches import Examples
from peft_space.errors import UserError
from peft_space.models.resolve import find_base
from peft_space.recipe import CAUSAL_LM, Recipe
from peft_space.runs.events import evaluations_of, steps_of
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.runtime import train_process
from peft_space.training import autotune
from peft_space.training.prepare import make_run, prepare
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import WORDS, labelled, preferred
from tests.runtime.test_worker_pool import wait_for
from tests.training.test_trainers import SPLIT

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


KINDS = {
    "shared base": (None, {"shard_base": "on"}),
    "shared base in nf4": (None, {"shard_base": "on", "quantization": "nf4"}),
    "shared encoder": (labelled, {"base_model": "bert", "shard_base": "on"}),
    "nf4": (None, {"quantization": "nf4"}),
    "dpo": (preferred, {}),
    "labels": (labelled, {"base_model": "bert"}),
    "early stopping": (None, {"early_stopping_patience": 1, "eval_steps": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_every_kind_like_one(kind, tmp_path, write):
    rows, changes = KINDS[kind]
    data = str(write("rows.json", rows())) if rows else "demo"
    if "base_model" in changes:
        # each process draws other random numbers for dropout
        undropped = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        base = tiny_models.bert(tmp_path / "base", WORDS, **undropped)
        changes = {**changes, "base_model": base}
    recipe = RECIPE.model_copy(update={"max_steps": 4, **changes})
    by_one, by_two = (make_run(tmp_path / name, data, recipe) for name in ("one", "two"))
    assert start(by_one, 1).wait() == 0
    assert start(by_two, 2).wait() == 0
    assert read_plan(by_two).num_processes == 2
    assert read_plan(by_two).shard_base == (changes.get("shard_base") == "on")
    assert losses(by_two) == pytest.approx(losses(by_one), abs=1e-4)
    evaluated = [
        [event.loss for event in evaluations_of(run.history())] for run in (by_one, by_two)
    ]
    assert evaluated[0]
    # repeated rows of preferences have no labels to leave out
    assert evaluated[1] == pytest.approx(evaluated[0], rel=1e-2 if kind == "dpo" else 1e-4)


SPLIT_BY_TWO = ["labels", "tags", "answers of T5", "preferences", "ratings"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPLIT_BY_TWO)
def test_two_processes_take_the_steps_of_one_and_each_row_once_an_epoch(kind, tmp_path, write):
    """accelerate fills up the last step, and the last held-out batch, with rows of the first."""
    rows, base, changes = SPLIT[kind]
    data = str(write("rows.json", random.Random(0).sample(rows(), 16)))
    recipe = RECIPE.model_copy(
        update={"max_steps": 4, "eval_split": 0.3, "learning_rate": 1e-2, **changes}
    )
    recipe = recipe.model_copy(update={"base_model": base(tmp_path / "base")})
    by_one, by_two = (make_run(tmp_path / name, data, recipe) for name in ("one", "two"))
    assert start(by_one, 1).wait() == 0
    assert start(by_two, 2).wait() == 0
    assert read_plan(by_two).num_processes == 2
    one, two = (
        np.array([(step.loss, step.grad_norm) for step in steps_of(run.history())])
        for run in (by_one, by_two)
    )
    assert two == pytest.approx(one, rel=1e-5)
    if kind not in ("preferences", "ratings"):  # their repeated rows have no labels to leave out
        held_out = [
            [event.loss for event in evaluations_of(run.history())] for run in (by_one, by_two)
        ]
        assert held_out[0]
        assert held_out[1] == pytest.approx(held_out[0], rel=1e-5)


SHARED_PARTS = """
import torch
from peft_space.models.loading import load_base_model, new_adapter
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe
from peft_space.training import distributed
recipe, base = Recipe(quantization="none"), find_base("demo")
model = new_adapter(load_base_model(base, recipe, "float32"), recipe, base)
held = lambda: sum(
    (value.to_local() if hasattr(value, "to_local") else value).numel()
    for name, value in model.named_parameters() if ".layers." in name and "lora_" not in name
)
whole = held()
distributed.shard_base(model, "cpu")
if distributed.is_main():
    print(held() / whole)
"""


@pytest.mark.slow
def test_each_process_holds_its_part_of_the_blocks():
    command = "-m torch.distributed.run --standalone --nproc-per-node=2 --no-python"
    done = subprocess.run(
        [sys.executable, *command.split(), sys.executable, "-c", SHARED_PARTS],
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.split()[-1]) == pytest.approx(0.5, abs=0.01)


@pytest.fixture
def two_gpus(monkeypatch):
    """Pretend that two processes with a GPU each train a run."""
    monkeypatch.setattr(autotune.hardware, "device", lambda: "cuda")
    monkeypatch.setattr(autotune.distributed, "num_processes", lambda: 2)


@pytest.mark.parametrize(("free", "shared"), [(10**12, False), (10**7, True)])
@pytest.mark.slow
def test_gpus_share_a_base_that_does_not_fit_on_one(two_gpus, free, shared):
    rows = Examples(prepare("demo", RECIPE).train)
    chosen = autotune.choose_devices(RECIPE, find_base("demo"), CAUSAL_LM, rows, free)
    assert chosen.shard_base == shared


def test_a_base_in_8_bits_cannot_be_shared(two_gpus):
    recipe = RECIPE.model_copy(update={"quantization": "int8", "shard_base": "on"})
    rows = Examples(prepare("demo", RECIPE).train)
    with pytest.raises(UserError) as error:
        autotune.choose_devices(recipe, find_base("demo"), CAUSAL_LM, rows, 10**12)
    assert error.value.code == "training.unavailable_here"


GROUP_TIMEOUT = """
import torch
from peft_space.training import distributed
distributed._state()
group = torch.distributed.distributed_c10d._get_default_group()
print(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())
"""


@pytest.mark.slow
def test_processes_wait_longer_for_each_other_than_a_download_takes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", GROUP_TIMEOUT],
        env=os.environ | address | places | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.split()[-1]) >= 3_600


def test_a_configuration_of_accelerate_does_not_reach_a_training(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        train_process.subprocess,
        "run",
        lambda command: started.append(command) or subprocess.CompletedProcess(command, 0),
    )
    assert train_process._launch(2, ["run"]) == 0
    assert "torch.distributed.run" in started[0]
    assert not [part for part in started[0] if "accelerate" in part]


@pytest.fixture
def main(monkeypatch):
    """Let a test call the main function: it neither watches its parent nor ignores Ctrl-C."""
    monkeypatch.setattr(train_process, "_end_with", lambda parent: None)
    monkeypatch.setattr(train_process, "signal", mock.Mock(spec=signal))
    monkeypatch.setenv("PEFT_SPACE_PROCESSES", "2")
    return train_process.main


def test_the_base_model_is_there_before_the_processes_start(main, tmp_path, monkeypatch):
    run, order = make_run(tmp_path / "run", "demo", RECIPE), []
    monkeypatch.setattr(
        "peft_space.training.prepare.prefetch", lambda fetched: order.append("download")
    )
    monkeypatch.setattr(train_process, "_launch", lambda *args: order.append("launch") or 0)
    assert main([str(run.directory)]) == 0
    assert order == ["download", "launch"]


def test_a_failed_download_is_an_event_of_the_run_and_starts_nothing(main, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "demo", RECIPE)

    def fail(fetched):
        raise UserError("models.unreachable", "The Hub cannot be reached.")

    monkeypatch.setattr("peft_space.training.prepare.prefetch", fail)
    monkeypatch.setattr(train_process, "_launch", lambda *args: pytest.fail("it was started"))
    assert main([str(run.directory)]) == 1
    assert run.history()[-1].code == "models.unreachable"
