"""The adapter alone, as PEFT writes it. The run stays as it is."""

import json
import shutil
from pathlib import Path

from peft_space.data.dataset import load_run_data
from peft_space.errors import UserError
from peft_space.export.model_card import write_card
from peft_space.models.loading import base_of
from peft_space.models.resolve import load_tokenizer
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run


def copy_adapter(run: Run, folder: Path) -> None:
    """Copy the adapter's files into the existing `folder`, with a README of the run's latest figures; one made elsewhere gets the base's tokenizer.

    Raises UserError where there is no adapter, or it names no base model.
    """
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    if not config.get("base_model_name_or_path"):
        raise UserError(
            "todo",
            "The adapter does not name its base model, so nobody could load it. Train it again.",
        )
    shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
    plan = read_plan(run)
    assert plan is not None, "an adapter is only saved by a training, which writes its plan first"
    if not (folder / "tokenizer_config.json").is_file():
        base, goal = base_of(run)
        load_tokenizer(base, run.recipe.chat_template, goal.task).save_pretrained(folder)
    write_card(run, folder, load_run_data(run), plan)
