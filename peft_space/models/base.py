"""Finds a base model by what the user typed, and loads its config and tokenizer. Loads no weights.

Never runs code that comes with a model, and reads no pickles.
"""

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_space import settings
from peft_space.data.templates import TEMPLATES
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.recipe import Task

DEMO = "demo"
"""The name of the built-in model in a recipe."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Base:
    """A base model that was found. `location` is what libraries load from; `name` and `revision` go into the adapter's config.

    A folder has no revision until it is pinned: its files have to be read for it.
    """

    location: str
    name: str
    revision: str | None
    config: Any

    @property
    def on_hub(self) -> bool:
        """Whether `name` is a Hub id, so that others can load it too."""
        return not Path(self.location).is_dir()


def find_base(base_model: str, revision: str | None = None) -> Base:
    """The base model that `base_model` names: `demo`, a folder (not on a Space), or a Hub id. Its config is loaded, pinned to a commit.

    Raises UserError where there is none, it cannot be reached, or it would need code of its own.
    """
    if base_model == DEMO:
        return Base(str(MODEL_DIR), "peft_space/demo/model", None, _config(str(MODEL_DIR), None))
    folder = Path(base_model).expanduser()
    if not settings.on_space() and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"The folder {base_model} is no base model: it has no config.json. Give the folder that save_pretrained wrote.")
        return Base(str(folder.absolute()), str(folder.absolute()), None, _config(str(folder), None))
    if not _HUB_ID.fullmatch(base_model) or ".." in base_model:
        raise UserError(f"There is no base model {base_model!r}. Give a Hub id like Qwen/Qwen3-0.6B, a folder on this machine, or demo.")
    config = _config(base_model, revision)
    return Base(base_model, base_model, getattr(config, "_commit_hash", None) or revision, config)


def pin(base: Base, expected: str | None = None) -> Base:
    """The base with its revision: a commit, or a digest of the folder's files. Raises UserError where it is not the `expected` one."""
    pinned = base if base.on_hub else dataclasses.replace(base, revision=_digest(Path(base.location)))
    if expected is not None and pinned.revision != expected:
        raise UserError(
            f"The files of the base model {base.name} are not those that this run was trained on. Put them back, or train anew."
        )
    return pinned


_WITHOUT_ANSWERS: tuple[Task, ...] = ("sequence-classification", "token-classification", "seq2seq-lm")
"""Tasks that need neither a chat template nor an end of text."""


def load_tokenizer(base: Base, chat_template: str = "own", task: Task = "causal-lm") -> Any:
    """The base model's tokenizer, with a padding token and a chat template. Raises UserError where it has none we can use.

    Args:
        chat_template: `own`, or the name of a well-known one (`data.templates`) that takes its place.
    """
    from transformers import AutoTokenizer

    # words of tagged rows stand alone; as in a text they begin with the white space before them
    more = {"add_prefix_space": True} if task == "token-classification" else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.location, revision=_hub_revision(base), **more)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"The base model {base.name} has no tokenizer that can be loaded ({_first_line(error)}). Choose another base model."
        ) from error
    if not tokenizer.is_fast:
        raise UserError(f"The tokenizer of {base.name} has no fast version, which is needed. Choose another base model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None or (tokenizer.eos_token_id is None and task not in _WITHOUT_ANSWERS):
        raise UserError(f"The tokenizer of {base.name} has no end-of-text token, which is needed. Choose another base model.")
    if chat_template != "own":
        tokenizer.chat_template = TEMPLATES[chat_template]
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = TEMPLATES["plain"]
    return tokenizer


def _config(location: str, revision: str | None) -> Any:
    from huggingface_hub import errors
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        causes = _chain(error)
        if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
            reason = "its authors ask for an agreement first. Accept it on the model's page on the Hub and sign in, then try again"
        elif any(isinstance(cause, errors.RevisionNotFoundError) for cause in causes):
            reason = f"it has no revision {revision!r}. Check the branch, tag or commit"
        elif any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
            reason = "the Hub knows no model of this name, or it is private. Check the spelling, or sign in"
        elif "trust_remote_code" in str(error):
            reason = "it needs code of its own to run, which is never allowed here. Choose a model that transformers supports"
        elif any(isinstance(cause, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) for cause in causes):
            reason = "it is not on this machine and the Hub cannot be reached. Check the spelling and the network, or use demo"
        else:
            reason = f"{_first_line(error)} Choose another base model"
        raise UserError(f"The base model {location!r} cannot be loaded: {reason}.") from error


def _chain(error: BaseException) -> list[BaseException]:
    """The error and all that it was raised from."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return causes


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _hub_revision(base: Base) -> str | None:
    return base.revision if base.on_hub else None


def _digest(folder: Path) -> str:
    """What stands in for a commit where the model is a folder: the SHA-256 of its config and weight files' names, sizes and contents."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256-" + digest.hexdigest()
