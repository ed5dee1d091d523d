"""Data quality: findings about the rows, each with a count, row numbers and a safe fix."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from peft_space.data.column_mapping import Fix
from peft_space.data.row_normalization import (
    Conversation,
    Preference,
    Row,
    Text,
    TextClassification,
    TokenClassification,
    UnpairedPreference,
)
from peft_space.redaction import has_secret

_MAX_ROW_NUMBERS = 100
_MAX_IMBALANCE = 20
_MAX_SPELLINGS = 10

_EXPLANATIONS: dict[str, tuple[str, str, Fix | None]] = {
    "duplicates": (
        "Duplicates",
        "Rows with the same content as an earlier row. The split keeps them on one side.",
        "deduplicate",
    ),
    "trailing": (
        "Unanswered last messages",
        "Rows that end with a message without an answer. They are left out.", "trim",
    ),
    "unmerged": (
        "Messages of one role that follow each other",
        "Also system messages that are not first. A chat template does not take such rows, so they "
        "are left out.", "merge",
    ),
    "unlabeled": (
        "Rows with the label -1",
        "Many datasets mark rows without a label so. These rows are left out.", "minus_one",
    ),
    "greeted": (
        "Conversations that begin with an answer",
        "Such as a greeting. Many chat templates take no answer before the first question, so "
        "these rows are left out.", "drop_greeting",
    ),
    "pictures_broken": (
        "Broken pictures",
        "A picture cannot be opened, or exceeds a limit. These rows are left out.", None,
    ),
    "pictures_missing": (
        "Missing pictures",
        "A row names a picture that was not brought along. These rows are left out.", None,
    ),
    "pictures_animated": (
        "Animated pictures", "Only the first image of the animation is used.", None,
    ),
    "pictures_scaled": (
        "Large pictures",
        "They are scaled down to 4 megapixels before the model's own processor gets them.", None,
    ),
    "pictures_repeated": (
        "Rows with a picture of an earlier row",
        "If one of them is held out, its score says less: the model has seen the picture.", None,
    ),
    "markers": (
        "Texts with markers of a chat template",
        "They contain <|im_start|>, [INST] or the like inside of a message. The model reads or "
        "learns these letters. Remove them from the rows.", None,
    ),
    "structured": (
        "Objects as questions or answers",
        "Rows with an object in place of a text. The model reads or learns it as JSON.", None,
    ),
    "alternating": (
        "Texts without a speaker",
        "They are read in turn: the first is the user's, the second the answer.", None,
    ),
    "bad_verdict": (
        "Answers that a column calls bad",
        "They are trained like the good ones, because the column is not used.", None,
    ),
    "own_split": (
        "Rows that a column marks as test rows",
        "They are trained too. To hold them out, give them as a file for the held-out rows.", None,
    ),
    "message_left_out": (
        "Messages that the chat template leaves out",
        "The template of this base model does not write a system message, or a result.", None,
    ),
    "call_left_out": (
        "Tool calls that the chat template leaves out",
        "The template writes fewer calls than the message has, so the model learns only those.",
        None,
    ),
    "text_left_out": (
        "Text next to a tool call that is left out",
        "The chat template writes only the calls of such a message.", None,
    ),
    "tools_left_out": (
        "Tools that the chat template leaves out",
        "The model does not read which functions it can call.", None,
    ),
    "reasoning_left_out": (
        "Reasoning that the chat template leaves out",
        "Usually that of earlier answers. The model learns these answers without it.", None,
    ),
    "reasoning_dropped": (
        "Reasoning that the recipe leaves out",
        "The recipe sets reasoning to leave_out, or thinking to off.", None,
    ),
    "empty_thought": (
        "Answers with empty reasoning",
        "The chat template writes empty reasoning before them, so the model learns not to reason. "
        "If the template has a switch, set thinking to off: then the prompt ends with it.", None,
    ),
    "untrained_by_weight": (
        "Rows whose own weights train nothing",
        "Every answer in them has weight 0. They are left out.", None,
    ),
    "leaks": (
        "Held-out rows that are also training rows",
        "They say nothing about generalization, so they are not scored.", None,
    ),
    "in_pieces": (
        "Texts that are trained in pieces",
        "They are longer than the length limit. Each piece begins with the end of the one before, "
        "which is read without a loss.", None,
    ),
    "cut": (
        "Rows that are cut off", "They are longer than the length limit and lose their end.",
        "drop_cut",
    ),
    "equal_pairs": (
        "Preference pairs with equal answers",
        "Both answers have the same tokens within the length limit, so nothing is learned from "
        "them.", None,
    ),
    "untrained": (
        "Rows without a trained token",
        "The length limit cuts off everything that is trained in them. They are left out.", None,
    ),
    "controls": (
        "Special tokens in the text",
        "Rows with special tokens of the model in their text. They are read as plain text.", None,
    ),
    "text_controls": (
        "Special tokens in plain texts",
        "The texts seem to be written by a chat template. The special tokens in them are read as "
        "letters, and the end of a text is added a second time.", "keep_control_tokens",
    ),
    "unknown": (
        "Unknown characters",
        "The tokenizer has no token for some characters of the trained text, so the model cannot "
        "learn to write them.", None,
    ),
    "placeholders": (
        "Placeholders", "Rows with a placeholder such as {{name}}. Replace it before you train.",
        None,
    ),
    "secrets": (
        "Likely secrets", "Rows with a likely key or token. The model can repeat it.",
        "drop_secrets",
    ),
    "emails": (
        "Email addresses", "The model can repeat them. Replace private addresses in your file.",
        None,
    ),
    "mojibake": (
        "Garbled letters",
        "The text was probably read in the wrong encoding. Use the file in its original encoding.",
        None,
    ),
    "odd": ("Invisible characters", "Rows with zero-width or control characters.", "strip"),
    "padded": ("White space around a text", "The model learns to write it.", "strip"),
}  # fmt: skip
"""Kind -> title, explanation and fix, the most important kind first."""


@dataclass(frozen=True)
class Finding:
    """A kind of quality problem: the first row numbers, the number of rows, and the fix."""

    kind: str
    title: str
    count: int
    rows: list[int]
    words: str
    """Explanation in complete sentences."""
    fix: Fix | None = None


@dataclass
class Findings:
    """Counters of findings and labels."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    rows: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    labels: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, kind: str, number: int) -> None:
        """Count the row with this number."""
        self.counts[kind] += 1
        if len(self.rows[kind]) < _MAX_ROW_NUMBERS:
            self.rows[kind].append(number)

    def merge(
        self, counts: dict[str, int], rows: dict[str, list[int]], labels: dict[str, int]
    ) -> None:
        """Add the counters of later rows."""
        for kind, count in counts.items():
            self.counts[kind] += count
            self.rows[kind] = (self.rows[kind] + rows[kind])[:_MAX_ROW_NUMBERS]
        for label, count in labels.items():
            self.labels[label] += count

    def to_list(self) -> list[Finding]:
        """Return the findings, the most important first."""
        findings = [
            Finding(kind, title, self.counts[kind], self.rows[kind], explanation, fix)
            for kind, (title, explanation, fix) in _EXPLANATIONS.items()
            if self.counts[kind]
        ]
        by_count = sorted(self.labels, key=lambda label: self.labels[label])
        if by_count and self.labels[by_count[-1]] > _MAX_IMBALANCE * self.labels[by_count[0]]:
            rarest, commonest = by_count[0], by_count[-1]
            title = f"Rows of the rarest label, {rarest!r}"
            explanation = (
                f"{commonest!r} has {self.labels[commonest]:,}. Rare labels are learned poorly."
            )
            count = self.labels[rarest]
            findings.append(Finding("unbalanced", title, count, [], explanation))
        return findings


def fold_label(label: str) -> str:
    """Return what different spellings of a label have in common: no capitals, no punctuation."""
    return " ".join(label.casefold().split()).strip(" .,;:!?'\"") or label


def label_spellings(labels: Mapping[str, int]) -> dict[str, str]:
    """Return the most frequent spelling of each label: folded label -> label.

    Args:
        labels: label -> number of rows.
    """
    by_count = sorted(labels, key=lambda label: labels[label])
    return {fold_label(label): label for label in by_count}


def spelling_finding(
    labels: Mapping[str, int], rows_of: Callable[[list[str]], list[int]]
) -> list[Finding]:
    """Return a finding if labels differ only in capitals, spaces or punctuation.

    Args:
        labels: label -> number of rows.
        rows_of: returns the numbers of the rows with some labels.
    """
    usual = label_spellings(labels)
    others = [label for label in labels if usual[fold_label(label)] != label]
    if not others:
        return []
    named = ", ".join(
        f"{label!r} ({labels[label]:,}) and {usual[fold_label(label)]!r} "
        f"({labels[usual[fold_label(label)]]:,})"
        for label in others[:_MAX_SPELLINGS]
    )
    more = f", and {len(others) - _MAX_SPELLINGS} more" if len(others) > _MAX_SPELLINGS else ""
    numbers = rows_of(others)
    words = f"They are learned as different labels: {named}{more}."
    shown = numbers[:_MAX_ROW_NUMBERS]
    return [Finding("spellings", "Other spellings of a label", len(numbers), shown, words, "unify")]


_SEPARATOR = re.compile(r"\s*[;|,]\s*|\s+(?=#)")
_MAX_WORDS = 3


def combined_finding(
    labels: Mapping[str, int], rows_of: Callable[[list[str]], list[int]]
) -> list[Finding]:
    """Return a finding if labels are made of several others, such as 'toxic;obscene'.

    Args:
        labels: label -> number of rows.
        rows_of: returns the numbers of the rows with some labels.
    """
    parts = {label: _SEPARATOR.split(label) for label in labels}
    combined = [label for label, names in parts.items() if len(names) > 1]
    shared = Counter(name for names in parts.values() for name in set(names))
    # in lists of labels the same short names come again and again
    short = [one for one in combined if all(len(name.split()) <= _MAX_WORDS for name in parts[one])]
    combined = [label for label in short if any(shared[name] > 1 for name in parts[label])]
    is_one = len(combined) == 1 and all(shared[name] > 1 for name in parts[combined[0]])
    if len(combined) < 2 and not is_one and not any("|" in one or "#" in one for one in combined):
        return []
    named = ", ".join(map(repr, combined[:_MAX_SPELLINGS]))
    words = (
        f"Each combination is learned as a separate label: {named}. Learning several labels of "
        "one text is not offered. Keep one label for each row."
    )
    numbers = rows_of(combined)
    shown = numbers[:_MAX_ROW_NUMBERS]
    return [Finding("combined", "Several labels in one", len(numbers), shown, words, None)]


_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
_PLACEHOLDER_SIGN = re.compile(r"\{\{|[<\[]")
_PLACEHOLDER = re.compile(
    r"\{\{\s*\w[\w .-]{0,40}\}\}|<(?:INSERT|YOUR)[ _][A-Z _]{2,30}>"
    r"|\[(?:INSERT|YOUR)[ _][A-Z _a-z]{2,30}\]"
)
_MARKER = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|eot_id|START_OF_TURN_TOKEN)\|>|\[/?INST\]"
    r"|<(?:start|end)_of_turn>|<｜(?:User|Assistant)｜>"
)
_MARKER_SIGN = re.compile(r"<[|｜]|\[/?INST|_of_turn>")
_MOJIBAKE = re.compile("Ã[\u0080-\u00bf\u0192\u201a-\u2122]|â€|Â[\u00a0-\u00bf]|\ufffd")
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff\ufffe\uffff]")


def texts_of(row: Row) -> Sequence[str]:
    """Return all texts of a row."""
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
    """Return the kinds of findings in the text of a row."""
    texts = texts_of(row)
    text = "\n".join(texts)
    # the cheap check first: rows are many and findings are rare
    is_found = {
        "padded": any(part and (part[0].isspace() or part[-1].isspace()) for part in texts),
        "placeholders": _PLACEHOLDER_SIGN.search(text) and _PLACEHOLDER.search(text),
        "secrets": has_secret(text),
        "markers": _MARKER_SIGN.search(text) and not isinstance(row, Text) and _MARKER.search(text),
        "emails": "@" in text and _EMAIL.search(text),
        "mojibake": not text.isascii() and _MOJIBAKE.search(text),
        "odd": not text.isprintable() and _INVISIBLE.search(text),
    }
    return [kind for kind, match in is_found.items() if match]


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as JSON values."""
    return [asdict(finding) for finding in findings]
