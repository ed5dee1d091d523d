"""A run as one script: it trains in an environment that does not have this package, alone or shared, and what comes out is what comes out here."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from peft_space.__main__ import main
from peft_space.errors import UserError
from peft_space.export import standalone_script
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from peft_space.training.prepare import make_run

RECIPE = Recipe(max_steps=3, compute_dtype="float32", max_length=96, lora_rank=4, eval_steps=3)


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory):
    """An interpreter of an environment of its own, which has the libraries and not this package."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"question": f"What is {n}?", "answer": f"It is {n}."}) + "\n"
            for n in range(40)
        )
    )
    return path


def started(python: Path, *arguments: object, folder: Path) -> subprocess.Popen:
    """A process that finds nothing of this checkout, nor of what this machine has kept."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "PEFT_SPACE_HOME"}
    }
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    return subprocess.Popen(
        [str(python), *map(str, arguments)],
        cwd=folder,
        env=inherited | own,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_trains_in_an_environment_of_its_own_to_the_same_adapter_byte_for_byte(
    fresh_python, rows, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = make_run(tmp_path / "run", str(rows), RECIPE)
    written = standalone_script.write_script(run, tmp_path / "elsewhere" / "train.py")
    there = started(fresh_python, written, folder=written.parent)
    assert main(["resume", str(run.directory)]) == 0
    errors = there.communicate(timeout=120)[1]
    assert there.returncode == 0, errors
    made = Run(written.with_name("train-run"))
    assert made.status() == "finished"
    for name in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    ):
        assert (made.adapter / name).read_bytes() == (run.adapter / name).read_bytes()


@pytest.mark.slow
def test_two_machines_that_share_a_folder_train_together(fresh_python, rows, tmp_path):
    written = standalone_script.write_script(
        make_run(tmp_path / "run", str(rows), RECIPE), tmp_path / "train.py"
    )
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        2,
        "--num_machines",
        2,
        "--multi_gpu",
        "--mixed_precision",
        "no",
    ]
    launch += [
        "--dynamo_backend",
        "no",
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        29_571,
    ]
    both = [
        started(fresh_python, *launch, "--machine_rank", rank, written, folder=tmp_path)
        for rank in (0, 1)
    ]
    for one in both:
        errors = one.communicate(timeout=300)[1]
        assert one.returncode == 0, errors
    made = Run(tmp_path / "train-run")
    assert made.status() == "finished"
    assert made.adapter.is_dir()
    assert json.loads(made.path("plan.json").read_text())["num_processes"] == 2


def test_its_head_pins_what_the_run_was_trained_with_and_a_name_cannot_write_code(rows, tmp_path):
    run = make_run(tmp_path / "run", str(rows), RECIPE)
    run.rename('a"""\nimport os; os._exit(7)  # \\')
    written = standalone_script.write_script(run, tmp_path / "train.py")
    text = written.read_text()
    assert text.startswith(
        '# /// script\n# requires-python = ">=3.11"\n# dependencies = [\n#   "torch=='
    )
    assert "+" not in text.split("# ]")[0]
    scope: dict = {"__name__": "looked_at"}
    exec(compile(text, "train.py", "exec"), scope)
    assert run.name == scope["NAME"]


def test_a_script_that_was_changed_or_meets_another_folder_says_so(rows, tmp_path):
    run = make_run(tmp_path / "run", str(rows), RECIPE)
    written = standalone_script.write_script(run, tmp_path / "train.py")
    (tmp_path / "train-run").mkdir()
    (tmp_path / "train-run" / "notes.txt").write_text("mine")
    errors = started(Path(sys.executable), written, folder=tmp_path).communicate()[1]
    assert "is not of this script" in errors
    assert (tmp_path / "train-run" / "notes.txt").read_text() == "mine"
    damaged = written.with_name("damaged.py")
    text = written.read_text()
    place = text.index('PACKED = """') + 5_000
    damaged.write_text(text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :])
    assert (
        "This script is damaged"
        in started(Path(sys.executable), damaged, folder=tmp_path).communicate()[1]
    )
    with pytest.raises(UserError, match="exists already"):
        standalone_script.write_script(run, written)
    with pytest.raises(UserError, match=r"ends in \.py"):
        standalone_script.write_script(run, tmp_path / "train")
