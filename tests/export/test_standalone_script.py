"""A standalone script trains the same adapter in an environment without this package."""

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
    """The interpreter of a new environment with the libraries but without this package."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    records = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def start(python: Path, *arguments: object, folder: Path) -> subprocess.Popen:
    """Start a process that finds neither this checkout nor this machine's caches."""
    environment = dict(os.environ)
    for name in ("PYTHONPATH", "PEFT_SPACE_HOME"):
        environment.pop(name, None)
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    command = [str(python), *map(str, arguments)]
    options = {"cwd": folder, "env": environment, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **options)


@pytest.mark.slow
def test_it_trains_the_same_adapter_byte_for_byte(fresh_python, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = make_run(tmp_path / "run", str(rows), RECIPE)
    script = standalone_script.write_script(run, tmp_path / "elsewhere" / "train.py")
    process = start(fresh_python, script, folder=script.parent)
    assert main(["resume", str(run.directory)]) == 0
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    other = Run(script.with_name("train-run"))
    assert other.status() == "finished"
    names = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json")
    for name in (*names, "chat_template.jinja"):
        assert (other.adapter / name).read_bytes() == (run.adapter / name).read_bytes()


@pytest.mark.slow
def test_two_machines_that_share_a_folder_train_together(fresh_python, rows, tmp_path):
    run = make_run(tmp_path / "run", str(rows), RECIPE)
    script = standalone_script.write_script(run, tmp_path / "train.py")
    launch = (
        "-m accelerate.commands.launch --num_processes 2 --num_machines 2 --multi_gpu "
        "--mixed_precision no --dynamo_backend no "
        "--main_process_ip 127.0.0.1 --main_process_port 29571 --machine_rank"
    ).split()
    processes = [start(fresh_python, *launch, rank, script, folder=tmp_path) for rank in (0, 1)]
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors
    shared = Run(tmp_path / "train-run")
    assert shared.status() == "finished"
    assert shared.adapter.is_dir()
    assert json.loads(shared.path("plan.json").read_text())["num_processes"] == 2


def test_its_header_pins_versions_and_a_run_name_cannot_add_code(rows, tmp_path):
    run = make_run(tmp_path / "run", str(rows), RECIPE)
    run.rename('a"""\nimport os; os._exit(7)  # \\')
    text = standalone_script.write_script(run, tmp_path / "train.py").read_text()
    header = '# /// script\n# requires-python = ">=3.11"\n# dependencies = [\n#   "torch=='
    assert text.startswith(header)
    assert "+" not in text.split("# ]")[0]
    scope: dict = {"__name__": "not_main"}
    exec(compile(text, "train.py", "exec"), scope)
    assert run.name == scope["NAME"]


def test_it_does_not_touch_the_folder_of_another_script(rows, tmp_path):
    run = make_run(tmp_path / "run", str(rows), RECIPE)
    script = standalone_script.write_script(run, tmp_path / "train.py")
    (tmp_path / "train-run").mkdir()
    (tmp_path / "train-run" / "notes.txt").write_text("mine")
    process = start(Path(sys.executable), script, folder=tmp_path)
    assert str(tmp_path / "train-run") in process.communicate()[1]
    assert process.returncode == 1
    assert (tmp_path / "train-run" / "notes.txt").read_text() == "mine"


def test_a_damaged_script_does_not_run(rows, tmp_path):
    run = make_run(tmp_path / "run", str(rows), RECIPE)
    script = standalone_script.write_script(run, tmp_path / "train.py")
    text = script.read_text()
    place = text.index('PACKED = """') + 5_000
    other = "B" if text[place] == "A" else "A"
    script.write_text(text[:place] + other + text[place + 1 :])
    process = start(Path(sys.executable), script, folder=tmp_path)
    assert "damaged" in process.communicate()[1]
    assert not (tmp_path / "train-run").exists()


@pytest.mark.parametrize(
    ("name", "code"), [("train.py", "export.file_exists"), ("train", "export.not_a_script")]
)
@pytest.mark.sample(1)
def test_it_needs_a_new_name_that_ends_in_py(rows, tmp_path, name, code):
    (tmp_path / "train.py").write_text("mine")
    with pytest.raises(UserError) as error:
        standalone_script.write_script(
            make_run(tmp_path / "run", str(rows), RECIPE), tmp_path / name
        )
    assert error.value.code == code
    assert (tmp_path / "train.py").read_text() == "mine"
