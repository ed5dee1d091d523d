"""Checks the JSON files of a stranger's model before any library opens them.

The checks reject everything that is not known to be harmless. A model's own code never runs:
transformers gets `trust_remote_code=False` everywhere, and this module rejects other ways to bring
code in.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from peft_space.compat.transformers import cached_repo_file
from peft_space.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_BYTES = 64_000_000
"""Of a JSON file; the largest tokenizers have 35 MB."""
_MAX_DEPTH = 40
_MAX_COUNT = 100_000
"""Of layers, experts, labels and the like: libraries build lists as long as a config asks for."""
_COUNTS = re.compile(r".*(layer|blocks|expert|label|depth).*")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_TOKENIZERS = re.compile(
    r"\w*(Tokenizer|TokenizerFast|TokenizersBackend|PythonBackend|MistralCommonBackend)"
)
_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)
_GENERATION = {
    "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p",
    "repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "begin_suppress_tokens",
    "bad_words_ids", "length_penalty", "max_new_tokens", "max_length", "num_beams",
    "early_stopping",
}  # fmt: skip
_SIDES = ("height", "width", "image_seq_length", "image_seq_len", "max_image_size")
_MAX_SIDE = 20_000
_MAX_BEAMS = 16


def check_config(location: str, revision: str | None) -> None:
    """Raise UserError if config.json asks for something unsafe. A missing file is not an error."""
    config = _read(location, revision, "config.json")
    if config is None:
        return
    kind = config.get("model_type", "")
    if not isinstance(kind, str) or (kind and not _NAME.fullmatch(kind)):
        raise _unsafe(location, f"its model_type {str(kind)[:60]!r} is not a name")
    for key, value in _walk(location, config):
        if fault := _config_fault(key, value):
            raise _unsafe(location, fault)


def _config_fault(key: str, value: Any) -> str | None:
    # a name with a slash is a kernel on the Hub, which is code
    if "implementation" in key and not _is_plain(value):
        return f"its {key} {str(value)[:60]!r} names code elsewhere"
    if isinstance(value, int) and abs(value) > _MAX_COUNT and _COUNTS.fullmatch(key):
        return f"its {key} is {value:,}, and no model has more than {_MAX_COUNT:,}"
    if isinstance(value, int) and abs(value) >= 1 << 53:
        return f"its {key} is {str(value)[:30]}, which is not a possible size"
    if key == "quantization_config" and not isinstance(value, Mapping | None):
        return "its quantization_config is not a JSON object"
    return None


def check_tokenizer(location: str, revision: str | None) -> None:
    """Raise UserError if the tokenizer's files ask for something unsafe."""
    configs = {name: _read(location, revision, name) for name in _TOKENIZER_FILES}
    config = configs["tokenizer_config.json"]
    if config is None:
        return
    kind = config.get("tokenizer_class")
    known = kind is None or (isinstance(kind, str) and _TOKENIZERS.fullmatch(kind))
    if not known and "auto_map" not in config:
        raise _unsafe(location, f"its tokenizer_class {str(kind)[:60]!r} is not a tokenizer")
    for key in ("init_inputs", "gguf_file", "tokenizer_object", "from_slow"):
        if config.get(key):
            raise _unsafe(location, f"its tokenizer_config.json sets {key}")
    for _ in _walk(location, config):  # checks the depth
        pass


def check_processor(location: str, revision: str | None) -> None:
    """Raise UserError if the files of the processor for pictures ask for something unsafe."""
    for name in ("processor_config.json", "preprocessor_config.json", "chat_template.json"):
        for key, value in _walk(location, _read(location, revision, name) or {}):
            if isinstance(value, int) and abs(value) > _MAX_SIDE and key in _SIDES:
                raise _unsafe(location, f"its {name} has {key} {value:,}, too large for a picture")


def sanitize_generation_config(model: "PreTrainedModel") -> None:
    """Remove all generation settings of the model except those for drawing tokens.

    The others can load models or code, or take unlimited memory.
    """
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    settings = generation.to_diff_dict()
    safe = {name: value for name, value in settings.items() if name in _GENERATION}
    if isinstance(safe.get("num_beams"), int) and safe["num_beams"] > _MAX_BEAMS:
        del safe["num_beams"]
    model.generation_config = type(generation)(**safe)


def _read(location: str, revision: str | None, name: str) -> dict[str, Any] | None:
    """A JSON file; None if there is none. Errors of the Hub pass through."""
    path = cached_repo_file(location, name, revision)
    if path is None:
        return None
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise _unsafe(location, f"its {name} is larger than {_MAX_BYTES / 1e6:.0f} MB")
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise _unsafe(location, f"its {name} is nested too deeply") from None
    except ValueError:
        return None  # the library that needs the file reports the error
    if not isinstance(value, dict):
        raise _unsafe(location, f"its {name} is not a JSON object")
    return value


def _walk(location: str, value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(key, value) of everything in a JSON value, at any depth."""
    if depth > _MAX_DEPTH:
        raise _unsafe(location, "its config is nested too deeply")
    yield key, value
    if isinstance(value, Mapping):
        for inner_key, inner in value.items():
            yield from _walk(location, inner, inner_key, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(location, inner, key, depth + 1)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return value is None or (isinstance(value, str) and _NAME.fullmatch(value) is not None)


def _unsafe(location: str, reason: str) -> UserError:
    return UserError(
        "models.unsafe_config",
        f"The base model {location!r} cannot be loaded: {reason}. Choose another base model.",
    )
