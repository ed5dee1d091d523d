"""A run that an earlier version wrote still opens; a change of the format is noticed here.

tests/fixtures/stored_run is a run of format 2 without checkpoints and adapter. If a test fails
because the format changed on purpose: raise `FORMAT` in runs/run.py, and write the run again with
`peft_space train ROWS --out RUN_DIR` (6 rows, max_steps 3, eval_split 0.4).
"""

import json
import shutil
from pathlib import Path

import pytest

from peft_space.data.dataset import load_run_data
from peft_space.errors import UserError
from peft_space.models.loading import task_spec_for
from peft_space.runs import events
from peft_space.runs.events import evaluations_of, selected_checkpoint, steps_of
from peft_space.runs.plan import read_plan
from peft_space.runs.run import FORMAT, Run

STORED = Path(__file__).parents[1] / "fixtures" / "stored_run"


@pytest.fixture
def run(tmp_path):
    return Run(shutil.copytree(STORED, tmp_path / "run"))


def test_a_stored_run_has_its_status_steps_and_selected_checkpoint(run):
    history = run.history()
    assert (run.status(), run.about["format"]) == ("finished", FORMAT)
    assert [event.step for event in steps_of(history)] == [1, 2, 3]
    assert [event.step for event in evaluations_of(history)] == [2, 3]
    assert selected_checkpoint(history).step == 3
    assert isinstance(history[-1], events.Finished)


def test_a_stored_run_has_its_recipe_plan_task_and_rows(run):
    plan, data = read_plan(run), load_run_data(run)
    assert (run.recipe.max_steps, run.recipe.lora_rank) == (3, 2)
    assert (plan.compute_dtype, plan.num_processes, plan.max_length) == ("float32", 1, 64)
    assert task_spec_for(run).task == "causal-lm"
    assert (len(data.train), len(data.held_out), data.num_rows) == (4, 2, 6)
    rows = [row for rows in (data.train, data.held_out) for row in rows]
    texts = {message["content"] for row in rows for message in row.messages}
    assert texts == {f"What is {n}?" for n in range(6)} | {f"It is {n}." for n in range(6)}


@pytest.mark.parametrize("written", [None, 0, 1, "2"])
def test_a_run_of_another_format_is_rejected_with_its_format_and_what_to_do(run, written):
    about = {**run.about, "format": written}
    if written is None:
        del about["format"]
    run.path("run.json").write_text(json.dumps(about))
    with pytest.raises(UserError) as error:
        Run(run.directory)
    assert error.value.code == "runs.other_format"
    assert repr(written) in str(error.value)
    assert str(run.directory) in str(error.value)
