"""What takes all groups to find: equal groups, queries that come again, positives that are negatives elsewhere.

In: 16-byte keys of groups, queries and pairs as numpy arrays. Out: the places of what repeats. Memory: 16 bytes for
each group, query and pair, and as much again while they are sorted; two different texts take each other for the same
with a chance of one in 10^19 among 10 million.
"""

from __future__ import annotations

import numpy as np


def repeated(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places, first): of every key that came before, its place and the place where it came first. `keys` is (N, 2)."""
    if not len(keys):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    order = np.lexsort((keys[:, 0], keys[:, 1]))  # stable: equal keys stay in their order
    ordered = keys[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    places = order[~new]
    back = np.argsort(places, kind="stable")
    return places[back], first[~new][back]


def contradictions(
    queries: np.ndarray, pairs: np.ndarray, positives: np.ndarray, negatives: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(groups, first, keys): groups with a negative that another group of their query has as positive.

    `first` is that other group's place; `keys` (K, 2) are the pairs of all positives of queries that repeat.
    """
    places, first = repeated(queries)
    again = np.zeros(len(queries), dtype=bool)
    again[places] = again[first] = True
    counts = np.stack([positives, negatives], axis=1).reshape(-1)
    group = np.repeat(np.arange(len(queries)), positives + negatives)
    positive = np.repeat(np.tile([True, False], len(queries)), counts)
    chosen = again[group]
    pairs, group, positive = pairs[chosen], group[chosen], positive[chosen]
    # Positives first, so that the first of equal pairs is a positive if any is.
    order = np.argsort(~positive, kind="stable")
    pairs, group, positive = pairs[order], group[order], positive[order]
    places, first = repeated(pairs)
    against = positive[first] & ~positive[places] & (group[first] != group[places])
    found, where = np.unique(group[places[against]], return_index=True)
    return found, group[first[against][where]], pairs[positive]
