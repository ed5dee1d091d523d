"""Training is reported to trackers on request, and a missing tracker is an early error."""

import importlib.util

import pytest

from peft_space import settings
from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs.events import steps_of
from peft_space.training.callbacks import TRACKERS, check_trackers, tracker_arguments
from peft_space.training.prepare import make_run
from peft_space.training.train import TrainOptions, train


@pytest.mark.slow
def test_nothing_is_reported_by_default(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "demo", Recipe())
    monkeypatch.delenv("PEFT_SPACE_REPORT_TO", raising=False)
    assert settings.report_to() == []
    assert tracker_arguments([], run)["report_to"] == "none"


def test_several_trackers_can_be_configured(monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_REPORT_TO", "tensorboard, trackio,")
    assert settings.report_to() == ["tensorboard", "trackio"]


def test_an_unknown_tracker_is_rejected():
    with pytest.raises(UserError) as error:
        check_trackers(["tensorbord"])
    assert error.value.code == "training.tracker_unknown"
    assert "'tensorbord'" in str(error.value)


@pytest.mark.slow
def test_a_missing_package_fails_the_run_and_names_its_installation(tmp_path, run_command):
    missing = [name for name in TRACKERS if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all of them are installed here")
    run = make_run(tmp_path / "run", "demo", Recipe())
    status, _, err = run_command("resume", run.directory, "--report-to", missing[0])
    assert status == 2
    assert f"pip install {missing[0]}" in err
    assert run.status() == "failed"
    assert run.history()[-1].code == "training.tracker_not_installed"
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
        train(run, TrainOptions(report_to=["tensorboard"]))
    [folder] = run.path("checkpoints", "runs").iterdir()
    recorded = accumulator.EventAccumulator(str(folder)).Reload()
    assert [
        (event.step, pytest.approx(event.value)) for event in recorded.Scalars("train/loss")
    ] == [(step.step, step.loss) for step in steps_of(run.history())]
    assert [event.step for event in recorded.Scalars("eval/loss")] == [3]
    files = [path for path in run.directory.rglob("*") if path.is_file()]
    assert all(b"hf_not_to_be_written" not in path.read_bytes() for path in files)
