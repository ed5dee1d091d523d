"""Checks that a comparison is fair: same prompts, and a base model that training did not change."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peft_space.compat.transformers import watch_pictures
from peft_space.models.loading import AdaptedModel

Side = Literal["base", "adapter"]
SIDES: tuple[Side, Side] = ("base", "adapter")
SeenTokens = dict[Side, list[tuple[int, ...]]]
"""The token ids that reached the model for each side, one row for each prompt.

A negative number follows if the prompt has pictures: a digest of their arrays.
"""


@contextlib.contextmanager
def use_side(adapted: AdaptedModel, side: Side) -> Iterator[None]:
    """Within this context the model is the base alone, or the base with its adapter."""
    if side == "adapter":
        yield
        return
    try:
        for parameter, own, _ in adapted.biases:
            parameter.data = own
        with adapted.model.disable_adapter():
            yield
    finally:
        for parameter, _, trained in adapted.biases:
            parameter.data = trained


def adapter_names(sides: Sequence[Side]) -> list[str]:
    """PEFT's argument `adapter_names`, which switches the adapter on or off row by row."""
    return ["__base__" if side == "base" else "default" for side in sides]


@dataclass(frozen=True)
class Fairness:
    """The result of the check."""

    witness_tokens: int
    """The number of tokens whose logits were recorded before the adapter was added."""
    base_off_by: float
    """With the adapter off, the largest difference from these logits, in nats. 0 only if all are
    bitwise equal."""
    adapter_off_by: float
    """With the adapter on, the largest difference: how much the adapter changes."""
    num_prompts: int
    num_tokens: int
    """Of the prompts as the model got them."""
    num_with_pictures: int
    """The number of prompts with pictures. The check compares their pixels too."""
    same_tokens: bool | None
    """True if both sides got the same token ids; None if each continued its own conversation."""

    @property
    def fair(self) -> bool:
        """True if nothing unfair was found."""
        return self.base_off_by == 0 and self.same_tokens is not False

    def in_words(self) -> str:
        """The result in a few sentences."""
        on_tokens = f"on {self.witness_tokens} tokens"
        if self.base_off_by:
            sentences = [
                "NOT FAIR: the base side is not the untouched base. With the adapter off, its "
                f"logits {on_tokens} differ by up to {self.base_off_by:.3g} from those of the base "
                "before the adapter was loaded. Do not trust this comparison."
            ]
        else:
            sentences = [
                f"Checked: with the adapter off, the logits {on_tokens} are bitwise equal to those "
                "of the base before the adapter was loaded."
            ]
        if not self.adapter_off_by:
            sentences.append("With the adapter on they are equal too: it changes nothing there.")
        return " ".join([*sentences, *self._about_prompts()])

    def _about_prompts(self) -> list[str]:
        if self.same_tokens is None:
            return ["From the second turn on, each side continues with its own answers."]
        if not self.num_prompts:
            return []
        if not self.same_tokens:
            return [
                "NOT FAIR: the two sides got different token ids. Do not trust this comparison."
            ]
        prompts = f"{self.num_prompts} prompt{'s'[: self.num_prompts > 1]}"
        pictures = " and the same pictures" if self.num_with_pictures else ""
        return [f"Both sides got the same {self.num_tokens:,} token ids{pictures} in {prompts}."]


def check(
    adapted: AdaptedModel,
    seen: SeenTokens | None = None,
    by_row: bool = False,
    own_histories: bool = False,
) -> Fairness:
    """Compare the model, with the adapter off and on, with the base's recorded logits.

    Args:
        adapted: the model. Its base must have been recorded.
        seen: the token ids that each side got. They are compared too.
        by_row: switch the adapter row by row, as if both sides answered in one batch.
        own_histories: each side continued its own conversation, so the token ids may differ.
    """
    reference = adapted.reference
    assert reference is not None, "the base was not recorded before the adapter was added"
    differences = {}
    for side in SIDES:
        options = {"adapter_names": adapter_names([side])} if by_row else {}
        with contextlib.nullcontext() if by_row else use_side(adapted, side):
            differences[side] = reference.max_abs_diff(adapted.model, **options)
    base, adapter = (seen[side] if seen else [] for side in SIDES)
    return Fairness(
        witness_tokens=reference.num_tokens,
        base_off_by=differences["base"],
        adapter_off_by=differences["adapter"],
        num_prompts=len(base),
        num_tokens=sum(token >= 0 for row in base for token in row),
        num_with_pictures=sum(min(row, default=0) < 0 for row in base),
        same_tokens=None if own_histories else base == adapter,
    )


@contextlib.contextmanager
def capture_input_ids(
    adapted: AdaptedModel, sides: Sequence[Side], lengths: Sequence[int], seen: SeenTokens | None
) -> Iterator[None]:
    """Within this context, add the first token ids that reach the model to `seen`.

    Args:
        sides: the side of each row in the batch.
        lengths: the tokens of each row without padding.
        seen: what is added to; None to capture nothing.
    """
    if seen is None:
        yield
        return
    base = adapted.model.get_base_model()
    rows: list[list[int]] = []
    of_pictures: list[int] = []

    def capture(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not rows:
            rows.extend(kwargs["input_ids"].tolist())

    def note(tensors: list[Any]) -> None:
        if not of_pictures:
            of_pictures.append(_negative_digest(tensors))

    is_seq2seq = adapted.task_spec.task == "seq2seq-lm"  # its prompts are padded on the right
    reader = base.get_encoder() if is_seq2seq else base
    hook = reader.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        with watch_pictures(base, note):
            yield
    finally:
        hook.remove()
    for side, length, row in zip(sides, lengths, rows, strict=True):
        ids = row[:length] if is_seq2seq else row[len(row) - length :]
        seen[side].append((*ids, *of_pictures))


def _negative_digest(tensors: list[Any]) -> int:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.float().cpu().numpy().tobytes())
    return -1 - int.from_bytes(digest.digest()[:6])
