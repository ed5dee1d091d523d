"""When training ends early, what ends it at once, and which adapter is kept: the same whether it was interrupted or not."""

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
from peft_space.export.checklist import read_checklist
from peft_space.recipe import Recipe
from peft_space.runs import checkpoints, events
from peft_space.runs.run import Run
from peft_space.runs.status import evaluations_of, selected_checkpoint, steps_of, warnings_of
from peft_space.training.early_stopping import LossMonitor
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from tests.fixtures import tiny_models
from tests.training.test_trainers import WORDS, labelled, preferred, rated

WILD = Recipe(
    learning_rate=0.1, max_steps=6, eval_steps=2, save_steps=6, batch_size=4, quantization="none"
)
"""So high a rate that the first evaluation is the best."""


def make(folder, recipe=WILD, like=None):
    """A new run; one that is `like` another needs not measure what is fastest here again."""
    run = make_run(folder, "demo", recipe)
    if like:
        shutil.copy(like.path("plan.json"), run.path("plan.json"))
    return run


def go(run, deadline=None):
    with run.lock():
        return train(run, deadline)


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


def test_the_adapter_of_the_best_evaluation_is_kept_and_told(whole):
    run = whole
    assert steps_of(run.history())[-1].step == 6
    best = min(evaluations_of(run.history()), key=lambda event: event.loss)
    assert best.step < 6
    assert selected_checkpoint(run.history()).step == best.step
    assert f"{best.loss:.4g}" in selected_checkpoint(run.history()).why
    kept = run.path("checkpoints", f"checkpoint-{best.step}")
    assert {path.name for path in run.path("checkpoints").iterdir()} == {kept.name, "checkpoint-6"}
    assert weights(run.adapter) == weights(kept)
    assert f"the adapter of step {best.step} was kept" in (run.adapter / "README.md").read_text()
    assert next(check for check in read_checklist(run) if "Best adapter" in check.title).done


def test_the_last_adapter_is_kept_where_the_recipe_says_so(wild, tmp_path):
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


def test_training_ends_when_the_held_out_loss_no_longer_falls(wild):
    assert isinstance(wild.history()[-1], events.Finished)
    assert [step.step for step in steps_of(wild.history())] == [1, 2, 3, 4]
    assert selected_checkpoint(wild.history()).step == 2
    assert (
        "ended at step 4 of 6: 1 evaluations in a row were no better"
        in selected_checkpoint(wild.history()).why
    )


def test_a_run_that_pauses_after_each_step_ends_at_the_same_step_with_the_same_adapter(
    wild, tmp_path
):
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
def test_a_run_that_was_killed_before_its_adapter_was_written_gets_the_same_one(
    wild, tmp_path, step
):
    run = interrupted(wild, tmp_path / "run")
    if step == 2:
        shutil.rmtree(run.path("checkpoints", "checkpoint-4"))
    assert go(run).step == 4
    assert [event.step for event in steps_of(run.history())] == [1, 2, 3, 4]
    assert weights(run.adapter) == weights(wild.adapter)


def test_a_run_that_was_killed_after_its_last_step_takes_none_beyond_it(whole, tmp_path):
    run = interrupted(whole, tmp_path / "run")
    assert go(run).step == 6
    assert steps_of(run.history()) == steps_of(whole.history())
    assert weights(run.adapter) == weights(whole.adapter)


def test_a_damaged_best_checkpoint_is_not_used_and_that_is_told(wild, tmp_path):
    run = interrupted(wild, tmp_path / "run")
    (run.path("checkpoints", "checkpoint-2") / "adapter_model.safetensors").write_bytes(b"!")
    go(run)
    assert selected_checkpoint(run.history()).step == 4
    assert (
        "step 2 had a lower held-out loss, but its checkpoint is damaged"
        in selected_checkpoint(run.history()).why
    )
    assert weights(run.adapter) == weights(run.path("checkpoints", "checkpoint-4"))


@pytest.mark.parametrize(("at", "kept"), [(3, 3), (5, 2)])
def test_a_run_that_is_stopped_keeps_its_newest_adapter_unless_an_earlier_one_was_better(
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


def test_whichever_checkpoint_is_resumed_from_its_best_one_is_there(wild, tmp_path):
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


def test_a_loss_that_is_no_number_ends_the_training_with_advice(tmp_path):
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor * 1e30 for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    run = make_run(tmp_path / "run", "demo", WILD.model_copy(update={"base_model": str(folder)}))
    with pytest.raises(
        UserError,
        match=r"Step 1: the loss is not a finite number.* the base model itself gives no number",
    ):
        go(run)
    assert run.status() == "failed"
    assert len(steps_of(run.history())) == 1
    assert not list(run.path("checkpoints").glob("checkpoint-*"))


def test_dora_on_a_base_with_rows_of_zeros_as_the_built_in_one_has_is_told_at_once(wild, tmp_path):
    run = make(tmp_path / "run", WILD.model_copy(update={"method": "dora"}), like=wild)
    with pytest.raises(
        UserError,
        match=r"DoRA divides each row of a layer by its length, and .* has .* rows of zeros",
    ):
        go(run)


def test_a_divergence_is_warned_of_once_also_after_a_resume():
    state = TrainerState()
    watch = LossMonitor("lora", 0.1, False, state)
    warned = []
    for step, loss in enumerate([2.0] * 5 + [6.0] * 40, 1):
        warned.append(watch.look(step, loss, 1.0))
        state.log_history.append({"step": step, "loss": loss})
    [only] = [event for event in warned if event]
    assert only.step == 35
    assert LossMonitor("lora", 0.1, False, state).look(46, 6.0, 1.0) is None


def test_a_gradient_that_is_no_number_ends_a_training_except_in_float16_where_such_a_step_is_skipped():
    with pytest.raises(UserError, match="Step 1: the gradient is not a finite number"):
        LossMonitor("lora", 0.1, False, TrainerState()).look(1, 2.0, math.inf)
    with pytest.raises(
        UserError, match=r"Step 2: the loss .* lower learning_rate, such as 0\.01 \(it is 0\.1\)"
    ):
        LossMonitor("lora", 0.1, False, TrainerState()).look(2, math.nan, 1.0)
    watch = LossMonitor("lora", 0.1, True, TrainerState())
    for step in range(1, 30):
        assert watch.look(step, 2.0, math.inf) is None
    with pytest.raises(UserError, match="one with bfloat16"):
        watch.look(30, 2.0, math.inf)


@pytest.mark.slow
def test_a_training_that_diverges_is_warned_of_once_and_goes_on(wild, tmp_path):
    run = make(tmp_path / "run", Recipe(learning_rate=0.1, max_steps=40, eval_steps=40), like=wild)
    go(run)
    [warned] = warnings_of(run.history())
    assert "stays high" in warned.what
    assert "lower learning_rate, such as 0.01" in warned.advice
    assert run.status() == "finished"


def test_early_stopping_without_held_out_rows_is_refused_before_training(tmp_path, write):
    rows = write(
        "rows.json", [{"prompt": f"say {number}", "completion": "yes"} for number in range(4)]
    )
    with pytest.raises(UserError, match="early_stopping_patience needs held-out rows"):
        make_run(tmp_path / "run", rows, Recipe(early_stopping_patience=2, eval_split=0))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "rslora", "pissa", "loftq"])
def test_the_kept_adapter_has_the_loss_that_it_was_kept_for_whatever_the_method(method, tmp_path):
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
def test_the_kept_adapter_is_that_of_its_checkpoint_whatever_the_task(task, tmp_path, write):
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
def test_a_training_that_is_killed_at_many_moments_keeps_the_same_adapter(wild, tmp_path):
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
