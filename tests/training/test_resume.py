"""Training resumes only from complete checkpoints with the same rows, recipe and libraries."""

import json
import random
import shutil
import time

import pyarrow as pa
import pytest

from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs import checkpoints, events
from peft_space.runs.run import Run
from peft_space.training.provenance import check_provenance
from peft_space.training.train import TrainOptions, train
from peft_space.web.render.train import can_go_on_anyway
from tests.fixtures import crash_harness


@pytest.fixture(scope="module")
def paused_run(tmp_path_factory):
    """A tiny run with two checkpoints. Not to be changed."""
    kit = crash_harness.Kit(tmp_path_factory.mktemp("paused"))
    run = kit.run("run", "causal-lm", random.Random(0))
    for _ in range(2):
        one_more_step(run)
    return run


@pytest.fixture
def run(paused_run, tmp_path):
    return Run(shutil.copytree(paused_run.directory, tmp_path / "run"))


def one_more_step(run, ignore_mismatch=False):
    options = TrainOptions(deadline=time.time(), ignore_mismatch=ignore_mismatch)
    with run.lock():
        return train(Run(run.directory), options)


def notices_of(run):
    return [
        f"{event.what} {event.why}" for event in run.history() if isinstance(event, events.Notice)
    ]


def change_recipe(run, **fields):
    recipe = json.loads(run.path("recipe.json").read_text())
    run.path("recipe.json").write_text(json.dumps(recipe | fields))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(run):
    (run.path("checkpoints", "checkpoint-2") / "optimizer.pt").unlink()
    one_more_step(run)
    assert "Checkpoint 2" in notices_of(run)[-1]
    assert "optimizer.pt" in notices_of(run)[-1]
    assert run.history()[-1].step == 2
    assert checkpoints.damage(run.path("checkpoints", "checkpoint-2")) is None


def test_a_changed_recipe_needs_permission_to_resume(run):
    change_recipe(run, batch_size=2)
    with pytest.raises(UserError, match=r"Checkpoint 2 .*batch_size was \d and is 2") as error:
        one_more_step(run)
    assert error.value.code == run.history()[-1].code == "training.checkpoint_mismatch"
    assert run.status() == "failed"
    assert can_go_on_anyway(run.history())
    assert one_more_step(run, ignore_mismatch=True).step == 3
    assert "step 2" in notices_of(run)[-1]
    assert "batch_size was" in notices_of(run)[-1]
    assert one_more_step(run).step == 4, "the new checkpoint has the current recipe"


def test_changed_rows_are_reported(run):
    path = run.path("data", "rows.arrow")
    table = pa.ipc.open_file(path).read_all()
    lines = [line.replace("red", "blue") for line in table["row"].to_pylist()]
    changed = table.set_column(1, "row", pa.array(lines, table.schema.field("row").type))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(changed)
    with pytest.raises(UserError, match="data folder") as error:
        one_more_step(run)
    assert error.value.code == "training.checkpoint_mismatch"


@pytest.fixture(scope="module")
def origin(paused_run):
    return checkpoints.checkpoint_provenance(checkpoints.in_order(paused_run)[-1])


@pytest.mark.parametrize(
    "library", ["torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes"]
)
def test_a_changed_library_version_is_named(origin, library):
    now = origin.model_copy(update={"versions": origin.versions | {library: "99.1"}})
    with pytest.raises(UserError, match=f"{library} was .* and is 99.1") as error:
        check_provenance(2, origin, now, ignore_mismatch=False)
    assert error.value.code == "training.checkpoint_mismatch"
    assert check_provenance(2, origin, now, ignore_mismatch=True) == [
        f"{library} was {origin.versions[library]} and is 99.1"
    ]


def test_changed_tokens_of_the_same_rows_are_reported(origin):
    now = origin.model_copy(update={"tokens": "of another tokenizer"})
    with pytest.raises(UserError, match="tokens") as error:
        check_provenance(2, origin, now, ignore_mismatch=False)
    assert error.value.code == "training.checkpoint_mismatch"


@pytest.mark.parametrize(
    "fields", [{"lora_rank": 8}, {"learning_rate": 0.01}, {"method": "dora"}], ids=str
)
def test_values_that_a_checkpoint_contains_cannot_be_changed(origin, fields):
    now = origin.model_copy(update={"recipe": origin.recipe | fields})
    with pytest.raises(UserError, match=f"{next(iter(fields))} was ") as error:
        check_provenance(2, origin, now, ignore_mismatch=True)
    assert error.value.code == "training.checkpoint_incompatible"


def test_every_recipe_field_is_compared_except_those_without_effect(origin):
    assert set(Recipe.model_fields) - set(origin.recipe) == {
        "base_model",
        "revision",
        "high_rank_reason",
        "eval_split",
        "save_steps",
    }


def test_fields_without_effect_may_be_changed(run):
    change_recipe(run, save_steps=7, high_rank_reason="no reason")
    assert one_more_step(run).step == 3


def test_a_run_killed_after_its_last_checkpoint_takes_no_further_step(run):
    change_recipe(run, max_steps=2)
    assert one_more_step(run, ignore_mismatch=True) == run.history()[-1]
    assert (run.history()[-1].event, run.history()[-1].step) == ("Finished", 2)
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == (
        run.path("checkpoints", "checkpoint-2", "adapter_model.safetensors").read_bytes()
    )


def test_a_training_that_needs_more_disk_space_is_rejected(run):
    with pytest.raises(UserError, match=r"GiB.* GiB"):
        checkpoints.ensure_disk_space(run, 10**15, 0)


def test_a_partial_event_on_a_full_disk_does_not_hide_later_ones(tmp_path, paused_run):
    try:
        with crash_harness.small_disk(tmp_path / "disk", 0.25) as disk:
            shutil.copytree(
                paused_run.directory, disk / "run", ignore=shutil.ignore_patterns("checkpoints")
            )
            run = Run(disk / "run")
            before = run.history()
            with pytest.raises(OSError, match="No space left"):
                run.append(events.Failed(message="x" * 300_000))
            run.append(events.Failed(message="short"))
            assert run.history()[:-1] == before
    except PermissionError as why:
        pytest.skip(str(why))


@pytest.mark.slow
def test_the_same_recipe_rows_and_seed_give_the_same_adapter_bytes(tmp_path, run_command):
    recipe = '{"max_steps": 3, "batch_size": 4}'
    adapters = []
    for name in ("one", "other"):
        status, _, _ = run_command(
            "train", "demo", "--out", str(tmp_path / name), "--recipe", recipe
        )
        assert status == 0
        adapters.append(
            {
                path.name: path.read_bytes()
                for path in (tmp_path / name / "adapter").iterdir()
                if path.name != "README.md"
            }
        )
    assert adapters[0]["adapter_model.safetensors"]
    assert adapters[0] == adapters[1]
