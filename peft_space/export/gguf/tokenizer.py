"""A tokenizer in GGUF: its tokens, how they merge, where words are parted, which are control tokens, and the chat template.

llama.cpp knows ways to part words by name and no others, so what has none of these names is refused.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import gguf

from peft_space.data.tokenization.chat_template import load_chat_template
from peft_space.data.tokenization.render import stop_token_ids
from peft_space.errors import UserError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2, DIGITS = "GPT-2's own", "digits apart, then GPT-2's own"

PRE_TOKENIZERS = {
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST: {
        True: "llama-bpe",
        False: "dbrx",
    },
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST: {False: "qwen2"},
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": {
        False: "qwen35"
    },
    _CASED % ("", "") + r"|\p{N}" + _CASED_REST: {True: "tekken"},
    _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?") + r"|\p{N}{1,3}" + _CASED_REST: {
        False: "gpt-4o"
    },
    GPT2: {False: "gpt-2"},
    DIGITS: {False: "smollm"},
}
"""How words are parted -> llama.cpp's name for it, for tokenizers that take a word in the vocabulary whole (True) and those that merge (False)."""

_INSTEAD = (
    "Export the merged model instead, which keeps the tokenizer as it is, and serve it with vLLM."
)


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Write the tokenizer with `size` tokens, as many as the model has embeddings. Raises UserError where llama.cpp knows no such tokenizer."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model["type"] != "BPE":
        raise UserError(
            "todo",
            f"A tokenizer of the kind {model['type']} cannot be written as GGUF here; BPE can. {_INSTEAD}",
        )
    if max(tokenizer.get_vocab().values()) >= size:
        raise UserError(
            "todo",
            f"The tokenizer has more tokens than the {size} that the model has embeddings for. Train with another base model.",
        )
    merges = [
        tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair)
        for pair in model["merges"]
    ]
    pieces = _pieces(backend, merges, tokenizer) if model["byte_fallback"] else None
    tokens, types = _tokens(tokenizer, model, size)
    if pieces:
        writer.add_tokenizer_model(pieces.kind)
        writer.add_tokenizer_pre("default" if pieces.scores else pieces.kind)
        writer.add_add_space_prefix(pieces.begins_with_space)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_of(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pieces and pieces.scores:
        writer.add_token_scores([pieces.scores.get(token, -1e4) for token in tokens])
    else:
        # a merge is written with a space between its parts, so spaces in the parts are no spaces
        writer.add_token_merges(
            [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in merges]
        )
    _add_specials(writer, tokenizer)
    writer.add_chat_template(tokenizer.get_chat_template())


def _tokens(tokenizer: Any, model: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """All tokens by their number, with the kinds that llama.cpp has of them."""
    tokens, types = [f"[PAD{number}]" for number in range(size)], [gguf.TokenType.UNUSED] * size
    for token, number in model["vocab"].items():
        byte = model["byte_fallback"] and re.fullmatch("<0x[0-9A-F]{2}>", token)
        unknown = token == model["unk_token"]
        tokens[number] = token
        types[number] = (
            gguf.TokenType.BYTE
            if byte
            else gguf.TokenType.UNKNOWN
            if unknown
            else gguf.TokenType.NORMAL
        )
    for number, token in tokenizer.added_tokens_decoder.items():
        if types[number] != gguf.TokenType.UNKNOWN:
            types[number] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
        tokens[number] = (
            token.content if token.special else token.content.replace("▁", " ")
        )  # found before spaces become ▁
    return tokens, [int(kind) for kind in types]


def pre_tokenizer_of(tokenizer: Any) -> str:
    """llama.cpp's name for how the byte-level tokenizer parts words. Raises UserError where it has none."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    named = PRE_TOKENIZERS.get(_pre_tokenizer_key(backend["pre_tokenizer"] or {}) or "", {})
    normalizer = (backend["normalizer"] or {"type": "NFC"})[
        "type"
    ]  # llama.cpp composes nothing: text is to come composed
    whole = bool(backend["model"].get("ignore_merges"))
    name = named.get(whole) or (
        next(iter(named.values()), None)
        if named and not _ignore_merges_matters(tokenizer, whole)
        else None
    )
    if name is None or normalizer != "NFC":
        raise UserError("todo", f"llama.cpp does not part words as this tokenizer does. {_INSTEAD}")
    return name


def _pre_tokenizer_key(pre_tokenizer: dict[str, Any]) -> str | None:
    """A key of PRE_TOKENIZERS."""
    match pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return GPT2
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False},
        ]:
            return DIGITS
        case [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ]:
            return regex
    return None


def _ignore_merges_matters(tokenizer: Any, whole: bool) -> bool:
    """Whether it makes a difference that a word in the vocabulary is taken whole: whether merging does not lead to it."""
    from tokenizers import Tokenizer

    merging = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()).model
    merging.ignore_merges = False
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    words = [word for word in tokenizer.get_vocab() if word not in added]
    return any(len(merging.tokenize(word)) > 1 for word in words)


@dataclass(frozen=True)
class _Pieces:
    """A tokenizer over ▁, as SentencePiece makes them."""

    kind: str
    scores: dict[str, float] | None
    """llama.cpp merges what has the highest score; None where the merges have to be written."""
    begins_with_space: bool


def _pieces(backend: dict[str, Any], merges: list[tuple[str, str]], tokenizer: Any) -> _Pieces:
    prefixed = _begins_with_space(backend, tokenizer)
    scores = _scores(backend["model"]["vocab"], merges)
    if scores is None and (
        prefixed
        or any("\n" in left + right and (left + right).strip("\n") for left, right in merges)
    ):
        raise UserError("todo", f"llama.cpp does not merge as this tokenizer does. {_INSTEAD}")
    return _Pieces("gemma4" if scores is None else "llama", scores, prefixed)


def _scores(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, float] | None:
    """A score for each token such that merging by score is merging by these merges, None where there is none.

    SentencePiece merges any two tokens that make a third. The merges say the same if they are all of these, and those of one token follow
    each other.
    """
    rank: dict[str, int] = {}
    last = ""
    for left, right in merges:
        made = left + right
        if made != last and made in rank:
            return None
        last = made
        rank.setdefault(made, len(rank))
    known = set(merges)
    for token in rank:
        for cut in range(1, len(token)):
            if (
                token[:cut] in vocab
                and token[cut:] in vocab
                and (token[:cut], token[cut:]) not in known
            ):
                return None
    return {token: -float(number) for token, number in rank.items()} | dict.fromkeys(
        set(vocab) - set(rank), -1e6
    )


def _begins_with_space(backend: dict[str, Any], tokenizer: Any) -> bool:
    """Whether a text gets a ▁ before it, as llama.cpp would put one: before each text that follows a control token.

    Raises UserError where spaces become anything else than ▁.
    """
    normalizer, pre_tokenizer = backend["normalizer"] or {}, backend["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    known = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    scheme = pre_tokenizer.get("prepend_scheme", "never")
    splits = pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("split")
    parts = pre_tokenizer.get("type") not in (None, "Metaspace") and pre_tokenizer.get(
        "pattern"
    ) not in ({"String": " "}, {"String": "▁"})
    if any(step not in known for step in steps) or splits or parts:
        raise UserError("todo", f"llama.cpp does not part words as this tokenizer does. {_INSTEAD}")
    if scheme == "first":  # the text of a conversation that opens with a control token has none
        opening = load_chat_template(tokenizer).write(
            [{"role": "user", "content": "a"}], None, prompt=True
        )
        return not opening.startswith(tuple(load_chat_template(tokenizer).specials))
    return scheme == "always" or known[0] in steps


_PHI_3 = re.compile("phi-?3", re.IGNORECASE)
_NOT_SWALLOWING = ("<unk>", "<s>", "<|endoftext|>")


def gguf_model_name(name: str, tokenizer: Any) -> str:
    """The name of the model in the file: llama.cpp takes it from the name that a model is a Phi 3, whose control tokens swallow white space.

    Raises UserError where control tokens of the chat template swallow white space otherwise.
    """
    template = load_chat_template(tokenizer)
    asked = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    written = template.write(asked, None, prompt=True)
    used = [token for token in tokenizer.added_tokens_decoder.values() if token.content in written]
    if not any(token.lstrip or token.rstrip for token in used):
        return _PHI_3.sub("Phi 3", name)
    as_phi_3 = all(
        token.rstrip == (token.content not in _NOT_SWALLOWING) and not token.lstrip
        for token in used
        if token.special
    )
    if not as_phi_3 or not {"</s>", *_NOT_SWALLOWING} <= tokenizer.get_vocab().keys():
        raise UserError(
            "todo",
            f"Control tokens of this tokenizer swallow the white space beside them, which llama.cpp does not do. {_INSTEAD}",
        )
    return name if _PHI_3.search(name) else f"{name} (Phi-3)"


def _add_specials(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for stop in stop_token_ids(tokenizer):
        if stop != tokenizer.eos_token_id:
            writer.add_eot_token_id(stop)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    writer.add_add_eos_token(False)


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the chat template opens with the token that begins a text: then, and only then, an engine is to put it there."""
    opening = load_chat_template(tokenizer).write(
        [{"role": "user", "content": "a"}], None, prompt=True
    )
    return bool(tokenizer.bos_token) and opening.startswith(tokenizer.bos_token)
