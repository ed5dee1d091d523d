"""Finds a base model by its name, and loads its config and tokenizer, but no weights.

Never runs code that comes with a model, and never opens pickles.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_space import settings
from peft_space.compat.transformers import cached_repo_file, load_processor
from peft_space.data.tokenization.chat_template import TEMPLATES, set_thinking, text_template
from peft_space.data.tokenization.loss_mask import texts_begin_with_bos
from peft_space.demo import MODELS
from peft_space.errors import UserError, as_user_error
from peft_space.models.architecture import num_places_of
from peft_space.models.config_safety import check_config, check_processor, check_tokenizer
from peft_space.models.repo_files import Fault, config_fault, has_vocabulary
from peft_space.models.special_tokens import (
    choose_pad_token,
    forget_foreign_pad_token,
    set_languages,
)
from peft_space.recipe import Recipe, Task
from peft_space.redaction import has_secret
from peft_space.storage import atomic_io

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

DEMO_MODEL = "demo"
"""The name of the built-in model in a recipe."""

PROCESSOR_FILES = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
"""Settings of the processor that prepares pictures."""
_DEMO_FOLDER = "peft_space/demo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_MAX_REASON = 300
"""Characters of a library's message that are shown."""
_WITHOUT_ANSWERS: tuple[Task, ...] = (
    "sequence-classification",
    "token-classification",
    "seq2seq-lm",
)
"""Tasks that need neither a chat template nor an end-of-text token."""


@dataclass(frozen=True)
class BaseModelRef:
    """A base model and its config, without its weights."""

    location: str
    """The folder or Hub id that libraries load from."""
    name: str
    """The name that the adapter's config gives its base."""
    revision: str | None
    """A commit; of a folder None until `pin_revision` has read its files."""
    config: "PreTrainedConfig"
    tokenizer: str | None = None
    """The folder of a tokenizer that replaces the model's."""
    num_embeddings: int | None = None
    """If the embeddings are resized after loading: their number, as in `config`."""

    @property
    def on_hub(self) -> bool:
        """True if `name` is a Hub id, so that others can load the model too."""
        return not Path(self.location).is_dir()


def find_base(base_model: str, revision: str | None = None) -> BaseModelRef:
    """Find a base model and load its config.

    Args:
        base_model: `demo`, `demo-pictures`, a folder (not on a Space), or a Hub id.
        revision: a branch, tag or commit of a Hub id. The result is pinned to a commit.

    Raises:
        UserError: there is no such model, it is out of reach, or it needs its own code.
    """
    if base_model in MODELS:
        location = str(MODELS[base_model])
        return BaseModelRef(location, model_name(base_model), None, _load_config(location, None))
    if folder := _folder(base_model):
        if fault := config_fault(str(folder), None):
            raise UserError(
                fault.code, f"The folder {base_model} is not a base model: {fault.reason}."
            )
        return BaseModelRef(str(folder), str(folder), None, _load_config(str(folder), None))
    if not _is_hub_id(base_model):
        raise UserError(
            "models.not_found",
            f"There is no base model {base_model!r}. "
            "Choose a Hub id like Qwen/Qwen3-0.6B, a folder on this machine, or demo.",
        )
    from peft_space.compat.huggingface_hub import ignore_hub_if_unreachable

    failure = ignore_hub_if_unreachable()
    if failure and not _is_cached(base_model, revision):
        raise UserError(
            failure.code, f"The base model {base_model!r} cannot be loaded: {failure.reason}."
        )
    config = _load_config(base_model, revision)
    return BaseModelRef(base_model, base_model, _cached_commit(base_model, revision), config)


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    # a name with a secret would become the name of a folder in the cache
    return _HUB_ID.fullmatch(name) is not None and not has_secret(name)


def _is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


def _cached_commit(name: str, revision: str | None) -> str | None:
    """The commit of a downloaded config, which is the name of its folder in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else revision


def license_of(name: str, revision: str | None) -> str | None:
    """The license in a base model's README; None if it states none or cannot be reached."""
    import httpx2
    import yaml
    from huggingface_hub import hf_hub_download, metadata_load

    built_in = {model_name(one): folder for one, folder in MODELS.items()}
    folder = built_in.get(name) or _folder(name)
    try:
        readme = folder / "README.md" if folder else None
        path = readme or Path(hf_hub_download(name, "README.md", revision=revision))
        metadata = metadata_load(path) or {}
    except (OSError, httpx2.HTTPError, yaml.YAMLError, ValueError) as error:
        logger.info("the license of %s is not known: %s", name, error)
        return None
    return metadata["license"] if isinstance(metadata.get("license"), str) else None


def model_name(base_model: str) -> str:
    """The name that an adapter's config gives the model that a recipe calls `base_model`."""
    if base_model in MODELS:
        return f"{_DEMO_FOLDER}/{MODELS[base_model].name}"
    return str(_folder(base_model) or base_model)


def built_in_model(name: str) -> str | None:
    """The built-in model that an adapter's config calls `name`; None if it is another one."""
    return next((one for one in MODELS if model_name(one) == name), None)


def _folder(base_model: str) -> Path | None:
    """The local folder of this name; always None on a Space."""
    # unlike those of Path, these functions take any text
    folder = os.path.abspath(os.path.expanduser(base_model))
    return Path(folder) if not settings.on_space() and os.path.isdir(folder) else None


def pin_revision(base: BaseModelRef, expected: str | None = None) -> BaseModelRef:
    """The base with its revision: a commit, or a digest of the folder's files.

    Raises:
        UserError: the revision is not the `expected` one.
    """
    pinned = base
    if not base.on_hub:
        pinned = dataclasses.replace(base, revision=_digest(Path(base.location)))
    if expected is not None and pinned.revision != expected:
        raise UserError(
            "models.base_changed",
            f"The files of the base model {base.name} are not those that this run was trained on. "
            "Restore them, or train again.",
        )
    return pinned


def load_tokenizer(
    base: BaseModelRef,
    recipe: Recipe | None = None,
    task: Task = "causal-lm",
    continues_texts: bool = False,
) -> "PreTrainedTokenizerFast":
    """Load the base model's tokenizer, with a padding token and a chat template.

    Its attribute `num_places` is the number of tokens that the model has positions for, or None.
    `padding_note` says what pads rows, and why, if it is not what the base says; otherwise None.

    Args:
        base: the model that the tokenizer belongs to.
        recipe: its `chat_template` replaces the model's, its `thinking` sets the template's
            switch, and its languages are those of a translation.
        task: decides whether an end-of-text token is required.
        continues_texts: whether the rows are plain texts. A base without a template then gets one
            that adds nothing to them.

    Raises:
        UserError: there is no tokenizer, or it cannot be used here.
    """
    # the words of tagged rows are separate; as in a text, each begins with a space
    options = {"add_prefix_space": True} if task == "token-classification" else {}
    tokenizer = own_tokenizer(base, options)
    if not tokenizer.is_fast:
        raise _unsupported_tokenizer(base, "fast version")
    tokenizer.padding_note = choose_pad_token(tokenizer, base.config)
    tokenizer.num_places = num_places_of(base.config, task)
    needs_eos = task not in _WITHOUT_ANSWERS
    if tokenizer.pad_token is None or (tokenizer.eos_token_id is None and needs_eos):
        raise _unsupported_tokenizer(base, "end-of-text token")
    if task == "sequence-classification" and base.config.is_encoder_decoder:
        _end_texts(tokenizer)
    recipe = recipe or Recipe()
    add_new_tokens(tokenizer, recipe.new_tokens or [])
    if task == "image-text-to-text":
        add_picture_processor(tokenizer, base)
    if recipe.chat_template != "own":
        tokenizer.chat_template = TEMPLATES[recipe.chat_template]
    elif tokenizer.chat_template is None:
        plain = TEMPLATES["plain"]
        texts = continues_texts and text_template(texts_begin_with_bos(tokenizer))
        tokenizer.chat_template = texts or plain
    if recipe.thinking != "own":
        tokenizer.chat_template = _with_thinking(base, tokenizer.chat_template, recipe)
    if task == "seq2seq-lm" or any(recipe.languages):
        set_languages(tokenizer, base.name, recipe.languages)
    return tokenizer


def add_new_tokens(tokenizer: "PreTrainedTokenizerFast", words: list[str]) -> None:
    """Add words as tokens.

    Raises:
        UserError: a word is a token already.
    """
    known = tokenizer.get_vocab().keys()
    if (word := next((word for word in words if word in known), None)) is not None:
        raise UserError(
            "models.known_token",
            f"The base model has a token {word!r} already. Remove it from new_tokens.",
        )
    tokenizer.add_tokens(words)


def _end_texts(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Put the end token after each text: encoder-decoders, such as BART, classify at its place."""
    from tokenizers.processors import Sequence, TemplateProcessing

    end = tokenizer.eos_token_id
    if end is None or tokenizer("a")["input_ids"][-1:] == [end]:
        return
    template = TemplateProcessing(
        single=f"$A:0 {tokenizer.eos_token}:0",
        pair=f"$A:0 $B:1 {tokenizer.eos_token}:1",
        special_tokens=[(tokenizer.eos_token, end)],
    )
    backend = tokenizer.backend_tokenizer
    own = backend.post_processor
    backend.post_processor = template if own is None else Sequence([own, template])


def add_picture_processor(tokenizer: Any, base: BaseModelRef) -> None:
    """Set the attribute `pictures`, which prepares pictures, and the processor's chat template.

    Raises:
        UserError: the model's files have no processor that works here.
    """
    from peft_space.data.tokenization.picture_tokens import PictureProcessor

    revision = base.revision if base.on_hub else None
    try:
        check_processor(base.location, revision)
        processor = load_processor(base.location, revision, base.config, tokenizer)
    except Exception as error:
        if as_user_error(error):
            raise
        fault = hub_fault(error, base.name, base.revision) or _library_fault(
            "models.no_picture_processor", error
        )
        raise UserError(
            fault.code,
            f"The processor that prepares pictures for {base.name} cannot be loaded: "
            f"{fault.reason}.",
        ) from error
    if processor is None or getattr(processor, "image_token", None) is None:
        raise UserError(
            "models.no_picture_processor",
            f"transformers has no processor for {base.name} that puts pictures into a "
            "conversation. Choose another base model.",
        )
    tokenizer.add_special_tokens({"extra_special_tokens": [processor.image_token]}, False)
    tokenizer.chat_template = processor.chat_template or tokenizer.chat_template
    tokenizer.pictures = PictureProcessor(processor)


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", base: BaseModelRef, folder: Path) -> None:
    """Write a tokenizer, and the settings of the processor if the model reads pictures."""
    tokenizer.save_pretrained(folder)
    if getattr(tokenizer, "pictures", None) is not None:
        copy_processor(base, folder)


def copy_processor(base: BaseModelRef, folder: Path) -> None:
    """Copy how the base reads pictures and sound into a folder, without any reference to code.

    Training does not change these settings.
    """
    for name in PROCESSOR_FILES:
        revision = base.revision if base.on_hub else None
        if path := cached_repo_file(base.location, name, revision):
            values = json.loads(path.read_text(encoding="utf-8"))
            values.pop("auto_map", None)
            atomic_io.write_text(folder / name, json.dumps(values, indent=2) + "\n")


def _with_thinking(base: BaseModelRef, template: Any, recipe: Recipe) -> Any:
    """Set the switch for reasoning in a chat template, or in each of several."""
    if isinstance(template, dict):
        return {name: _with_thinking(base, one, recipe) for name, one in template.items()}
    switched = set_thinking(template, recipe.thinking == "on")
    if switched is None:
        raise UserError(
            "models.no_thinking_switch",
            f"The chat template of {base.name} has no switch for reasoning, so thinking cannot be "
            f"{recipe.thinking!r}. Set thinking to 'own' in the recipe.",
        )
    return switched


def _unsupported_tokenizer(base: BaseModelRef, missing: str) -> UserError:
    return UserError(
        "models.tokenizer_unsupported",
        f"The tokenizer of {base.name} has no {missing}, which is required. "
        "Choose another base model.",
    )


def own_tokenizer(base: BaseModelRef, options: dict[str, Any]) -> Any:
    """Load a base's tokenizer as it is stored, with `options` of transformers.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    location = base.tokenizer or base.location
    revision = base.revision if base.on_hub and not base.tokenizer else None
    tokenizer = None
    try:
        check_tokenizer(location, revision)
        # without an explicit False, transformers asks on the terminal whether to run code
        tokenizer = AutoTokenizer.from_pretrained(
            location, revision=revision, trust_remote_code=False, **options
        )
    except Exception as error:
        if as_user_error(error):
            raise
        if has_vocabulary(location, revision, ()):
            invalid = _library_fault("models.invalid_tokenizer", error)
            fault = hub_fault(error, base.name, base.revision) or invalid
            raise UserError(
                fault.code,
                f"The tokenizer of the base model {base.name} cannot be loaded: {fault.reason}.",
            ) from error
    # many tokenizer classes load without a vocabulary, and then know no words
    names = [] if tokenizer is None else list(tokenizer.vocab_files_names.values())
    if tokenizer is None or not has_vocabulary(location, revision, names):
        raise UserError(
            "models.no_tokenizer",
            f"The base model {base.name} has no tokenizer: there is no tokenizer.json among its "
            "files. Save the tokenizer in the same folder, or choose another base model.",
        )
    return tokenizer


def _load_config(location: str, revision: str | None) -> "PreTrainedConfig":
    from transformers import AutoConfig
    from transformers.utils.hub import resolve_revision

    commit = resolve_revision(location, revision)  # loads the very files that are checked
    try:
        check_config(location, commit)
        config = AutoConfig.from_pretrained(location, revision=commit, trust_remote_code=False)
        forget_foreign_pad_token(config)
        return config
    except Exception as error:
        if as_user_error(error):
            raise
        fault = (
            hub_fault(error, location, revision)
            or config_fault(location, revision)
            or _library_fault("models.invalid_config", error)
        )
        raise UserError(
            fault.code, f"The base model {location!r} cannot be loaded: {fault.reason}."
        ) from error


def _library_fault(code: str, error: Exception) -> Fault:
    return Fault(code, f"{first_line(error)} Choose another base model")


def hub_fault(error: BaseException, name: str, revision: str | None) -> Fault | None:
    """Why the Hub did not deliver a model, or why its files are rejected.

    Args:
        error: what a library raised while it loaded the model.
        name: the model that was requested.
        revision: the requested branch, tag or commit.

    Returns:
        None if the error has another cause.
    """
    from peft_space.compat.huggingface_hub import explain_hub_error

    if "trust_remote_code" in str(error):
        reason = "it needs its own code to run, which is never allowed here"
        return Fault("models.needs_code", f"{reason}. Choose a model that transformers supports")
    failure = explain_hub_error(error, name, "model", revision)
    return Fault(failure.code, failure.reason) if failure else None


def _chain(error: BaseException) -> list[BaseException]:
    """The error and all that caused it."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return causes


def first_line(error: Exception) -> str:
    """The first line of a library's message, as a sentence."""
    line = str(error).strip().split("\n", 1)[0].rstrip(" :")
    line = line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]} …"
    return line if line.endswith(".") else f"{line}."


def _digest(folder: Path) -> str:
    """A substitute for the commit of a folder: SHA-256 of its config's and weights' contents."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256-" + digest.hexdigest()
