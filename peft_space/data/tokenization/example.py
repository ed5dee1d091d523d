"""What a trainer receives for one row, whatever the task. Knows nothing of how it is made."""

from dataclasses import dataclass, field

from peft_space.data.tokenization.spans import Span

MASKED = -100
"""The label of a token that no loss is taken on."""


@dataclass(frozen=True)
class TokenizedExample:
    """`input_ids` (T,), which of them are trained, and what else the row's task has."""

    row: int
    input_ids: list[int]
    trained: list[Span]
    """Token spans that a loss is taken on, in order."""
    cut: int = 0
    """Number of tokens beyond the length limit that were cut off."""
    typed_controls: bool = False
    """Whether control tokens of the model were typed in the row's text; they are tokenized as the text they are."""
    texts: list[str] = field(default_factory=list)
    """The text each token stands for, (T,), where it was asked for; a character of several tokens stands with the first of them."""
    label: str | None = None
    """Of a labelled text."""
    tags: list[str] = field(default_factory=list)
    """Of tagged tokens: the tag of each, (T,), empty where none is learnt."""
    types: list[int] = field(default_factory=list)
    """Which of two texts each token belongs to, (T,), where the model wants to know."""
    good: bool | None = None
    """Of a rated answer."""
    rejected: "TokenizedExample | None" = None
    """Of a preference: the worse answer, after the same prompt."""
    target: "TokenizedExample | None" = None
    """Of a source: what is written from it."""

    @property
    def labels(self) -> list[int]:
        """`input_ids` where a loss is taken, -100 elsewhere, (T,)."""
        labels = [MASKED] * len(self.input_ids)
        for start, end in self.trained:
            labels[start:end] = self.input_ids[start:end]
        return labels

    @property
    def num_trained(self) -> int:
        """What a loss is taken on: tokens, tags, or one label. 0 where the row teaches nothing, such as a preference with one answer cut off."""
        own = sum(end - start for start, end in self.trained)
        if self.rejected is not None:
            return own + self.rejected.num_trained if own and self.rejected.num_trained else 0
        if self.target is not None:
            return self.target.num_trained
        return own + sum(tag != "" for tag in self.tags) + (self.label is not None)

    @property
    def length(self) -> int:
        """Tokens before the cut, of the longer sequence where there are two."""
        others = [other.length for other in (self.rejected, self.target) if other is not None]
        return max([len(self.input_ids) + self.cut, *others])
