"""Finds a base model by what the user typed, and loads its config and tokenizer. Loads no weights.

Never runs code that comes with a model, and reads no pickles.
"""

import dataclasses
import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_space import settings
from peft_space.data.tokenization.builtin_templates import TEMPLATES
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError, as_user_error
from peft_space.models.config_safety import check_config, check_tokenizer
from peft_space.models.repo_files import OUT_OF_REACH, has_vocabulary, without_config
from peft_space.recipe import Task
from peft_space.redaction import has_secret

logger = logging.getLogger(__name__)

DEMO_MODEL = "demo"
"""The name of the built-in model in a recipe."""

_DEMO_NAME = "peft_space/demo/model"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class BaseModelRef:
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


def find_base(base_model: str, revision: str | None = None) -> BaseModelRef:
    """The base model that `base_model` names: `demo`, a folder (not on a Space), or a Hub id. Its config is loaded, pinned to a commit.

    Raises UserError where there is none, it cannot be reached, or it would need code of its own.
    """
    if base_model == DEMO_MODEL:
        return BaseModelRef(str(MODEL_DIR), _DEMO_NAME, None, _config(str(MODEL_DIR), None))
    if folder := _folder(base_model):
        if reason := without_config(str(folder), None):
            raise UserError("todo", f"The folder {base_model} is no base model: {reason}.")
        return BaseModelRef(str(folder), str(folder), None, _config(str(folder), None))
    if not _is_hub_id(base_model):
        raise UserError(
            "todo",
            f"There is no base model {base_model!r}. Give a Hub id like Qwen/Qwen3-0.6B, a folder on this machine, or demo.",
        )
    config = _config(base_model, revision)
    return BaseModelRef(base_model, base_model, _commit(base_model, revision), config)


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return _HUB_ID.fullmatch(name) is not None and not has_secret(
        name
    )  # or it would name a folder of the cache


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that a config, which was just downloaded, is of: its folder in the Hub's cache is named by it."""
    from huggingface_hub import try_to_load_from_cache

    kept = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(kept).parent.name if isinstance(kept, str) else revision


def license_of(name: str, revision: str | None) -> str | None:
    """The licence that the README of the base with this name states; None where it states none, or there is no README within reach."""
    import httpx2
    import yaml
    from huggingface_hub import hf_hub_download, metadata_load

    folder = MODEL_DIR if name == _DEMO_NAME else _folder(name)
    try:
        stated = (
            metadata_load(
                Path(folder, "README.md")
                if folder
                else hf_hub_download(name, "README.md", revision=revision)
            )
            or {}
        )
    except (OSError, httpx2.HTTPError, yaml.YAMLError, ValueError) as error:
        logger.info("no licence of %s is known: %s", name, error)
        return None
    return stated["license"] if isinstance(stated.get("license"), str) else None


def model_name(base_model: str) -> str:
    """The name by which an adapter's config calls what `base_model` names."""
    return _DEMO_NAME if base_model == DEMO_MODEL else str(_folder(base_model) or base_model)


def _folder(base_model: str) -> Path | None:
    """The folder that `base_model` names; on a Space it names none."""
    folder = os.path.abspath(
        os.path.expanduser(base_model)
    )  # unlike those of Path these take any text
    return Path(folder) if not settings.on_space() and os.path.isdir(folder) else None


def pin_revision(base: BaseModelRef, expected: str | None = None) -> BaseModelRef:
    """The base with its revision: a commit, or a digest of the folder's files. Raises UserError where it is not the `expected` one."""
    pinned = (
        base if base.on_hub else dataclasses.replace(base, revision=_digest(Path(base.location)))
    )
    if expected is not None and pinned.revision != expected:
        raise UserError(
            "todo",
            f"The files of the base model {base.name} are not those that this run was trained on. Put them back, or train anew.",
        )
    return pinned


_WITHOUT_ANSWERS: tuple[Task, ...] = (
    "sequence-classification",
    "token-classification",
    "seq2seq-lm",
)
"""Tasks that need neither a chat template nor an end of text."""


def load_tokenizer(base: BaseModelRef, chat_template: str = "own", task: Task = "causal-lm") -> Any:
    """The base model's tokenizer, with a padding token and a chat template. Raises UserError where it has none we can use.

    Args:
        chat_template: `own`, or the name of a well-known one (`data.templates`) that takes its place.
    """
    # words of tagged rows stand alone; as in a text they begin with the white space before them
    more = {"add_prefix_space": True} if task == "token-classification" else {}
    tokenizer = _tokenizer(base, more)
    if not tokenizer.is_fast:
        raise UserError(
            "todo",
            f"The tokenizer of {base.name} has no fast version, which is needed. Choose another base model.",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None or (
        tokenizer.eos_token_id is None and task not in _WITHOUT_ANSWERS
    ):
        raise UserError(
            "todo",
            f"The tokenizer of {base.name} has no end-of-text token, which is needed. Choose another base model.",
        )
    if chat_template != "own":
        tokenizer.chat_template = TEMPLATES[chat_template]
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = TEMPLATES["plain"]
    return tokenizer


def _tokenizer(base: BaseModelRef, more: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    known = (base.location, _hub_revision(base))
    try:
        check_tokenizer(*known)
        # code of its own is forbidden in so many words, or transformers asks whoever sits at the terminal
        tokenizer = AutoTokenizer.from_pretrained(
            base.location, revision=_hub_revision(base), trust_remote_code=False, **more
        )
    except Exception as error:
        if as_user_error(error):
            raise
        if has_vocabulary(*known, ()):
            reason = (
                hub_error_reason(error, base.name, base.revision)
                or f"{first_line(error)} Choose another base model"
            )
            raise UserError(
                "todo", f"The tokenizer of the base model {base.name} cannot be loaded: {reason}."
            ) from error
        tokenizer = None
    # without a vocabulary many kinds of tokenizers come up empty, and take every word for an unknown one
    if tokenizer is None or not has_vocabulary(*known, list(tokenizer.vocab_files_names.values())):
        raise UserError(
            "todo",
            f"The base model {base.name} has no tokenizer: there is no tokenizer.json among its files. "
            "Save the tokenizer beside the model, or choose another base model.",
        )
    return tokenizer


def _config(location: str, revision: str | None) -> Any:
    from transformers import AutoConfig
    from transformers.utils.hub import resolve_revision

    commit = resolve_revision(location, revision)  # so that what is looked at is what is loaded
    try:
        check_config(location, commit)
        return AutoConfig.from_pretrained(location, revision=commit, trust_remote_code=False)
    except Exception as error:
        if as_user_error(error):
            raise
        reason = (
            hub_error_reason(error, location, revision)
            or without_config(location, revision)
            or f"{first_line(error)} Choose another base model"
        )
        raise UserError(
            "todo", f"The base model {location!r} cannot be loaded: {reason}."
        ) from error


def hub_error_reason(error: BaseException, name: str, revision: str | None) -> str | None:
    """Return why the Hub did not deliver the base model, or why its code is rejected, else None."""
    from peft_space.compat.huggingface_hub import explain_hub_error

    if "trust_remote_code" in str(error):
        return (
            "it requires its own code to run, which the app never allows. Choose a model that "
            "transformers supports"
        )
    reasons = {"hub.offline": OUT_OF_REACH, "hub.unreachable": OUT_OF_REACH}
    failure = explain_hub_error(error, name, "model", revision, reasons)  # type: ignore[arg-type]
    return failure.reason if failure else None


_LONGEST_REASON = 300


def first_line(error: Exception) -> str:
    """What the library says first, as a sentence."""
    first = str(error).strip().split("\n", 1)[0].rstrip(" :")
    first = first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON]} …"
    return first if first.endswith(".") else f"{first}."


def _hub_revision(base: BaseModelRef) -> str | None:
    return base.revision if base.on_hub else None


def _digest(folder: Path) -> str:
    """What stands in for a commit where the model is a folder: the SHA-256 of its config and weight files' names, sizes and contents."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256-" + digest.hexdigest()
