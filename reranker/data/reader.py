"""(shard, index) -> the bytes of one member, by a ranged read that checks the member's CRC.

In: a shard directory with its manifest. Out: members in any order, at the cost of one read each. Files are
opened when first needed, in the process that needs them. Raises `UserError` for bytes that are not those
that were packed.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np

from reranker.data.manifest import REPACK, Manifest
from reranker.errors import UserError
from reranker.files import sha256
from reranker.groups import Group, parse_group


class ShardReader:
    """Random access to the groups of a data set."""

    def __init__(self, directory: str | Path, manifest: Manifest) -> None:
        self.directory = Path(directory)
        self.manifest = manifest
        self._starts = np.cumsum([0, *manifest.sizes])
        self._files: dict[int, int] = {}
        self._indexes: dict[int, dict[str, np.ndarray]] = {}
        self._process = os.getpid()

    def name(self, shard: int, index: int) -> str:
        """`directory/shard.tar:member`, for messages."""
        return f"{self.directory / self.manifest.shards[shard].name}:{self.number(shard, index):09d}.json"

    def number(self, shard: int, index: int) -> int:
        """The group's place in the data set, counted over all shards."""
        return int(self._starts[shard]) + index

    def place(self, number: int) -> tuple[int, int]:
        """(shard, index) of the group at a place in the data set."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, number - int(self._starts[shard])

    def read(self, shard: int, index: int) -> bytes:
        """The content of one member."""
        file, members = self._open(shard)
        offset, size = int(members["offset"][index]), int(members["size"][index])
        content = os.pread(file, size, offset)
        if len(content) != size or zlib.crc32(content) != int(members["crc32"][index]):
            raise UserError(self.name(shard, index), "bytes that differ from those packed (CRC-32)",
                            "an undamaged shard", f"copy the shard again or {REPACK}")  # fmt: skip
        return content

    def group(self, number: int) -> Group:
        """The group at a place in the data set."""
        shard, index = self.place(number)
        return parse_group(json.loads(self.read(shard, index)), self.name(shard, index))

    def _open(self, shard: int) -> tuple[int, dict[str, np.ndarray]]:
        if self._process != os.getpid():
            # A forked worker opens its own files.
            self._files, self._indexes, self._process = {}, {}, os.getpid()
        if shard not in self._files:
            path = self.directory / self.manifest.shards[shard].name
            self._indexes[shard] = self._load_index(shard)
            try:
                self._files[shard] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise UserError(path, f"a file that cannot be opened ({error.strerror})", "a readable shard",
                                "check the path and its permissions") from None  # fmt: skip
        return self._files[shard], self._indexes[shard]

    def _load_index(self, shard: int) -> dict[str, np.ndarray]:
        from safetensors.numpy import load_file

        entry = self.manifest.shards[shard]
        path = self.directory / entry.index_name
        if not path.is_file() or sha256(path) != entry.index_sha256:
            raise UserError(path, "an index that is not the one packed", "the index of its shard",
                            REPACK)  # fmt: skip
        return load_file(path)
