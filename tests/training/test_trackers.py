"""Reporting to other tools: only where it was asked for, in the Trainer's own way, and told before training where it cannot be."""

import importlib.util

import pytest

from peft_space import settings
from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs.status import steps_of
from peft_space.training import trackers
from peft_space.training.prepare import make_run
from peft_space.training.train import train


def test_without_being_asked_nothing_is_reported(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "demo", Recipe())
    monkeypatch.delenv("PEFT_SPACE_REPORT_TO", raising=False)
    assert settings.report_to() == []
    assert trackers.arguments([], run)["report_to"] == "none"


def test_who_runs_the_app_can_ask_for_several(monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_REPORT_TO", "tensorboard, trackio,")
    assert settings.report_to() == ["tensorboard", "trackio"]


def test_an_unknown_tool_is_refused():
    with pytest.raises(
        UserError,
        match=r"cannot be reported to 'tensorbord'\. Choose of tensorboard, trackio, wandb",
    ):
        trackers.check(["tensorbord"])


def test_a_missing_package_is_told_with_its_installation_and_fails_the_run(tmp_path, run_command):
    missing = [name for name in trackers.TOOLS if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all of them are installed here")
    run = make_run(tmp_path / "run", "demo", Recipe())
    status, _, err = run_command("resume", run.directory, "--report-to", missing[0])
    assert status == 2
    assert f"pip install {missing[0]}" in err
    assert run.status() == "failed"
    assert f"pip install {missing[0]}" in run.history()[-1].message


@pytest.mark.slow
def test_tensorboard_gets_the_losses_and_no_token(tmp_path, monkeypatch):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="pip install tensorboard to run this",
    )
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_written")
    run = make_run(tmp_path / "run", "demo", Recipe(max_steps=3, eval_steps=3))
    with run.lock():
        train(run, report_to=["tensorboard"])
    [folder] = run.path("checkpoints", "runs").iterdir()
    told = accumulator.EventAccumulator(str(folder)).Reload()
    assert [(event.step, pytest.approx(event.value)) for event in told.Scalars("train/loss")] == [
        (step.step, step.loss) for step in steps_of(run.history())
    ]
    assert [event.step for event in told.Scalars("eval/loss")] == [3]
    files = [path for path in run.directory.rglob("*") if path.is_file()]
    assert all(b"hf_not_to_be_written" not in path.read_bytes() for path in files)
