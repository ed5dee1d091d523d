"""What files of a stranger's model may say: looked at as plain JSON, before any library opens them. What is not known to be harmless is refused.

Code of a model's own is never run: transformers is told so wherever it is called, and here is refused what would bring code in by another way.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft_space.errors import UserError

_LARGEST_BYTES = 64_000_000
"""Of a file of JSON; the largest tokenizers have 35 MB."""
_DEEPEST = 40
_MOST = 100_000
"""Of layers, experts, labels and the like, of which libraries make lists as long as they are told."""
_COUNTS = re.compile(r".*(layer|blocks|expert|label|depth).*")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_TOKENIZERS = re.compile(
    r"\w*(Tokenizer|TokenizerFast|TokenizersBackend|PythonBackend|MistralCommonBackend)"
)
_GENERATION = {
    "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "do_sample",
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids", "length_penalty", "max_new_tokens", "max_length", "num_beams", "early_stopping",
}  # fmt: skip
_MOST_BEAMS = 16


def check_config(location: str, revision: str | None) -> None:
    """Raise UserError where config.json asks for what is not done here. That it is missing is for others to say."""
    config = _read(location, revision, "config.json")
    if config is None:
        return
    kind = config.get("model_type", "")
    if not isinstance(kind, str) or (kind and not _NAME.fullmatch(kind)):
        raise _refused(location, f"its model_type {str(kind)[:60]!r} is no name")
    for key, value in _values(location, config):
        if "implementation" in key and not _plain(
            value
        ):  # a name with a slash is a kernel on the Hub, which is code
            raise _refused(location, f"its {key} {str(value)[:60]!r} names code elsewhere")
        if isinstance(value, int) and abs(value) > _MOST and _COUNTS.fullmatch(key):
            raise _refused(
                location, f"its {key} is {value:,}, and more than {_MOST:,} are in no model"
            )
        if isinstance(value, int) and abs(value) >= 1 << 53:
            raise _refused(
                location, f"its {key} is {str(value)[:30]}, which is no size of anything"
            )
        if key == "quantization_config" and not isinstance(value, Mapping | None):
            raise _refused(location, "its quantization_config is no JSON object")


def check_tokenizer(location: str, revision: str | None) -> None:
    """Raise UserError where the tokenizer's files ask for what is not done here."""
    for name in (
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.json",
    ):
        config = _read(location, revision, name)
        if config is None or name != "tokenizer_config.json":
            continue
        kind = config.get("tokenizer_class")
        if (
            kind is not None
            and not (isinstance(kind, str) and _TOKENIZERS.fullmatch(kind))
            and "auto_map" not in config
        ):
            raise _refused(location, f"its tokenizer_class {str(kind)[:60]!r} is no tokenizer")
        if odd := next(
            (
                key
                for key in ("init_inputs", "gguf_file", "tokenizer_object", "from_slow")
                if config.get(key)
            ),
            None,
        ):
            raise _refused(location, f"its tokenizer_config.json sets {odd}")
        for _ in _values(location, config):  # how deep it is
            pass


def sanitize_generation_config(model: Any) -> None:
    """Leave of the model's own settings for generating only those of how tokens are drawn: others load models or code, or take memory at will."""
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    kept = {name: value for name, value in generation.to_diff_dict().items() if name in _GENERATION}
    if isinstance(kept.get("num_beams"), int) and kept["num_beams"] > _MOST_BEAMS:
        del kept["num_beams"]
    model.generation_config = type(generation)(**kept)


def _read(location: str, revision: str | None, name: str) -> dict[str, Any] | None:
    """A file of JSON; None where there is none. What the Hub has to say is raised as the libraries raise it."""
    from transformers.utils.hub import cached_file

    found = cached_file(
        location,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return None
    path = Path(found)
    if not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
        raise _refused(location, f"its {name} is larger than {_LARGEST_BYTES / 1e6:.0f} MB")
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise _refused(location, f"its {name} is nested too deeply") from None
    except ValueError:
        return None  # the library that needs it says what is wrong
    if not isinstance(value, dict):
        raise _refused(location, f"its {name} is no JSON object")
    return value


def _values(location: str, value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(key, value) of all in a JSON value, however deep."""
    if depth > _DEEPEST:
        raise _refused(location, "its config is nested too deeply")
    yield key, value
    if isinstance(value, Mapping):
        for inner, one in value.items():
            yield from _values(location, one, inner, depth + 1)
    elif isinstance(value, list):
        for one in value:
            yield from _values(location, one, key, depth + 1)


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_plain, value.values()))
    return value is None or (isinstance(value, str) and _NAME.fullmatch(value) is not None)


def _refused(location: str, why: str) -> UserError:
    return UserError(
        "todo", f"The base model {location!r} cannot be loaded: {why}. Choose another base model."
    )
