"""Which candidates may be right although nobody said so: the filters of false negatives.

In: a candidate's scores and text beside those of the positives. Out: whether it is dropped. Pure functions. With
several positives each counts as if it were the group's only one: a candidate must pass beside the lowest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

EQUIVALENT, MARGIN, NEAR, RESCORED = "equivalent", "margin", "near-duplicate", "rescored"


@dataclass(frozen=True)
class Settings:
    """`margin` of retrieval scores and `near` of similarity; None: no such filter."""

    margin: float | None
    near: float | None


def above_margin(score: float, positives: Sequence[float], margin: float) -> bool:
    """Whether a score is more than `margin` of the lowest positive's.

    TopK-PercPos of NV-Retriever (Moreira et al., 2024, arXiv:2407.15831), whose threshold is 95% of the positive's
    score. Where that score is negative, as a cosine can be, the same distance lies below it.
    """
    lowest = min(positives)
    return score > lowest - (1 - margin) * abs(lowest)


def probability(score: float) -> float:
    """The sigmoid of a reranker's score."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def rescored_as_right(score: float, positives: Sequence[float], margin: float | None, threshold: float | None) -> bool:
    """Whether a reranker's score speaks for a false negative.

    In probabilities, not in logits, where a share of a score that may be negative means nothing. NV-Retriever's rule
    with the reranker as teacher; `threshold` is the absolute bound that its TopK-Abs has.
    """
    own = probability(score)
    if threshold is not None and own > threshold:
        return True
    return margin is not None and own > margin * min(map(probability, positives))
