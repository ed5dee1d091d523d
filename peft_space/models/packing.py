"""Attention for rows that are laid end to end: each token attends to its own row alone."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

from peft_space.data.arrow_store import TokenizedExample
from peft_space.data.batches import collate, collate_packed
from peft_space.models.config_values import config_number, text_config
from peft_space.models.label_scorer import computing_in

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

logger = logging.getLogger(__name__)

ATTENTION = "peft_space_documents"
"""The name of this attention in transformers."""
_MAX_DIFFERENCE = 2e-2
"""Relative difference of hidden states that computing in 16 bits explains."""
_PROBES = (5, 3, 6)
"""Lengths of the rows with which an architecture is tried."""


class _OwnAttention(Exception):
    """The attention of a model cannot be replaced."""


class Documents:
    """Where rows begin in a packed batch.

    Args:
        starts: (N + 1,) int32: the first token of each row, and the number of all tokens.
        longest: tokens of the longest row.
    """

    def __init__(self, starts: Tensor, longest: int):
        self.starts, self.longest = starts, longest
        self._spans: list[tuple[int, int]] | None = None

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(first, end) of each row. On a GPU this waits for the device once a batch."""
        if self._spans is None:
            places = self.starts.tolist()
            self._spans = list(itertools.pairwise(places))
        return self._spans


_documents: Documents | None = None
_windows: set[int | None] = set()
"""Sliding windows that layers have asked for, to see whether a model passes them on."""
_unread: set[str] = set()
"""What else layers have asked for and does not take part here: biases of positions, sinks."""
_HARMLESS = {"position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k"}
"""Tensors that layers pass on and that do not change what a token attends to."""


def document_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row, as transformers calls it.

    A batch that is not packed has its padding at the end. There no text token sees it, so that no
    mask is needed either.

    Args:
        module: the attention layer.
        query: (B, H, T, D); `key` and `value` may have fewer heads.
        key: see `query`.
        value: see `query`.
        attention_mask: not used.
        dropout: of attention weights.
        scaling: of the products.
        sliding_window: tokens that a token attends to, itself included.
        softcap: limits products, as in Gemma 2.
        others: not used; `why_not_packed` declines models that need them.

    Returns:
        (B, T, H, D), and no weights.
    """
    _windows.add(sliding_window)
    _unread.update(
        name
        for name, value in others.items()
        if isinstance(value, torch.Tensor) and name not in _HARMLESS
    )
    if others.get("is_causal", getattr(module, "is_causal", True)) is False:
        _unread.add("is_causal")
    documents = _documents
    spans = [(0, query.shape[2])] if documents is None else None
    if documents is not None and _has_kernel(query, dropout, softcap):
        window = (sliding_window - 1, 0) if sliding_window else (-1, 0)
        return _kernel(query, key, value, documents, scaling, window), None
    parts = []
    for first, end in spans or documents.spans:  # type: ignore[union-attr]
        q, k, v = (tensor[:, :, first:end] for tensor in (query, key, value))
        mask = _window_mask(end - first, sliding_window, query.device)
        if softcap is not None:
            parts.append(_attend_capped(q, k, v, mask, dropout, scaling, softcap))
            continue
        parts.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    return torch.cat([part.transpose(1, 2) for part in parts], 1), None


def _has_kernel(query: Tensor, dropout: float, softcap: float | None) -> bool:
    """Return True if PyTorch's flash attention for rows of different lengths can be used."""
    if query.device.type != "cuda" or dropout or softcap is not None:
        return False
    is_16_bits = query.dtype in (torch.bfloat16, torch.float16)
    return is_16_bits and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scaling: float | None,
    window: tuple[int, int],
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    starts, longest = documents.starts, documents.longest
    output: Any = varlen_attn(
        q,
        k,
        v,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """The mask (T, T) of causal attention in a window; None if the window holds the whole row."""
    if not window or length <= window:
        return None
    places = torch.arange(length, device=device)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < window)


def _attend_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    """Attention with soft-capped products, in the order of transformers' eager attention."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    products = torch.tanh(query @ key.transpose(2, 3) * scale / softcap) * softcap
    if mask is None:
        length = query.shape[2]
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    weights = products.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32)
    return drop(weights.to(query.dtype), dropout, dropout > 0) @ value


def why_not_packed(model: PeftModel, longest: int, dtype: str = "float32") -> str | None:
    """Try whether rows that are laid end to end stay apart in this model.

    Args:
        model: the base model with the adapter. It is the same afterwards.
        longest: tokens of the longest row.
        dtype: the dtype that training computes in.

    Returns:
        None if they do; otherwise the reason, as a clause.
    """
    base: Any = model.get_base_model()
    config, was_training = text_config(base.config), model.training
    if getattr(config, "attention_chunk_size", None):
        return "its attention works in chunks"
    own_attention, own_forward = base.config._attn_implementation, base.__dict__.get("forward")
    examples = _probes(config_number(base.config, "vocab_size"))
    model.eval()
    try:
        with torch.no_grad(), computing_in(dtype, base.device.type):
            apart = _last_states(base, collate(examples, 0))
            if apart.ndim != 3:  # Gemma 3n predicts several versions of each state
                return "its states are not one for each token"
            pack_rows(model)
            _windows.clear()
            _unread.clear()
            together = _last_states(base, collate_packed(examples))[0]
    except _OwnAttention:
        return "it does not use the attention interface of transformers"
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        logger.warning("%s cannot be tried with packed rows", type(base).__name__, exc_info=error)
        return "a trial with short rows failed"
    finally:
        base.__dict__.pop("forward", None)
        if own_forward is not None:
            base.forward = own_forward
        base.set_attn_implementation(own_attention)
        model.train(was_training)
    if _unread:  # random or small values of these would hardly change the states
        return f"its attention also depends on `{min(_unread)}`"
    expected = torch.cat(
        [row[: len(example.input_ids)] for row, example in zip(apart, examples, strict=True)]
    )
    if not (together - expected).norm() < _MAX_DIFFERENCE * expected.norm():
        return "its rows would not stay apart"
    window = getattr(config, "sliding_window", None)
    if window and longest > window and _windows <= {None}:
        return "its sliding window is only in its mask"
    return None


def _probes(vocabulary: int) -> list[TokenizedExample]:
    """Short rows of different tokens and lengths."""
    ids = [
        [(31 * place + 7 * length) % vocabulary for place in range(length)] for length in _PROBES
    ]
    return [TokenizedExample(row, tokens, [(1, len(tokens))]) for row, tokens in enumerate(ids)]


def _last_states(base: Any, batch: dict[str, Any]) -> Tensor:
    """The hidden states of the last block, (B, T, D)."""
    inputs = {
        name: value.to(base.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    output = base(**inputs, use_cache=False, output_hidden_states=True, return_dict=True)
    return output.hidden_states[-1].float()


@contextlib.contextmanager
def own_attention(model: PeftModel) -> Iterator[None]:
    """Give a model its own attention for a while: that of packed rows looks at no masks."""
    base: Any = model.get_base_model()
    is_packed = base.config._attn_implementation == ATTENTION
    if is_packed:
        base.set_attn_implementation(base.attention_before_packing)
    try:
        yield
    finally:
        if is_packed:
            base.set_attn_implementation(ATTENTION)


def pack_rows(model: PeftModel) -> None:
    """Let a model take batches of `data.batches.collate_packed` as well as padded ones.

    Rows must be packed only in training: the model no longer looks at attention masks.
    """
    from transformers import AttentionInterface

    base: Any = model.get_base_model()
    AttentionInterface.register(ATTENTION, document_attention)
    base.attention_before_packing = base.config._attn_implementation
    base.set_attn_implementation(ATTENTION)
    if base.config._attn_implementation != ATTENTION:
        raise _OwnAttention
    inner = base.forward

    def forward(
        *args: Any, row_starts: Tensor | None = None, longest_row: int = 0, **inputs: Any
    ) -> Any:
        # it stays until the next batch: the backward pass may compute layers again
        global _documents
        _documents = None if row_starts is None else Documents(row_starts, longest_row)
        return inner(*args, **inputs)

    base.forward = forward
