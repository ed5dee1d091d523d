"""What is worth telling about data before it is trained on: findings, each with its rows, a count, and a fix where one is safe."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from peft_space.data.records import (
    Conversation,
    Preference,
    Row,
    Text,
    TextClassification,
    TokenClassification,
    UnpairedPreference,
)
from peft_space.data.schemas import Fix
from peft_space.redaction import has_secret

_MOST_ROWS = 100
"""Row numbers that a finding lists."""

_WORDS: dict[str, tuple[str, str, Fix | None]] = {
    "duplicates": (
        "Duplicates",
        "Rows that say the same as an earlier one. The split keeps them on one side.",
        "deduplicate",
    ),
    "trailing": (
        "Unanswered last messages",
        "Rows that end on a message that nobody answers, and are left out.",
        "trim",
    ),
    "leaks": (
        "Held-out rows that are trained on",
        "They prove nothing, and are left out of the scores.",
        None,
    ),
    "cut": (
        "Rows that are cut off",
        "They are longer than the limit, and lose their end.",
        "drop_cut",
    ),
    "untrained": (
        "Rows without a trained token",
        "Nothing that is trained is left of them within the limit, so they are left out.",
        None,
    ),
    "controls": (
        "Typed control tokens",
        "Rows with control tokens of the model in their text. They are read as plain text.",
        None,
    ),
    "placeholders": (
        "Placeholders",
        "Rows in which something like {{name}} was left. Fill it in before training.",
        None,
    ),
    "secrets": (
        "Likely secrets",
        "Rows with what looks like a key or a token. A model can repeat it.",
        "drop_secrets",
    ),
    "emails": (
        "E-mail addresses",
        "A model can repeat them. Replace them in your file where they are private.",
        None,
    ),
    "mojibake": (
        "Garbled letters",
        "As when text is read in the wrong encoding. Bring the file in its own encoding.",
        None,
    ),
    "odd": ("Invisible characters", "Rows with zero-width or control characters.", "strip"),
    "padded": ("White space around a text", "A model learns to write it.", "strip"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found: its name, which rows (the first hundred), how many in all, what it means, and what would mend it."""

    kind: str
    title: str
    count: int
    rows: list[int]
    words: str
    fix: Fix | None = None


@dataclass
class Findings:
    """Counts while rows go by."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    rows: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    labels: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, kind: str, number: int) -> None:
        """One more row."""
        self.counts[kind] += 1
        if len(self.rows[kind]) < _MOST_ROWS:
            self.rows[kind].append(number)

    def merge(
        self, counts: dict[str, int], rows: dict[str, list[int]], labels: dict[str, int]
    ) -> None:
        """What another process counted on later rows."""
        for kind, count in counts.items():
            self.counts[kind] += count
            self.rows[kind] = (self.rows[kind] + rows[kind])[:_MOST_ROWS]
        for label, count in labels.items():
            self.labels[label] += count

    def told(self) -> list[Finding]:
        """The findings, in the order in which they matter."""
        found = [
            Finding(kind, title, self.counts[kind], self.rows[kind], words, fix)
            for kind, (title, words, fix) in _WORDS.items()
            if self.counts[kind]
        ]
        if self.labels and max(self.labels.values()) > 20 * min(self.labels.values()):
            rarest = min(self.labels, key=lambda label: self.labels[label])
            most = max(self.labels, key=lambda label: self.labels[label])
            words = f"{most!r} has {self.labels[most]:,}. A rare label is learnt badly."
            found.append(
                Finding(
                    "unbalanced",
                    f"Rows of the rarest label, {rarest!r}",
                    self.labels[rarest],
                    [],
                    words,
                )
            )
        return found


_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
_PLACEHOLDER = re.compile(
    r"\{\{\s*\w[\w .-]{0,40}\}\}|<(?:INSERT|YOUR)[ _][A-Z _]{2,30}>|\[(?:INSERT|YOUR)[ _][A-Z _a-z]{2,30}\]"
)
_MOJIBAKE = re.compile("Ã[\u0080-\u00bf\u0192\u201a-\u2122]|â€|Â[\u00a0-\u00bf]|\ufffd")
_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff\ufffe\uffff]")


def texts_of(row: Row) -> Iterable[str]:
    """All texts in a row."""
    match row:
        case Conversation() | UnpairedPreference():
            return [message["content"] for message in row.messages]
        case Preference():
            return [message["content"] for message in (*row.prompt, *row.chosen, *row.rejected)]
        case Text():
            return [row.text]
        case TextClassification():
            return [row.text, row.second or ""]
        case TokenClassification():
            return [" ".join(row.tokens)]


def inspect(row: Row) -> list[str]:
    """The kinds of findings that a row's own text shows."""
    texts = texts_of(row)
    text = "\n".join(texts)
    found = (
        ["padded"] if any(one and (one[0].isspace() or one[-1].isspace()) for one in texts) else []
    )
    if ("{{" in text or "<" in text or "[" in text) and _PLACEHOLDER.search(text):
        found.append("placeholders")
    if has_secret(text):
        found.append("secrets")
    if "@" in text and _EMAIL.search(text):
        found.append("emails")
    if not text.isascii() and _MOJIBAKE.search(text):
        found.append("mojibake")
    if not text.isprintable() and _ODD.search(text):
        found.append("odd")
    return found


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The findings as plain values."""
    return [
        {
            "kind": one.kind,
            "title": one.title,
            "count": one.count,
            "rows": one.rows,
            "words": one.words,
            "fix": one.fix,
        }
        for one in findings
    ]
