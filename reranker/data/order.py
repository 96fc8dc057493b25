"""(seed, epoch, position) -> (shard, index): the order of the groups in an epoch, a pure function.

Shards are permuted for each epoch and cut into blocks; the groups of a block are permuted among
themselves, so that a block's shards are read together and no others. Memory is O(shards), whatever the
number of groups. Each position names another group: nothing repeats and nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reranker.data.permutation import Permutation

# Keys of one seed that serve different ends must not be equal.
_SHARDS, _GROUPS = 1, 2


class Order:
    """The order of one epoch.

    Args:
        sizes: groups of each shard.
        block: shards whose groups are shuffled together.
    """

    def __init__(self, sizes: Sequence[int], seed: int, epoch: int, block: int) -> None:
        count = len(sizes)
        permutation = Permutation(count, seed, epoch, _SHARDS)
        self._shards = np.array([permutation(place) for place in range(count)], dtype=np.int64)
        # _ends[i]: groups in the first i + 1 shards of this epoch's order.
        self._ends = np.cumsum(np.asarray(sizes, dtype=np.int64)[self._shards])
        self._block, self._seed, self._epoch = block, seed, epoch
        self.groups = int(self._ends[-1])

    def locate(self, position: int) -> tuple[int, int]:
        """(shard, index in the shard) of the group at `position`, 0 <= position < groups."""
        assert 0 <= position < self.groups, f"position {position} of {self.groups}"
        block = int(np.searchsorted(self._ends, position, side="right")) // self._block
        first = block * self._block
        last = min(first + self._block, len(self._shards)) - 1
        start = int(self._ends[first - 1]) if first else 0
        size = int(self._ends[last]) - start
        inside = Permutation(size, self._seed, self._epoch, _GROUPS, block)(position - start)
        place = int(np.searchsorted(self._ends, start + inside, side="right"))
        before = int(self._ends[place - 1]) if place else 0
        return int(self._shards[place]), start + inside - before
