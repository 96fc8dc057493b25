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
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from reranker.config.common import MOST_OPEN
from reranker.data.cache import ShardCache
from reranker.data.index import GroupTexts, ShardIndex, load_index
from reranker.data.location import is_remote, join, local_path
from reranker.data.manifest import REPACK, Manifest
from reranker.errors import UserError
from reranker.groups import Group, parse_group


class BadMember(UserError):
    """A group that cannot be read: the line says of which shard and member, and why."""


class _Again(BadMember):
    """A read that may go well when it is tried again."""


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
        self._files: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._lost: dict[int, BadMember] = {}
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
        """The content of one member. Raises BadMember; UserError for an index that is not whole."""
        try:
            return self._read(shard, index)
        except _Again:
            if not self._retries:
                raise
        self._forget(shard)
        attempts = Retrying(
            stop=stop_after_attempt(self._retries),
            wait=wait_exponential(multiplier=0.05, max=5),
            retry=retry_if_exception_type(_Again),
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

    def neg_scores(self, shard: int, index: int) -> list[float]:
        """The scores of one group's negatives, in the index. Raises UserError where there are none."""
        expected = "scores of its negatives, by which they are drawn"
        leave = "or say data.negatives.score_temperature=null"
        if self.index(shard).score is None:
            raise UserError(
                self.location(shard), "an index without neg_scores", expected,
                f"give its groups neg_scores (reranker mine teacher=...) and pack or index them again, {leave}",
            )  # fmt: skip
        if (found := self.index(shard).neg_scores(index)) is None:
            raise UserError(
                self.name(shard, index), "a group without neg_scores", expected,
                f"add them (reranker mine teacher=...) and pack again, {leave}",
            )  # fmt: skip
        return found

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard, whose tar need not be there. Raises UserError."""
        self._check_process()
        if shard not in self._indexes:
            entry = self.manifest.shards[shard]
            location = join(self.directory, entry.index_name)
            while len(self._indexes) >= MOST_OPEN:
                self._indexes.popitem(last=False)
            self._indexes[shard] = load_index(read_file(location, entry.index_sha256, self.cache))
        self._indexes.move_to_end(shard)
        return self._indexes[shard]

    def keep(self, shards: Collection[int]) -> None:
        """Close the tars that are not among `shards`: an evicted copy takes up the disk as long as it is open."""
        for shard in [shard for shard in self._files if shard not in shards]:
            os.close(self._files.pop(shard))
        self._lost = {shard: error for shard, error in self._lost.items() if shard in shards}

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
        self.keep(())

    def _read(self, shard: int, index: int) -> bytes:
        name, columns = self.name(shard, index), self.index(shard)
        offset, size = int(columns.offset[index]), int(columns.size[index])
        try:
            content = os.pread(self._file(shard), size, offset)
        except OSError as error:
            raise _Again(name, f"bytes that cannot be read ({error.strerror or error})", "a readable shard",
                         "check the file system") from None  # fmt: skip
        if len(content) != size or zlib.crc32(content) != int(columns.crc32[index]):
            raise _Again(name, "bytes that differ from those packed (CRC-32)", "an undamaged shard",
                         f"copy the shard again or {REPACK}")  # fmt: skip
        return content

    def _file(self, shard: int) -> int:
        self._check_process()
        if shard in self._lost:
            raise self._lost[shard]  # its other members would be tried for as long as the first
        if shard not in self._files:
            while len(self._files) >= MOST_OPEN:
                os.close(self._files.popitem(last=False)[1])
            try:
                self._files[shard] = self._open(shard)
            except BadMember as error:
                self._lost[shard] = error
                raise
        self._files.move_to_end(shard)
        return self._files[shard]

    def _open(self, shard: int) -> int:
        location, entry = self.location(shard), self.manifest.shards[shard]
        if is_remote(location):
            assert self.cache is not None, "remote shards are read through a cache"
            try:
                return self.cache.open(location, entry.sha256, entry.bytes)
            except UserError as error:
                if error.where != location:
                    raise  # of the cache itself: every shard would meet it
                raise BadMember(error.where, error.found, error.expected, error.fix) from None
        try:
            return os.open(local_path(location), os.O_RDONLY)
        except OSError as error:
            raise BadMember(location, f"a file that cannot be opened ({error.strerror})", "a readable shard",
                            "check the path and its permissions") from None  # fmt: skip

    def _forget(self, shard: int) -> None:
        """Close a shard that reads badly; a copy of a remote one is fetched anew."""
        if shard in self._files:
            os.close(self._files.pop(shard))
        location = self.location(shard)
        if is_remote(location) and self.cache is not None:
            self.cache.drop(location, self.manifest.shards[shard].sha256)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            # A forked worker opens its own files: it would close those of its parent.
            self._files, self._indexes, self._process = OrderedDict(), OrderedDict(), os.getpid()


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
