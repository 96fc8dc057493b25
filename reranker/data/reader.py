"""(shard, index) -> the bytes of one member, by a ranged read that checks the member's CRC.

In: shards with their manifest, local or remote. Out: members in any order, at the cost of one read each, and
what the index says of their texts at the cost of none. Files are opened when first needed, in the process that
needs them, and the ones not used for longest are closed: memory and open files do not grow with the number of
shards. A remote shard is read from this node's copy of it. Raises `BadMember` for bytes that are not those that
were packed, after they were read and fetched again.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tenacity import Retrying, stop_after_attempt, wait_exponential

from reranker.data.cache import ShardCache
from reranker.data.index import GroupTexts, ShardIndex, load_index
from reranker.data.location import is_remote, join, local_path
from reranker.data.manifest import REPACK, Manifest
from reranker.errors import UserError
from reranker.groups import Group, parse_group

_OPEN = 256
"""Shards that a process holds open: more than the blocks around a position and what negatives are drawn from."""


class BadMember(UserError):
    """A group that cannot be read: the line says of which shard and member, and why."""


@dataclass
class _Shard:
    file: int
    index: ShardIndex


class ShardReader:
    """Random access to the groups of a data set.

    Args:
        directory: path or URL of the manifest.
        cache: where copies of remote shards are kept; local shards need none.
        retries: times that a failed read is tried again.
    """

    def __init__(
        self, directory: str | Path, manifest: Manifest, cache: ShardCache | None = None, retries: int = 3
    ) -> None:
        self.directory = str(directory)
        self.manifest = manifest
        self.cache, self._retries = cache, retries
        self._starts = np.cumsum([0, *manifest.sizes])
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._process = os.getpid()

    def location(self, shard: int) -> str:
        return self.manifest.shards[shard].location(self.directory)

    def name(self, shard: int, index: int) -> str:
        """`directory/shard.tar:member`, for messages."""
        entry = self.manifest.shards[shard]
        # The members of foreign tars have names of their own, which the index does not hold.
        member = f"member {index}" if entry.url else f"{self.number(shard, index):09d}.json"
        return f"{self.location(shard)}:{member}"

    def number(self, shard: int, index: int) -> int:
        """The group's place in the data set, counted over all shards."""
        return int(self._starts[shard]) + index

    def place(self, number: int) -> tuple[int, int]:
        """(shard, index) of the group at a place in the data set."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, number - int(self._starts[shard])

    def read(self, shard: int, index: int) -> bytes:
        """The content of one member. Raises BadMember."""
        attempts = Retrying(
            stop=stop_after_attempt(self._retries + 1),
            wait=wait_exponential(multiplier=0.05, max=5),
            before_sleep=lambda _: self._forget(shard),
            reraise=True,
        )
        return attempts(self._read, shard, index)

    def group(self, shard: int, index: int) -> Group:
        """One group. Raises BadMember."""
        name = self.name(shard, index)
        try:
            return parse_group(json.loads(self.read(shard, index)), name)
        except BadMember:
            raise
        except UserError as mistake:
            raise BadMember(mistake.where, mistake.found, mistake.expected, mistake.fix) from None
        except ValueError as error:
            raise BadMember(name, f"no JSON ({error})", "a group", REPACK) from None

    def texts(self, shard: int, index: int) -> GroupTexts:
        """What the index says of one group's passages."""
        return self.index(shard).group(index)

    def index(self, shard: int) -> ShardIndex:
        return self._shard(shard).index

    def prefetch(self, shards: Iterable[int]) -> None:
        """Start to copy the remote ones among `shards` to this node, as many as the cache holds. Returns at once."""
        if self.cache is None:
            return
        wanted, room = [], self.cache.limit
        for shard in shards:
            location, entry = self.location(shard), self.manifest.shards[shard]
            if is_remote(location):
                room -= entry.bytes
                if room < 0:
                    break  # what came later would push out what is needed first
                wanted.append((location, entry.sha256, entry.bytes))
        if wanted:
            self.cache.prefetch(wanted)

    def close(self) -> None:
        """Close every file that is held open."""
        while self._open:
            os.close(self._open.popitem()[1].file)

    def _read(self, shard: int, index: int) -> bytes:
        name = self.name(shard, index)
        try:
            opened = self._shard(shard)
            offset, size = int(opened.index.offset[index]), int(opened.index.size[index])
            content = os.pread(opened.file, size, offset)
        except UserError as mistake:
            raise BadMember(mistake.where, mistake.found, mistake.expected, mistake.fix) from None
        except OSError as error:
            raise BadMember(name, f"bytes that cannot be read ({error.strerror or error})", "a readable shard",
                            "check the file system") from None  # fmt: skip
        if len(content) != size or zlib.crc32(content) != int(opened.index.crc32[index]):
            raise BadMember(name, "bytes that differ from those packed (CRC-32)", "an undamaged shard",
                            f"copy the shard again or {REPACK}")  # fmt: skip
        return content

    def _shard(self, shard: int) -> _Shard:
        if self._process != os.getpid():
            # A forked worker opens its own files: a file offset is shared, a cache entry is not.
            self._open, self._process = OrderedDict(), os.getpid()
        if shard not in self._open:
            while len(self._open) >= _OPEN:
                os.close(self._open.popitem(last=False)[1].file)
            index = self._load_index(shard)
            self._open[shard] = _Shard(self._open_tar(shard), index)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _open_tar(self, shard: int) -> int:
        location, entry = self.location(shard), self.manifest.shards[shard]
        if is_remote(location):
            assert self.cache is not None, "remote shards are read through a cache"
            return self.cache.open(location, entry.sha256, entry.bytes)
        try:
            return os.open(local_path(location), os.O_RDONLY)
        except OSError as error:
            raise UserError(location, f"a file that cannot be opened ({error.strerror})", "a readable shard",
                            "check the path and its permissions") from None  # fmt: skip

    def _load_index(self, shard: int) -> ShardIndex:
        entry = self.manifest.shards[shard]
        location = join(self.directory, entry.index_name)
        return load_index(read_file(location, entry.index_sha256, self.cache))

    def _forget(self, shard: int) -> None:
        """Close a shard that reads badly; a copy of a remote one is fetched anew."""
        opened = self._open.pop(shard, None)
        if opened is not None:
            os.close(opened.file)
        location = self.location(shard)
        if is_remote(location) and self.cache is not None:
            self.cache.drop(location, self.manifest.shards[shard].sha256)


def read_file(location: str, digest: str, cache: ShardCache | None) -> bytes:
    """The bytes of a small file beside the shards, checked. Raises UserError."""
    if is_remote(location):
        assert cache is not None, "remote shards are read through a cache"
        with open(cache.open(location, digest), "rb") as stream:
            return stream.read()
    try:
        content = Path(local_path(location)).read_bytes()
    except OSError as error:
        raise UserError(location, f"a file that cannot be read ({error.strerror})", "a file beside its shard",
                        REPACK) from None  # fmt: skip
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(location, "an index that is not the one packed", "the index of its shard", REPACK)
    return content
