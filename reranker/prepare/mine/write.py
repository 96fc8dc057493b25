"""What the filters leave of each block -> the files of a mining, or of one task of several and then of their merge.

In: the blocks' results in order. Out: groups.jsonl, rejected.jsonl and removed.jsonl, each whole or absent; of a task
its results as they are, a line for each block, and its record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.files import atomic_open, sha256
from reranker.prepare.mine import report
from reranker.prepare.mine.finish import Found
from reranker.prepare.part import Shares


@dataclass(frozen=True)
class Written:
    """The counts of all blocks, and the first groups."""

    total: Found
    samples: list[str]
    removed: int

    @property
    def groups(self) -> int:
        return sum(self.total.sizes.values())

    @property
    def rejected(self) -> int:
        return self.total.requests - self.groups


def counted(results: Iterable[Found], bar: Any) -> Iterator[Found]:
    for found in results:
        yield found
        bar.update()


def write(results: Iterable[Found], output: Path) -> Written:
    """Write the groups and what is left out."""
    total, gone = Found(), 0
    samples: list[str] = []
    with (
        atomic_open(output / "rejected.jsonl") as rejected,
        atomic_open(output / "removed.jsonl") as removed,
        atomic_open(output / "groups.jsonl") as groups,
    ):
        for found in results:
            groups.write("".join(f"{line}\n" for line in found.groups).encode("utf-8"))
            rejected.write("".join(f"{line}\n" for line in found.rejected).encode("utf-8"))
            removed.write("".join(f"{line}\n" for line in found.removed).encode("utf-8"))
            gone += len(found.removed)
            samples += found.groups[: report.SAMPLES - len(samples)]
            total.add(found)
    return Written(total, samples, gone)


def leave(shares: Shares, results: Iterable[Found]) -> Written:
    """Write what a task has found, for the merge."""
    total = Found()
    shares.make()
    with atomic_open(shares.path(".jsonl")) as stream:
        for found in results:
            stream.write(found.to_json().encode("utf-8") + b"\n")
            total.add(found)
    written = Written(total, [], 0)
    shares.record(requests=total.requests, groups=written.groups, sha256=sha256(shares.path(".jsonl")))
    return written


def merged(shares: Shares, requests: int) -> Iterator[Found]:
    """What all tasks have found, in order. Raises UserError where that is not all groups."""
    merged = 0
    for number, record in enumerate(shares.records()):
        path = shares.path(".jsonl", number)
        if not path.is_file() or sha256(path) != record["sha256"]:
            found = "other bytes than its task recorded" if path.is_file() else "no such file"
            raise UserError(path, found, "what the task has found", f"run part={number}/{shares.part.of} again")
        with open(path, "rb") as stream:
            for line in stream:
                of_block = Found.from_json(line)
                merged += of_block.requests
                yield of_block
    if merged != requests:
        raise UserError(shares.directory, f"{merged} groups in all parts", f"the {requests} that were to be mined",
                        "run the parts again")  # fmt: skip
