"""Scores answers, labels and tags: chrF, ROUGE-L, F1, and their confidence intervals.

chrF, ROUGE-L and entities equal those of sacrebleu, rouge-score and seqeval (a test checks this).
These packages are not used because they require lxml, NLTK, scikit-learn and SciPy.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal

import numpy as np
import regex

Statistic = Callable[[np.ndarray], np.ndarray]
"""A score of resampled rows: counts of each row, (B, N) -> (B,). NaN if it is not defined."""

RESAMPLES = 1000
CONFIDENCE = 0.95
MIN_ROWS = 6
"""For an interval. The range of fewer rows covers even their median less often than CONFIDENCE:
1 - 2 ** (1 - rows)."""
_Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
_MATCH_SECONDS = 0.1  # some patterns would backtrack for hours
_ORDERS, _RECALL_WEIGHT = range(1, 7), 4.0
"""Of chrF2: character n-grams of 1 to 6, and beta squared, the weight of recall."""
_NUMBER = re.compile(r"([-+]?)[$€£¥]?\s?((?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)(?<=\d)\s?[%€]?\.?")
_WORD = re.compile(r"[^\W_]+")


def chrf(answer: str, target: str) -> float:
    """chrF2 of one answer, 0 to 1: the character n-grams that both texts share (Popović 2015)."""
    shares = []
    for order in _ORDERS:
        in_answer, in_target = (_ngrams(text, order) for text in (answer, target))
        if in_answer and in_target:
            shared = (in_answer & in_target).total()
            shares.append((shared / in_answer.total(), shared / in_target.total()))
    if not shares:
        return float(answer.split() == target.split())
    precision, recall = np.mean(shares, axis=0)
    if not precision + recall:
        return 0.0
    return float((1 + _RECALL_WEIGHT) * precision * recall / (_RECALL_WEIGHT * precision + recall))


def _ngrams(text: str, order: int) -> Counter[str]:
    text = "".join(text.split())
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def rouge_l(answer: str, target: str) -> float:
    """F1 of the longest common subsequence of lower-case words, 0 to 1.

    It takes words of any script. rouge-score only takes letters from a to z, and digits.
    """
    words, target_words = (_WORD.findall(text.lower()) for text in (answer, target))
    if not words or not target_words:
        return float(answer.split() == target.split())
    return 2 * _longest_common(words, target_words) / (len(words) + len(target_words))


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, with a table column as bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    all_bits = (1 << len(first)) - 1
    steps = all_bits
    for word in second:
        matches = steps & places.get(word, 0)
        steps = ((steps + matches) | (steps - matches)) & all_bits
    return len(first) - steps.bit_count()


def value_scores(answer: str, target: str) -> dict[str, bool]:
    """Return the scores of an answer that should be JSON or a number; none if it should not be.

    JSON is an object or a list. Objects are equal in any order of their keys. A number may have a
    sign, a currency, thousands and a percent sign; after `####`, as in GSM8K, or alone.
    """
    expected = _json_of(target)
    if expected is not None:
        found = _json_of(answer)
        return {"valid_json": found is not None, "same_json": found == expected}
    number = _number_of(target)
    return {} if number is None else {"same_number": _number_of(answer) == number}


def matches(answer: str, pattern: str) -> bool:
    """Return True if a whole answer matches a regular expression; False if it takes too long."""
    try:
        return regex.fullmatch(pattern, answer, timeout=_MATCH_SECONDS) is not None
    except TimeoutError:
        return False


def _json_of(text: str) -> str | None:
    """The object or list that a text is, in one form; None if it is neither."""
    try:
        value = json.loads(text, parse_float=_whole_if_equal)
        # in this form true is not 1, as it would be in Python
        return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else None
    except (ValueError, RecursionError):
        return None


def _whole_if_equal(digits: str) -> float:
    number = float(digits)
    return int(number) if number.is_integer() else number


def _number_of(text: str) -> Decimal | None:
    """The number that a text is, or that stands after the last `####`; None if there is none."""
    match = _NUMBER.fullmatch(text.rpartition("####")[2].strip())
    return Decimal(match[1].replace(",", "") + match[2].replace(",", "")) if match else None


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first, last) of each entity in a row of BIO, IOE or BIOES tags.

    An entity that begins with I counts too, as in CoNLL's own script.
    """
    spans, kind, first, ended = set(), "", 0, True
    for place, tag in enumerate([*tags, "O"]):
        mark, _, tag_kind = tag.partition("-")
        inside = mark in ("I", "E") and not ended and tag_kind == kind
        if not inside:
            if not ended:
                spans.add((kind, first, place - 1))
            kind, first, ended = tag_kind, place, mark == "O"
        if mark in ("E", "S"):
            spans.add((kind, first, place))
            ended = True
    return spans


def are_entities(labels: Sequence[str]) -> bool:
    """Return True if the tags mark entities: all but O begin with a place letter and a hyphen."""
    marks = [label for label in labels if label != "O"]
    return bool(marks) and all(re.match(r"[BIES]-.", label) for label in marks)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Statistic:
    """The ratio of two sums over rows, (N,) each."""
    return lambda counts: _divide(counts @ numerators, counts @ denominators)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    undefined = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)


def mean(values: Sequence[float] | np.ndarray) -> Statistic:
    """The mean over rows, (N,)."""
    return ratio(np.asarray(values, dtype=float), np.ones(len(values)))


def difference(minuend: Statistic, subtrahend: Statistic) -> Statistic:
    """The difference of two scores of the same rows."""
    return lambda counts: minuend(counts) - subtrahend(counts)


def f1(shared: np.ndarray, predicted: np.ndarray, expected: np.ndarray) -> Statistic:
    """F1 from the number of shared, predicted and expected items of each row, (N,) each."""
    return ratio(2.0 * shared, (predicted + expected).astype(float))


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean F1, 0 to 1, over the labels that occur in either array, (N,) each."""
    scores = []
    for label in np.union1d(predictions, labels):
        predicted, expected = predictions == label, labels == label
        shared = float((predicted & expected).sum())
        scores.append(2 * shared / float(predicted.sum() + expected.sum()))
    return float(np.mean(scores))


def macro_f1_of_rows(
    rows: np.ndarray, predictions: np.ndarray, labels: np.ndarray, num_labels: int
) -> Statistic:
    """Mean F1 over the labels that occur in either array, for resampled rows.

    Args:
        rows: the row of each prediction, (T,).
        predictions: label numbers, (T,).
        labels: the correct label numbers, (T,).
        num_labels: the number of all labels.
    """

    def score(counts: np.ndarray) -> np.ndarray:
        tables = (confusion(predictions, labels, num_labels, drawn[rows]) for drawn in counts)
        return np.array([_macro_f1_of_table(table) for table in tables])

    return score


def _macro_f1_of_table(table: np.ndarray) -> float:
    occurrences = table.sum(0) + table.sum(1)
    occurs = occurrences > 0
    return float((2 * np.diag(table)[occurs] / occurrences[occurs]).mean())


def confusion(
    predictions: np.ndarray, labels: np.ndarray, num_labels: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """The number of times that each label (row) was predicted as each label (column), (K, K)."""
    flat = np.bincount(labels * num_labels + predictions, weights, num_labels**2)
    return flat.reshape(num_labels, num_labels)


def point(score: Statistic, num_rows: int) -> float:
    """The score of the rows themselves, without resampling."""
    return float(score(np.ones((1, num_rows)))[0])


def bootstrap_intervals(
    scores: dict[str, Statistic], num_rows: int, seed: int = 0
) -> dict[str, list[float]]:
    """95 % bootstrap confidence intervals of scores.

    All scores use the same resamples, so a difference of two scores is a paired one.

    Args:
        scores: by name.
        num_rows: the number of rows that each score is of.
        seed: of the resamples.

    Returns:
        [low, high] by name. Empty below MIN_ROWS rows; without scores that are never defined.
    """
    if num_rows < MIN_ROWS:
        return {}
    drawn = np.random.default_rng(seed).integers(num_rows, size=(RESAMPLES, num_rows))
    counts = np.apply_along_axis(np.bincount, 1, drawn, minlength=num_rows).astype(float)
    ends = [100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2]
    intervals = {}
    for name, score in scores.items():
        values = score(counts)
        if (defined := values[np.isfinite(values)]).size:
            low, high = np.percentile(defined, ends)
            intervals[name] = [float(low), float(high)]
    return intervals


def wilson(wins: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (1927), valid for few trials too. (0, 1) of none."""
    if not trials:
        return 0.0, 1.0
    share, z_squared = wins / trials, _Z * _Z
    middle = share + z_squared / (2 * trials)
    spread = _Z * (share * (1 - share) / trials + z_squared / (4 * trials * trials)) ** 0.5
    scale = 1 + z_squared / trials
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
