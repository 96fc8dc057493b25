"""The measures of a ranking by name: `mrr@10`, `ndcg@10`, `recall@20`, `map`, `has_right_in_contexts@5`.

In: the grades of a query's passages in their ranked order, and of all that are judged for it. Out: one number from 0
to 1. Grades above 0 are relevant, what is not judged has grade 0. All are trec_eval's definitions: what is relevant and
not ranked counts as missed, and a query of which nothing is relevant, or nothing is ranked, has 0. Pure functions; the
order of equal scores is decided before them (`metrics.ranking`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from reranker.errors import UserError, closest
from reranker.evaluate.reference import grades_by_text

Judged = Mapping[str, int] | Collection[str]
"""{passage: grade}, or the passages that are relevant, all of grade 1."""


@dataclass(frozen=True)
class Measure:
    """A measure with its cutoff; `name` is as the user wrote it.

    Attributes:
        function: what computes it.
        k: ranks that are looked at; None: all.
        by_text: it compares texts, not ids, as the reference did (`reference.py`).
    """

    name: str
    function: Callable[[Sequence[int], Sequence[int], int | None], float]
    k: int | None
    by_text: bool = False

    def of(self, ranked: Sequence[str], judged: Judged, text_of: Callable[[str], str] = str) -> float:
        """Its value for one query; `text_of` gives the text of an id, for what compares texts."""
        grades = grades_of(judged)
        if self.by_text:
            found = grades_by_text(ranked, grades, text_of, self.k)
        else:
            found = [grades.get(passage, 0) for passage in ranked]
        return self.function(found, list(grades.values()), self.k)


def grades_of(judged: Judged) -> Mapping[str, int]:
    """{passage: grade}."""
    return judged if isinstance(judged, Mapping) else dict.fromkeys(judged, 1)


def success(ranked: Sequence[int], judged: Sequence[int], k: int | None) -> float:
    """1 if a relevant passage is among the first k. (Success@k; over contexts: has-right-in-contexts.)"""
    return float(any(grade > 0 for grade in ranked[:k]))


def reciprocal_rank(ranked: Sequence[int], judged: Sequence[int], k: int | None) -> float:
    """1 / rank of the first relevant passage, 0 if it is not among the first k. (RR@k.)"""
    return next((1 / rank for rank, grade in enumerate(ranked[:k], 1) if grade > 0), 0.0)


def recall(ranked: Sequence[int], judged: Sequence[int], k: int | None) -> float:
    """The share of all relevant passages that is among the first k. (R@k.)"""
    relevant = sum(grade > 0 for grade in judged)
    return sum(grade > 0 for grade in ranked[:k]) / relevant if relevant else 0.0


def average_precision(ranked: Sequence[int], judged: Sequence[int], k: int | None) -> float:
    """The sum of the precisions at the ranks of relevant passages, over the number of all relevant ones. (AP@k.)"""
    found, total = 0, 0.0
    for rank, grade in enumerate(ranked[:k], 1):
        if grade > 0:
            found += 1
            total += found / rank
    relevant = sum(grade > 0 for grade in judged)
    return total / relevant if relevant else 0.0


def ndcg(ranked: Sequence[int], judged: Sequence[int], k: int | None) -> float:
    """DCG over that of the ideal order, the gain being the grade itself, the discount log2(1 + rank).

    trec_eval's nDCG@k. Järvelin and Kekäläinen, TOIS 2002.
    """
    return _ndcg(ranked, judged, k, lambda grade: grade)


def ndcg_exponential(ranked: Sequence[int], judged: Sequence[int], k: int | None) -> float:
    """The same with the gain 2^grade - 1, as in learning to rank (Burges et al., ICML 2005). Grades 0 and 1: equal."""
    return _ndcg(ranked, judged, k, lambda grade: 2**grade - 1)


def _ndcg(
    ranked: Sequence[int], judged: Sequence[int], k: int | None, gain: Callable[[int], float]
) -> float:  # fmt: skip
    ideal = _dcg(sorted(judged, reverse=True)[:k], gain)
    return _dcg(ranked[:k], gain) / ideal if ideal > 0 else 0.0


def _dcg(grades: Sequence[int], gain: Callable[[int], float]) -> float:
    total = 0.0
    for rank, grade in enumerate(grades, 1):  # in this order, as trec_eval adds them: equal to the last bit
        if grade > 0:
            total += gain(grade) / math.log2(rank + 1)
    return total


NAMES: dict[str, Callable[[Sequence[int], Sequence[int], int | None], float]] = {
    "has_right_in_contexts": success,
    "mrr": reciprocal_rank,
    "ndcg": ndcg,
    "ndcg_exponential": ndcg_exponential,
    "map": average_precision,
    "recall": recall,
    "reference_has_right_context": success,
    "reference_mrr": reciprocal_rank,
}
"""A name takes a cutoff, @k."""
AMONG_CONTEXTS = ("has_right_in_contexts", "reference_has_right_context", "reference_mrr")
"""What looks among the contexts without a cutoff; the others look at all ranks."""


def measure(name: str, contexts: int) -> Measure:
    """The measure that is called so; `contexts` are the passages that are handed on. Raises UserError."""
    base, cut, digits = name.partition("@")
    if base not in NAMES:
        near = closest(base, NAMES)
        fix = f"did you mean {name.replace(base, near, 1)}?" if near else "choose one, with @k behind it for a cutoff"
        raise UserError("metrics", repr(name), "one of " + ", ".join(NAMES), fix)
    if cut and not re.fullmatch("[1-9][0-9]{0,8}", digits):
        raise UserError("metrics", repr(name), "a number of ranks behind the @", f"write {base}@10, for example")
    k = int(digits) if cut else contexts if base in AMONG_CONTEXTS else None
    return Measure(name, NAMES[base], k, by_text=base.startswith("reference_"))
