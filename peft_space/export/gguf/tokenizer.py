"""Writes a tokenizer into a GGUF file: tokens, merges, pre-tokenizer, and chat template.

llama.cpp knows a fixed set of pre-tokenizers by name; tokenizers with any other are rejected.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf

from peft_space.data.tokenization.chat_template import load_chat_template
from peft_space.data.tokenization.loss_mask import texts_begin_with_bos
from peft_space.data.tokenization.render import stop_token_ids
from peft_space.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKED_WORD = r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
GPT2, DIGITS = "GPT-2's own", "digits apart, then GPT-2's own"

PRE_TOKENIZERS = {
    _CONTRACTIONS + _WORD + r"|\p{N}{1,3}" + _REST: {True: "llama-bpe", False: "dbrx"},
    _CONTRACTIONS + _WORD + r"|\p{N}" + _REST: {False: "qwen2"},
    _CONTRACTIONS + _MARKED_WORD + _SPACES: {False: "qwen35"},
    _CASED % ("", "") + r"|\p{N}" + _CASED_REST: {True: "tekken"},
    _CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?") + r"|\p{N}{1,3}" + _CASED_REST: {
        False: "gpt-4o"
    },
    GPT2: {False: "gpt-2"},
    DIGITS: {False: "smollm"},
}
"""Pattern that splits words -> llama.cpp's name, for tokenizers that ignore merges for a word in
the vocabulary (True) and those that do not (False)."""

_REMEDY = "Export the merged model, which keeps its tokenizer, and serve it with vLLM."


def _unsupported(reason: str) -> UserError:
    message = f"This tokenizer cannot be written as GGUF: {reason}. {_REMEDY}"
    return UserError("export.gguf_tokenizer", message)


def add_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: "PreTrainedTokenizerFast", size: int
) -> None:
    """Write the tokenizer.

    Args:
        writer: of the GGUF file.
        tokenizer: with its chat template.
        size: number of the model's embeddings.

    Raises:
        UserError: llama.cpp does not support such a tokenizer.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model["type"] != "BPE":
        raise _unsupported(f"its type is {model['type']}, and only BPE is supported")
    if max(tokenizer.get_vocab().values()) >= size:
        raise _unsupported(f"it has more tokens than the model's {size} embeddings")
    merges = [_merge_pair(merge) for merge in model["merges"]]
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
        # a space separates the two parts of a merge, so spaces within a part are escaped
        pairs = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in merges]
        writer.add_token_merges(pairs)
    writer.add_chat_template(tokenizer.get_chat_template())


def _merge_pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _tokens(
    tokenizer: "PreTrainedTokenizerFast", model: dict[str, Any], size: int
) -> tuple[list[str], list[int]]:
    """All tokens by id, with llama.cpp's token types."""
    kinds = gguf.TokenType
    tokens, types = [f"[PAD{number}]" for number in range(size)], [kinds.UNUSED] * size
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, kinds.NORMAL
        if model["byte_fallback"] and re.fullmatch("<0x[0-9A-F]{2}>", token):
            types[number] = kinds.BYTE
        elif token == model["unk_token"]:
            types[number] = kinds.UNKNOWN
    for number, added in tokenizer.added_tokens_decoder.items():
        if types[number] != kinds.UNKNOWN:
            types[number] = kinds.CONTROL if added.special else kinds.USER_DEFINED
        # other added tokens are found before spaces become ▁
        content = added.content
        tokens[number] = content if added.special else content.replace("▁", " ")
    return tokens, [int(kind) for kind in types]


def pre_tokenizer_of(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level tokenizer.

    Raises:
        UserError: llama.cpp does not support it.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    names = PRE_TOKENIZERS.get(_pre_tokenizer_key(backend["pre_tokenizer"] or {}) or "", {})
    # llama.cpp does not normalize: it expects NFC
    normalizer = (backend["normalizer"] or {"type": "NFC"})["type"]
    ignores_merges = bool(backend["model"].get("ignore_merges"))
    name = names.get(ignores_merges)
    if name is None and names and not _ignore_merges_matters(tokenizer):
        name = next(iter(names.values()))
    if name is None or normalizer != "NFC":
        raise _unsupported("llama.cpp does not know its pre-tokenizer")
    return name


def _pre_tokenizer_key(pre_tokenizer: dict[str, Any]) -> str | None:
    """A key of PRE_TOKENIZERS."""
    gpt2 = {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}
    match pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        case [{**last}] if gpt2.items() <= last.items():
            return GPT2
        case [{"type": "Digits", "individual_digits": True}, {**last}] if (
            gpt2.items() <= last.items()
        ):
            return DIGITS
        case [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ]:
            return regex
    return None


def _ignore_merges_matters(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Return True if the merges do not produce some word of the vocabulary."""
    from tokenizers import Tokenizer

    merging = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()).model
    merging.ignore_merges = False
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    words = [word for word in tokenizer.get_vocab() if word not in added]
    return any(len(merging.tokenize(word)) > 1 for word in words)


@dataclass(frozen=True)
class _Pieces:
    """A tokenizer with ▁ in place of spaces, as SentencePiece makes them."""

    kind: str
    scores: dict[str, float] | None
    """llama.cpp merges the pair with the highest score; None if the merges must be written."""
    begins_with_space: bool


def _pieces(
    backend: dict[str, Any], merges: list[tuple[str, str]], tokenizer: "PreTrainedTokenizerFast"
) -> _Pieces:
    begins_with_space = _begins_with_space(backend, tokenizer)
    scores = _scores(backend["model"]["vocab"], merges)
    if scores is None:
        joined = [left + right for left, right in merges]
        if begins_with_space or any("\n" in token and token.strip("\n") for token in joined):
            raise _unsupported("llama.cpp merges its tokens differently")
    kind = "gemma4" if scores is None else "llama"
    return _Pieces(kind, scores, begins_with_space)


def _scores(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, float] | None:
    """Scores that give the same tokens as the merges; None if there are none.

    SentencePiece merges any two tokens that form a third. The merges are equivalent if they contain
    all such pairs and the pairs that form one token are adjacent.
    """
    rank: dict[str, int] = {}
    last = ""
    for left, right in merges:
        token = left + right
        if token != last and token in rank:
            return None
        last = token
        rank.setdefault(token, len(rank))
    known = set(merges)
    for token in rank:
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair[0] in vocab and pair[1] in vocab and pair not in known:
                return None
    unmerged = dict.fromkeys(set(vocab) - set(rank), -1e6)
    return {token: -float(number) for token, number in rank.items()} | unmerged


def _begins_with_space(backend: dict[str, Any], tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Return True if a text gets a ▁ at its start, as llama.cpp adds one after control tokens."""
    normalizer, pre_tokenizer = backend["normalizer"] or {}, backend["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    kind, scheme = pre_tokenizer.get("type"), pre_tokenizer.get("prepend_scheme", "never")
    if kind == "Metaspace":
        splits = pre_tokenizer.get("split")
    else:
        only_spaces = pre_tokenizer.get("pattern") in ({"String": " "}, {"String": "▁"})
        splits = kind is not None and not only_spaces
    if splits or any(step not in (prepend, replace) for step in steps):
        raise _unsupported("llama.cpp does not know its pre-tokenizer")
    if scheme == "first":  # a conversation that opens with a control token does not get one
        template = load_chat_template(tokenizer)
        return not _opening(tokenizer).startswith(tuple(template.specials))
    return scheme == "always" or prepend in steps


def _opening(tokenizer: "PreTrainedTokenizerFast") -> str:
    question: list[Any] = [{"role": "user", "content": "a"}]
    return load_chat_template(tokenizer).write(question, None, prompt=True)


_PHI_3 = re.compile("phi-?3", re.IGNORECASE)
_NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")


def gguf_model_name(name: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return the model's name in the file.

    llama.cpp recognizes Phi 3, whose control tokens strip the white space after them, by this name.

    Args:
        name: the name that the user chose.
        tokenizer: of the model.

    Raises:
        UserError: control tokens of the chat template strip white space in another way.
    """
    roles = ("user", "assistant", "user")
    conversation: list[Any] = [{"role": role, "content": "a"} for role in roles]
    text = load_chat_template(tokenizer).write(conversation, None, prompt=True)
    used = [token for token in tokenizer.added_tokens_decoder.values() if token.content in text]
    if not any(token.lstrip or token.rstrip for token in used):
        return _PHI_3.sub("Phi 3", name)
    as_phi_3 = {"</s>", *_NOT_STRIPPING} <= tokenizer.get_vocab().keys() and all(
        token.rstrip == (token.content not in _NOT_STRIPPING) and not token.lstrip
        for token in used
        if token.special
    )
    if not as_phi_3:
        raise _unsupported("its control tokens strip white space, and llama.cpp does not do that")
    return name if _PHI_3.search(name) else f"{name} (Phi-3)"


def add_special_tokens(
    writer: gguf.GGUFWriter,
    tokenizer: "PreTrainedTokenizerFast",
    stops: Sequence[int],
    begins_texts: bool,
) -> None:
    """Write which tokens begin, end and pad a text.

    A file has places for three tokens that end an answer: EOS, the end of a turn and the end of a
    message. llama.cpp knows the names of many others, so they come last.

    Args:
        writer: of the GGUF file.
        tokenizer: with its chat template.
        stops: the tokens that end an answer.
        begins_texts: whether the model was trained on plain texts.
    """
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    trained = stop_token_ids(tokenizer)
    others = [stop for stop in stops if stop != tokenizer.eos_token_id]
    others.sort(key=lambda stop: (stop not in trained, _is_known_end(tokenizer, stop)))
    for add, stop in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
        add(stop)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    begins = begins_with_bos(tokenizer) or (begins_texts and texts_begin_with_bos(tokenizer))
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(False)


_KNOWN_ENDS = {
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|end_of_text|>", "<EOT>", "<｜end▁of▁sentence｜>",
}  # fmt: skip
"""Names by which llama.cpp finds ends of answers itself."""


def _is_known_end(tokenizer: "PreTrainedTokenizerFast", token: int) -> bool:
    return str(tokenizer.convert_ids_to_tokens(token)) in _KNOWN_ENDS


def begins_with_bos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Return True if the chat template starts with the BOS token, so that an engine must add it."""
    return bool(tokenizer.bos_token) and _opening(tokenizer).startswith(tokenizer.bos_token)
