"""How good answers, labels and tags are, and how sure that is: chrF, ROUGE-L, entities, and intervals by bootstrap. Arithmetic only.

chrF, ROUGE-L and entities are what sacrebleu, rouge-score and seqeval compute, which a test holds; those bring lxml, NLTK, scikit-learn and SciPy.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""A score of rows that are drawn so often: (B, N) counts -> (B,). Not a number where it is not defined."""

_ORDERS, _RECALL_WEIGHT = range(1, 7), 4.0
"""Of chrF2: character n-grams of 1 to 6, recall counted beta squared times."""
_WORD = re.compile(r"[^\W_]+")


def chrf(answer: str, wanted: str) -> float:
    """chrF2 of one answer, 0 to 1: how many of its character n-grams are in the wanted text, and the other way round. (Popović 2015.)"""
    shares = []
    for order in _ORDERS:
        given, right = (_ngrams("".join(text.split()), order) for text in (answer, wanted))
        if given and right:
            shared = (given & right).total()
            shares.append((shared / given.total(), shared / right.total()))
    if not shares:
        return float(answer.split() == wanted.split())
    precision, recall = np.mean(shares, axis=0)
    return (
        float((1 + _RECALL_WEIGHT) * precision * recall / (_RECALL_WEIGHT * precision + recall))
        if precision + recall
        else 0.0
    )


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def rouge_l(answer: str, wanted: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1, lower case. Words of any script, where rouge-score knows a to z and digits alone."""
    given, right = (_WORD.findall(text.lower()) for text in (answer, wanted))
    if not given or not right:
        return float(answer.split() == wanted.split())
    return 2 * _longest_common(given, right) / (len(given) + len(right))


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence: a column of the table at a time, its steps kept as bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(one)) - 1
    steps = every
    for word in other:
        found = steps & places.get(word, 0)
        steps = ((steps + found) | (steps - found)) & every
    return len(one) - steps.bit_count()


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first, last) of each entity in a row of BIO, IOE or BIOES tags; one that begins with I counts too, as in CoNLL's own script."""
    found, kind, first, ended = set(), "", 0, True
    for place, tag in enumerate([*tags, "O"]):
        mark, _, of = tag.partition("-")
        inside = mark in ("I", "E") and not ended and of == kind
        if not inside:
            if not ended:
                found.add((kind, first, place - 1))
            kind, first, ended = of, place, mark == "O"
        if mark in ("E", "S"):
            found.add((kind, first, place))
            ended = True
    return found


def are_entities(labels: Sequence[str]) -> bool:
    """Whether tags mark entities: all but O begin with a letter for the place and a hyphen."""
    return any(label != "O" for label in labels) and all(
        label == "O" or re.match(r"[BIES]-.", label) for label in labels
    )


def ratio(top: np.ndarray, bottom: np.ndarray) -> Statistic:
    """Sum over sum, each (N,)."""
    return lambda counts: _divided(counts @ top, counts @ bottom)


def mean(values: Sequence[float] | np.ndarray) -> Statistic:
    """The mean over rows, (N,)."""
    return ratio(np.asarray(values, dtype=float), np.ones(len(values)))


def f1(shared: np.ndarray, guessed: np.ndarray, wanted: np.ndarray) -> Statistic:
    """F1 of what was found in each row, (N,) each."""
    return ratio(2.0 * shared, (guessed + wanted).astype(float))


def macro_f1_of_rows(
    row: np.ndarray, guesses: np.ndarray, wanted: np.ndarray, num_labels: int
) -> Statistic:
    """Mean F1 over the labels that occur in either; `row` says to which row each of the guesses belongs, (T,) all three."""

    def score(counts: np.ndarray) -> np.ndarray:
        return np.array(
            [_macro_f1(confusion(guesses, wanted, num_labels, drawn[row])) for drawn in counts]
        )

    return score


def _macro_f1(table: np.ndarray) -> float:
    either = table.sum(0) + table.sum(1)
    return float((2 * np.diag(table)[either > 0] / either[either > 0]).mean())


def confusion(
    guesses: np.ndarray, wanted: np.ndarray, num_labels: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """How often each label (line) was taken for each (column), (K, K)."""
    return np.bincount(wanted * num_labels + guesses, weights, num_labels**2).reshape(
        num_labels, num_labels
    )


def _divided(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom != 0)
