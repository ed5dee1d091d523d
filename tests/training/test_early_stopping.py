"""Training ends early and keeps the best adapter, whether it was interrupted or not."""

import math
import shutil
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from peft_space import operations
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.export.readiness import describe_adapter, read_checklist
from peft_space.recipe import Recipe
from peft_space.runs import checkpoints, events
from peft_space.runs.events import evaluations_of, selected_checkpoint, steps_of, warnings_of
from peft_space.runs.run import Run
from peft_space.training.early_stopping import LossMonitor
from peft_space.training.prepare import make_run
from peft_space.training.train import TrainOptions, train
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import WORDS, labelled, preferred, rated

WILD = Recipe(
    learning_rate=0.1, max_steps=6, eval_steps=2, save_steps=6, batch_size=4, quantization="none"
)
"""The learning rate is so high that the first evaluation is the best."""


def make(folder, recipe=WILD, like=None):
    """A new run, with the plan of the run `like`."""
    run = make_run(folder, "demo", recipe)
    if like:
        shutil.copy(like.path("plan.json"), run.path("plan.json"))
    return run


def go(run, deadline=None):
    with run.lock():
        return train(run, TrainOptions(deadline=deadline, on_adapter_saved=describe_adapter))


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """A run that ended early; its second evaluation was worse than its first. Not to be changed."""
    run = make(
        tmp_path_factory.mktemp("wild") / "run",
        WILD.model_copy(update={"early_stopping_patience": 1, "save_steps": 4}),
    )
    go(run)
    return run


@pytest.fixture(scope="module")
def whole(wild, tmp_path_factory):
    """The same without early stopping. Not to be changed."""
    run = make(tmp_path_factory.mktemp("whole") / "run", like=wild)
    go(run)
    return run


def interrupted(run, folder):
    """A copy of a run, as if it had been killed before its adapter was written."""
    copy = Run(shutil.copytree(run.directory, folder))
    shutil.rmtree(copy.adapter)
    copy.append(events.Started(attempt=1, from_step=0, total_steps=6))
    return copy


@pytest.mark.slow
def test_the_adapter_of_the_best_evaluation_is_kept_and_reported(whole):
    run = whole
    assert steps_of(run.history())[-1].step == 6
    best = min(evaluations_of(run.history()), key=lambda event: event.loss)
    assert best.step < 6
    assert selected_checkpoint(run.history()).step == best.step
    assert f"{best.loss:.4g}" in selected_checkpoint(run.history()).why
    kept = run.path("checkpoints", f"checkpoint-{best.step}")
    assert {path.name for path in run.path("checkpoints").iterdir()} == {kept.name, "checkpoint-6"}
    assert weights(run.adapter) == weights(kept)
    assert f"adapter of step {best.step}" in (run.adapter / "README.md").read_text()
    assert next(check for check in read_checklist(run) if "Best adapter" in check.title).done


@pytest.mark.slow
def test_the_last_adapter_is_kept_if_the_recipe_says_so(wild, tmp_path):
    run = make(
        tmp_path / "run",
        WILD.model_copy(update={"load_best_model_at_end": False, "max_steps": 4, "save_steps": 4}),
        like=wild,
    )
    go(run)
    assert selected_checkpoint(run.history()).step == 4
    assert weights(run.adapter) == weights(run.path("checkpoints", "checkpoint-4"))
    assert not run.path("checkpoints", "checkpoint-2").exists()
    assert not next(check for check in read_checklist(run) if "Best adapter" in check.title).done


def test_training_ends_when_the_evaluation_loss_no_longer_falls(wild):
    assert isinstance(wild.history()[-1], events.Finished)
    assert [step.step for step in steps_of(wild.history())] == [1, 2, 3, 4]
    assert selected_checkpoint(wild.history()).step == 2
    assert "step 4 of 6" in selected_checkpoint(wild.history()).why


@pytest.mark.slow
def test_a_run_that_pauses_after_each_step_keeps_the_same_adapter(wild, tmp_path):
    run = make(tmp_path / "run", wild.recipe, like=wild)
    outcomes = []
    while not outcomes or isinstance(outcomes[-1], events.Paused):
        outcomes.append(go(run, deadline=time.time()))
    assert [type(outcome).__name__ for outcome in outcomes] == ["Paused"] * 4 + ["Finished"]
    assert [(step.step, step.loss) for step in steps_of(run.history())] == [
        (step.step, step.loss) for step in steps_of(wild.history())
    ]
    assert selected_checkpoint(run.history()).step == 2
    assert weights(run.adapter) == weights(wild.adapter)


@pytest.mark.parametrize("step", [4, 2])
@pytest.mark.slow
def test_a_run_killed_before_its_adapter_was_written_gets_the_same_one(wild, tmp_path, step):
    run = interrupted(wild, tmp_path / "run")
    if step == 2:
        shutil.rmtree(run.path("checkpoints", "checkpoint-4"))
    assert go(run).step == 4
    assert [event.step for event in steps_of(run.history())] == [1, 2, 3, 4]
    assert weights(run.adapter) == weights(wild.adapter)


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_takes_no_further_step(whole, tmp_path):
    run = interrupted(whole, tmp_path / "run")
    assert go(run).step == 6
    assert steps_of(run.history()) == steps_of(whole.history())
    assert weights(run.adapter) == weights(whole.adapter)


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_not_used_and_is_reported(wild, tmp_path):
    run = interrupted(wild, tmp_path / "run")
    (run.path("checkpoints", "checkpoint-2") / "adapter_model.safetensors").write_bytes(b"!")
    go(run)
    assert selected_checkpoint(run.history()).step == 4
    assert "Step 2" in selected_checkpoint(run.history()).why
    assert "damaged" in selected_checkpoint(run.history()).why
    assert weights(run.adapter) == weights(run.path("checkpoints", "checkpoint-4"))


@pytest.mark.parametrize(("at", "kept"), [(3, 3), (5, 2)])
@pytest.mark.sample(1)
@pytest.mark.slow
def test_a_stopped_run_keeps_its_latest_adapter_unless_an_earlier_one_was_better(
    wild, tmp_path, monkeypatch, at, kept
):
    run, append = make(tmp_path / "run", like=wild), Run.append

    def stop(run, event):
        append(run, event)
        if isinstance(event, events.Step) and event.step == at - 1:
            run.request_stop("stop")

    monkeypatch.setattr(Run, "append", stop)
    assert go(run).step == at
    assert selected_checkpoint(run.history()).step == kept
    assert weights(run.adapter) == weights(run.path("checkpoints", f"checkpoint-{kept}"))


def test_every_checkpoint_that_is_kept_has_its_best_one(wild, tmp_path):
    run = interrupted(wild, tmp_path / "run")
    for step in (6, 8, 10, 12):
        shutil.copytree(
            run.path("checkpoints", "checkpoint-4"), run.path("checkpoints", f"checkpoint-{step}")
        )
    checkpoints.remove_all_but_newest(run, {8: 6, 10: 2, 12: 12}.get)
    assert {checkpoints.step_of(folder) for folder in run.path("checkpoints").iterdir()} == {
        2,
        10,
        12,
    }


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor * 1e30 for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    run = make_run(tmp_path / "run", "demo", WILD.model_copy(update={"base_model": str(folder)}))
    with pytest.raises(UserError) as error:
        go(run)
    assert error.value.code == run.history()[-1].code == "training.not_finite"
    assert "Step 1: the loss" in str(error.value)
    assert run.status() == "failed"
    assert len(steps_of(run.history())) == 1
    assert not list(run.path("checkpoints").glob("checkpoint-*"))


def test_dora_on_a_base_model_with_rows_of_zeros_is_rejected(wild, tmp_path):
    run = make(tmp_path / "run", WILD.model_copy(update={"method": "dora"}), like=wild)
    with pytest.raises(UserError, match="DoRA"):
        go(run)
    assert not steps_of(run.history())


def test_a_divergence_gets_one_warning_even_after_a_resume():
    state = TrainerState()
    monitor = LossMonitor("lora", 0.1, False, state)
    warnings = []
    for step, loss in enumerate([2.0] * 5 + [6.0] * 40, 1):
        warnings.append(monitor.check_step(step, loss, 1.0))
        state.log_history.append({"step": step, "loss": loss})
    [only] = [event for event in warnings if event]
    assert only.step == 35
    assert LossMonitor("lora", 0.1, False, state).check_step(46, 6.0, 1.0) is None


@pytest.mark.parametrize(
    ("step", "loss", "grad_norm", "parts"),
    [
        (1, 2.0, math.inf, ["Step 1: the gradient"]),
        (2, math.nan, 1.0, ["Step 2: the loss", "0.01", "0.1"]),
    ],
)
def test_a_gradient_or_loss_that_is_not_finite_ends_training(step, loss, grad_norm, parts):
    with pytest.raises(UserError) as error:
        LossMonitor("lora", 0.1, False, TrainerState()).check_step(step, loss, grad_norm)
    assert error.value.code == "training.not_finite"
    assert all(part in str(error.value) for part in parts)


def test_float16_skips_single_steps_with_a_gradient_that_is_not_finite():
    monitor = LossMonitor("lora", 0.1, True, TrainerState())
    for step in range(1, 30):
        assert monitor.check_step(step, 2.0, math.inf) is None
    with pytest.raises(UserError) as error:
        monitor.check_step(30, 2.0, math.inf)
    assert error.value.code == "training.not_finite"
    assert "float16" in str(error.value)


@pytest.mark.slow
def test_a_training_that_diverges_gets_one_warning_and_continues(wild, tmp_path):
    run = make(tmp_path / "run", Recipe(learning_rate=0.1, max_steps=40, eval_steps=40), like=wild)
    go(run)
    [warning] = warnings_of(run.history())
    assert "0.01" in warning.advice
    assert run.status() == "finished"


def test_early_stopping_without_held_out_rows_is_rejected(tmp_path, write):
    rows = write(
        "rows.json", [{"prompt": f"say {number}", "completion": "yes"} for number in range(4)]
    )
    with pytest.raises(UserError) as error:
        make_run(tmp_path / "run", rows, Recipe(early_stopping_patience=2, eval_split=0))
    assert error.value.code == "training.no_held_out_rows"
    assert "early_stopping_patience" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "rslora", "pissa", "loftq"])
def test_the_kept_adapter_has_the_lowest_loss_for_every_method(method, tmp_path):
    recipe = WILD.model_copy(
        update={"method": method, "quantization": "nf4" if method == "loftq" else "none"}
    )
    run = make(tmp_path / "run", recipe)
    go(run)
    losses = {event.step: event.loss for event in evaluations_of(run.history())}
    assert selected_checkpoint(run.history()).step == min(losses, key=losses.get) < 6
    assert operations.evaluate(str(run.directory))["adapter"]["loss"] == pytest.approx(
        min(losses.values()), rel=0.02
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sequence-classification", "dpo", "kto"])
def test_the_kept_adapter_is_that_of_its_checkpoint_for_every_task(task, tmp_path, write):
    rows = {"sequence-classification": labelled, "dpo": preferred, "kto": rated}[task]()
    base = (
        tiny_models.bert(tmp_path / "bert", WORDS) if task == "sequence-classification" else "demo"
    )
    recipe = WILD.model_copy(update={"base_model": base, "max_steps": 12, "save_steps": 12})
    run = make_run(tmp_path / "run", write("rows.json", rows), recipe)
    go(run)
    kept = selected_checkpoint(run.history()).step
    assert weights(run.adapter) == weights(run.path("checkpoints", f"checkpoint-{kept}"))
    losses = {event.step: event.loss for event in evaluations_of(run.history())}
    assert kept == min(losses, key=losses.get)


@pytest.mark.slow
def test_a_training_killed_at_many_moments_keeps_the_same_adapter(wild, tmp_path):
    run = make(tmp_path / "run", wild.recipe, like=wild)
    for number in range(12):
        process = subprocess.Popen(
            [sys.executable, "-m", "peft_space", "resume", str(run.directory)]
        )
        start, deadline = len(run.history()), time.time() + 60
        while (
            len(run.history()) <= start + number
            and process.poll() is None
            and time.time() < deadline
        ):
            time.sleep(0.01)
        process.kill()
        process.wait()
        if run.status() == "finished":
            break
    if run.status() != "finished":
        go(run)
    assert selected_checkpoint(run.history()).step == 2
    assert [(step.step, step.loss) for step in steps_of(run.history())] == [
        (step.step, step.loss) for step in steps_of(wild.history())
    ]
    assert weights(run.adapter) == weights(wild.adapter)
