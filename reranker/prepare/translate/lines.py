"""Every record of a source, or what is wrong with it.

In: groups in any form that can be read (`reranker.prepare.readers`), in files that may hold anything. Out: a `Line` for
each record, in order: its group, or what is wrong with it. What cannot be decompressed further is one `Line` more,
and `cut_short` tells of it: most of the file may be behind that place. Raises `UserError` only for a source that is
missing or of no known form, and where too large a share of the records cannot be read: then it is another file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reranker.config.reading import ReaderConfig
from reranker.errors import UserError
from reranker.groups import FORM, Group
from reranker.prepare.readers import Unreadable, read_chunks

_ENOUGH = 100
"""Lines from which on a share is one."""


@dataclass(frozen=True)
class Line:
    """One record: `where` is `file:line`; of `group` and `unreadable` one is None."""

    where: str
    group: Group | None
    unreadable: Unreadable | None = None


class Lines:
    """The records of a source, from the first on whenever they are asked for.

    Iterating raises UserError, as soon as it shows, for a share above `max_unreadable` without group.

    Attributes:
        cut_short: where and why the file could not be read to its end, as one line; None: it could, so far.
    """

    def __init__(self, path: str | Path, max_unreadable: float = 1.0, reading: ReaderConfig | None = None) -> None:
        self._path, self._most, self._reading = path, max_unreadable, reading or ReaderConfig()
        self.cut_short: str | None = None

    def __iter__(self) -> Iterator[Line]:
        if not Path(self._path).exists():
            raise UserError("groups", f"{self._path}, no such file", "groups, one JSON object a line", "check the path")
        lines = unreadable = 0
        first = ""
        for line in self._all():
            lines += 1
            if line.group is None:
                unreadable += 1
                first = first or f"{line.where}: {line.unreadable and line.unreadable.reason}"
                if lines >= _ENOUGH and unreadable > self._most * lines:
                    raise _too_many(self._path, unreadable, lines, self._most, first)
            yield line
        if not lines:
            raise UserError(self._path, "an empty file", f"one group a line, {FORM}", "check how the file was made")
        if unreadable > self._most * lines:
            raise _too_many(self._path, unreadable, lines, self._most, first)

    def _all(self) -> Iterator[Line]:
        for chunk in read_chunks(self._path, self._reading):
            for number, record in chunk:
                if isinstance(record, Group):
                    yield Line(chunk.where(number), record)
                    continue
                if record.kind == "cut_short":
                    self.cut_short = f"{record.where}: the file is cut short here, {record.reason}"
                yield Line(record.where, None, record)


def _too_many(path: str | Path, unreadable: int, lines: int, most: float, first: str) -> UserError:
    return UserError(path, f"{unreadable} of {lines} lines that are no groups (the first is {first})",
                     f"a share of {most:g} at most", "check the file or raise max_unreadable")  # fmt: skip
