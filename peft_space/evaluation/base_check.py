"""Whether a comparison is fair: the base column is the untouched base, and both columns were given the same token ids. Checked, not assumed."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peft_space.models.loading import AdaptedModel

Side = Literal["base", "adapter"]
SIDES: tuple[Side, Side] = ("base", "adapter")
SeenTokens = dict[Side, list[tuple[int, ...]]]
"""The token ids that reached the model in each column, one row a prompt."""


@contextlib.contextmanager
def use_side(adapted: AdaptedModel, column: Side) -> Iterator[None]:
    """Within this context the model is the base alone, or the base with its adapter."""
    if column == "adapter":
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


@dataclass(frozen=True)
class Fairness:
    """What was checked, and how it came out."""

    witness_tokens: int
    """How many tokens the base was asked about before the adapter was put on it, and again with the adapter off."""
    base_off_by: float
    """The largest difference between these logits, in nats; 0 where all are equal to the bit."""
    adapter_off_by: float
    """The same with the adapter on: how much it changes."""
    num_prompts: int
    num_tokens: int
    """Of the prompts as the model got them."""
    same_tokens: bool | None
    """Whether both columns got the same token ids; None where they went on with answers of their own."""

    @property
    def fair(self) -> bool:
        return self.base_off_by == 0 and self.same_tokens is not False

    def in_words(self) -> str:
        """The check in a sentence or two."""
        on = f"on {self.witness_tokens} tokens"
        if self.base_off_by:
            said = (
                f"NOT FAIR: the base column is not the untouched base. With the adapter off its logits {on} differ by up to "
                f"{self.base_off_by:.3g} from those of the base before the adapter was loaded. Do not trust this comparison."
            )
        else:
            said = f"Checked: with the adapter off, the logits {on} are to the bit those of the base alone, before the adapter was loaded."
        if not self.adapter_off_by:
            said += " With the adapter on they are the same too: it changes nothing there."
        if self.same_tokens is None:
            return said + " From the second turn on each column goes on with its own answers."
        if not self.num_prompts:
            return said
        if not self.same_tokens:
            return (
                said
                + " NOT FAIR: the columns were given different token ids. Do not trust this comparison."
            )
        return (
            said
            + f" Both columns were given the same {self.num_tokens:,} token ids in {self.num_prompts} prompt{'s'[: self.num_prompts > 1]}."
        )


def check(
    adapted: AdaptedModel,
    seen: SeenTokens | None = None,
    by_row: bool = False,
    own_histories: bool = False,
) -> Fairness:
    """Ask the model once more what it was asked as a base alone, with the adapter off and on; and compare what the columns were given.

    Args:
        by_row: the adapter is switched as it is where both columns answer in one batch.
        own_histories: the columns went on with answers of their own.
    """
    assert adapted.witness is not None, (
        "only a base that was asked before can be held to be the same"
    )
    apart = []
    for column in SIDES:
        if by_row:
            apart.append(
                adapted.witness.difference(
                    adapted.model, adapter_names=["__base__" if column == "base" else "default"]
                )
            )
            continue
        with use_side(adapted, column):
            apart.append(adapted.witness.difference(adapted.model))
    base, adapter = (seen[column] if seen else [] for column in SIDES)
    same = None if own_histories else base == adapter
    return Fairness(adapted.witness.num_tokens, *apart, len(base), sum(map(len, base)), same)


@contextlib.contextmanager
def capture_input_ids(
    adapted: AdaptedModel, columns: Sequence[Side], lengths: Sequence[int], seen: SeenTokens | None
) -> Iterator[None]:
    """Add the token ids that the model is given first in this context to `seen`: rows of `columns`, of so many tokens each without padding."""
    if seen is None:
        yield
        return
    base = adapted.model.get_base_model()
    rows: list[list[int]] = []

    def note(module: Any, args: Any, given: dict[str, Any]) -> None:
        if not rows:
            rows.extend(given["input_ids"].tolist())

    pairs = adapted.goal.task == "seq2seq-lm"
    reads = base.get_encoder() if pairs else base
    hook = reads.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
    for column, length, row in zip(columns, lengths, rows, strict=True):
        seen[column].append(tuple(row[:length] if pairs else row[len(row) - length :]))
