"""Exports the adapter alone, as PEFT writes it. The run stays as it is."""

import json
import re
import shutil
import tempfile
from pathlib import Path

from peft_space import durable
from peft_space.data.check import data_of
from peft_space.errors import UserError
from peft_space.export.card import write_card
from peft_space.run import Run
from peft_space.training.plan import read_plan


def export_adapter(run: Run, out: str | Path) -> Path:
    """Copy the run's adapter into the new folder `out`, whole or not at all, with a README of the run's latest figures.

    Raises UserError where there is no adapter, it names no base, or `out` already holds something.
    """
    target = Path(out).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{out} already exists and is not empty. Choose another folder to export to.")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        copy_adapter(run, aside)
        aside.chmod(0o755)  # mkdtemp makes it private
        durable.rename(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def zip_adapter(run: Run, folder: str | Path) -> Path:
    """The same as one .zip file in `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        inner = Path(scratch, "adapter")
        inner.mkdir()
        copy_adapter(run, inner)
        name = re.sub(r"[^\w.-]+", "-", run.name).strip("-.")[:60] or run.directory.name
        return Path(shutil.make_archive(str(Path(folder, f"{name}-adapter")), "zip", scratch, "adapter"))


def copy_adapter(run: Run, folder: Path) -> None:
    """Copy the adapter's files into the existing `folder`. Raises UserError where the adapter names no base model."""
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    if not config.get("base_model_name_or_path"):
        raise UserError("The adapter does not name its base model, so nobody could load it. Train it again.")
    shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
    plan = read_plan(run)
    assert plan is not None, "an adapter is only saved by a training, which writes its plan first"
    write_card(run, folder, data_of(run), plan)
