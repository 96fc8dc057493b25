"""(epoch, position) -> (source, pass, place): how an epoch is made of several sources, a pure function.

A source of n groups and weight w fills m = round(w n) positions of every epoch. Epoch by epoch it goes on
through pass after pass over all of its groups, each pass in an order of its own: at weight 1 a pass is an
epoch; at weight 0.5 it takes two epochs and at weight 2 half of one. So whatever its weight, all of a source's
groups are shown before one of them is shown again.

The sources are spread evenly over an epoch: of its first p positions, a source has p m / N rounded down or up,
of those that the sources before it left over. Memory is O(sources).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """What one source adds to an epoch: `groups` of its own, `positions` of the epoch's."""

    groups: int
    positions: int

    @classmethod
    def weighted(cls, groups: int, weight: float) -> Share:
        """The share of a source of `groups` groups; one position at least."""
        return cls(groups, max(1, round(weight * groups)))


@dataclass(frozen=True)
class Place:
    """A group of an epoch: its source, the pass over that source, and its place in that pass."""

    source: int
    number: int
    position: int


class Mixture:
    """How the positions of every epoch are shared out among sources."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares = tuple(shares)
        self.positions = sum(share.positions for share in shares)

    def locate(self, epoch: int, position: int) -> Place:
        """The group at `position` of `epoch`, 0 <= position < positions."""
        assert 0 <= position < self.positions, f"position {position} of {self.positions}"
        remaining = self.positions
        for source, share in enumerate(self.shares):
            before = position * share.positions // remaining
            if (position + 1) * share.positions // remaining > before:
                number, place = divmod(epoch * share.positions + before, share.groups)
                return Place(source, number, place)
            position -= before
            remaining -= share.positions
        raise AssertionError("the last source takes what the others leave")
