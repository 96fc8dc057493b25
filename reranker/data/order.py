"""(seed, pass, position) -> (shard, index): the order of the groups in one pass over a source, a pure function.

Shards are permuted for each pass and cut into blocks; the groups of a block are permuted among themselves,
so that a block's shards are read together and no others. Memory is O(shards), whatever the number of groups.
Each position names another group: nothing repeats and nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reranker.data.permutation import Permutation

# Keys of one seed that serve different ends must not be equal.
_SHARDS, _GROUPS = 1, 2


@dataclass(frozen=True)
class Block:
    """Shards that are shuffled together: in ascending order, where their groups end when counted through, and the
    permutation of these."""

    shards: np.ndarray
    ends: np.ndarray
    permutation: Permutation

    @property
    def groups(self) -> int:
        return int(self.ends[-1])

    def rank(self, shard: int, index: int) -> int:
        """The place of a group among the groups of the block."""
        place = int(np.searchsorted(self.shards, shard))
        return index + (int(self.ends[place - 1]) if place else 0)

    def at(self, rank: int) -> tuple[int, int]:
        """(shard, index) of the group at a place."""
        place = int(np.searchsorted(self.ends, rank, side="right"))
        return int(self.shards[place]), rank - (int(self.ends[place - 1]) if place else 0)


class Order:
    """The order of one pass.

    Args:
        sizes: groups of each shard.
        block: shards whose groups are shuffled together.
    """

    def __init__(self, sizes: Sequence[int], seed: int, number: int, block: int) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._shards = Permutation(len(sizes), seed, number, _SHARDS).all()
        # _ends[i]: groups in the first i + 1 shards of this pass's order.
        self._ends = np.cumsum(self._sizes[self._shards])
        self._block, self._seed, self._number = block, seed, number
        self._blocks: dict[int, Block] = {}
        self.groups = int(self._ends[-1])

    def block_of(self, position: int) -> int:
        """The block in which the group at `position` stands."""
        assert 0 <= position < self.groups, f"position {position} of {self.groups}"
        return int(np.searchsorted(self._ends, position, side="right")) // self._block

    def locate(self, position: int) -> tuple[int, int]:
        """(shard, index in the shard) of the group at `position`, 0 <= position < groups."""
        block = self.block_of(position)
        first = block * self._block
        start = int(self._ends[first - 1]) if first else 0
        inside = self.block(block).permutation(position - start)
        place = int(np.searchsorted(self._ends, start + inside, side="right"))
        before = int(self._ends[place - 1]) if place else 0
        return int(self._shards[place]), start + inside - before

    def block(self, number: int) -> Block:
        """A block by its number, 0 <= number < blocks."""
        if number not in self._blocks:
            shards = np.sort(self._shards[number * self._block : (number + 1) * self._block])
            # Positions are visited in order: only the block under way and those beside it are of use.
            self._blocks = {key: value for key, value in self._blocks.items() if abs(key - number) <= 2}
            ends = np.cumsum(self._sizes[shards])
            permutation = Permutation(int(ends[-1]), self._seed, self._number, _GROUPS, number)
            self._blocks[number] = Block(shards, ends, permutation)
        return self._blocks[number]

    @property
    def blocks(self) -> int:
        return -(-len(self._shards) // self._block)
