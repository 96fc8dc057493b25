"""The index beside a shard: where its members are, and of their texts what a plan must know without reading them.

    offset, size, crc32    of each member's bytes in the tar, G of each
    first                  place of each group's first text in the columns below, G + 1 of them
    positives              positives of each group, G
    hash                   64 bits of each text, T: a group's query, its positives, its negatives
    score                  of each text, T, the neg_scores of a negative, else NaN; not there where no group has any

The hash tells equal passages apart from different ones, so that the choice of passages is a pure function of
the index. The widths of the columns are the file's form; `SCHEMA` of the manifest stands for
them. What a reader does not know it leaves alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from reranker.groups import Group

_TYPES = {
    "offset": np.uint64,
    "size": np.uint64,
    "crc32": np.uint32,
    "first": np.uint64,
    "positives": np.uint32,
    "hash": np.uint64,
}


@dataclass(frozen=True)
class GroupTexts:
    """Hashes of one group's passages: equal hashes, equal passages."""

    pos: tuple[int, ...]
    neg: tuple[int, ...]


@dataclass(frozen=True)
class ShardIndex:
    """The columns, as this module's docstring names them."""

    offset: np.ndarray
    size: np.ndarray
    crc32: np.ndarray
    first: np.ndarray
    positives: np.ndarray
    hash: np.ndarray
    score: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def texts(self) -> int:
        """Texts of all groups: queries and passages."""
        return len(self.hash)

    def group(self, index: int) -> GroupTexts:
        """The passages of the group at `index`."""
        start, end = int(self.first[index]) + 1, int(self.first[index + 1])
        hashes = self.hash[start:end].tolist()
        positives = int(self.positives[index])
        return GroupTexts(tuple(hashes[:positives]), tuple(hashes[positives:]))

    def neg_scores(self, index: int) -> list[float] | None:
        """The scores of the negatives of the group at `index`; None where it has none."""
        assert self.score is not None, "asked of an index without scores"
        first = int(self.first[index]) + 1 + int(self.positives[index])
        scores: list[float] = self.score[first : int(self.first[index + 1])].tolist()
        return None if any(map(math.isnan, scores)) else scores


class IndexBuilder:
    """Collects the columns while the members of a shard go by."""

    def __init__(self) -> None:
        self._columns: dict[str, list[int]] = {name: [] for name in _TYPES}
        self._scores: list[float] = []
        self._scored = False

    def add(self, group: Group, offset: int, content: bytes) -> None:
        """The next member: its group and where in the tar its bytes `content` lie."""
        columns = self._columns
        columns["offset"].append(offset)
        columns["size"].append(len(content))
        columns["crc32"].append(zlib.crc32(content))
        columns["first"].append(len(columns["hash"]))
        columns["positives"].append(len(group.pos))
        columns["hash"].extend(map(text_hash, (group.prompted_query, *group.pos, *group.neg)))
        self._scores += [math.nan] * (1 + len(group.pos))
        self._scores += group.neg_scores or [math.nan] * len(group.neg)
        self._scored |= group.neg_scores is not None

    def save(self, path: Path) -> None:
        """Write the index. The same members write the same bytes."""
        columns = {**self._columns, "first": [*self._columns["first"], len(self._columns["hash"])]}
        arrays = {name: np.array(columns[name], type_) for name, type_ in _TYPES.items()}
        if self._scored:
            arrays["score"] = np.array(self._scores, np.float64)
        # Not save_file, which makes a file that its owner alone can read.
        path.write_bytes(save(arrays))


def load_index(content: bytes) -> ShardIndex:
    """The index in the bytes of its file."""
    columns = {field.name for field in dataclasses.fields(ShardIndex)}
    return ShardIndex(**{name: column for name, column in load(content).items() if name in columns})


def text_hash(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")
