"""What an offline run of Weights & Biases has written: the records of its .wandb file, as `wandb sync` would send them.

The file is LevelDB's log behind a header of 7 bytes: blocks of 32 KiB, each with chunks of (checksum, length, kind) and
bytes; a record is one whole chunk, or a first, middle ones and a last. wandb 0.31 reads it in Go alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32 * 1024
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class Run:
    """The records of one file, by kind."""

    records: list[Any]

    def of(self, kind: str) -> list[Any]:
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def ended(self) -> bool:
        return bool(self.of("exit"))

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows that were logged, by key."""
        return [_values(row.item) for row in self.of("history")]

    @property
    def config(self) -> dict[str, Any]:
        return {item.key: json.loads(item.value_json) for run in self.of("run") for item in run.config.update}

    @property
    def summary(self) -> dict[str, Any]:
        """The last value of each key of the summary."""
        return _values(item for record in self.of("summary") for item in record.update)


def _values(items: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *parents, key = item.nested_key or [item.key]
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = json.loads(item.value_json)
    return found


def read_run(path: Path) -> Run:
    """The whole records of a .wandb file; one that is still written to may lack its last."""
    records = []
    for content in _contents(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        records.append(record)
    return Run(records)


def _contents(content: bytes) -> Iterator[bytes]:
    assert content[:4] == b":W&B"
    place, parts = 7, []
    while place + 7 <= len(content):
        if (left := _BLOCK - place % _BLOCK) < 7:
            place += left  # no header fits
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part = content[place + 7 : place + 7 + length]
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or len(part) < length:
            return
        parts.append(part)
        place += 7 + length
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
            parts = []
