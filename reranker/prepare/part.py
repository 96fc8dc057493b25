"""One command by many tasks: which share of the work is a task's, and what the shares have left for their merge.

In: `part=i/n`, the i-th of n tasks, counted from 0, or `part=merge/n`. Out, in OUTPUT.parts beside the output: what
each task has made, and a record of it that is written last. A merge wants the records of all n tasks, made from the
same inputs with the same settings; a task that was lost is named, and run again by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.files import make_directory, read_json, write_json

SCHEMA = 1
_MERGE = "merge"
_FORM = "i/n, the i-th of n tasks, counted from 0, or merge/n"


@dataclass(frozen=True)
class Part:
    """Task `number` of `of`; without a number the merge of all."""

    number: int | None
    of: int

    def __str__(self) -> str:
        return f"{_MERGE if self.number is None else self.number}/{self.of}"

    def of_range(self, total: int) -> range:
        """The numbers below `total` that are this task's: one run of them, which differ in length by one at most."""
        assert self.number is not None
        return range(total * self.number // self.of, total * (self.number + 1) // self.of)

    def has(self, number: int) -> bool:
        """Whether a number is this task's, where nobody knows yet how many there are."""
        return number % self.of == self.number


def parse_part(value: str | None) -> Part | None:
    """The part that a command is asked for; None: all at once. Raises UserError."""
    if value is None:
        return None
    found = re.fullmatch(rf"({_MERGE}|\d+)/(\d+)", value)
    if not found:
        raise UserError("part", value, _FORM, "say part=0/8, for example")
    number, of = None if found[1] == _MERGE else int(found[1]), int(found[2])
    if of < 1 or (number is not None and number >= of):
        raise UserError("part", value, f"a number below {of}" if of else "one task or more", "parts are counted from 0")
    return Part(number, of)


class Shares:
    """What the tasks of one command leave.

    Args:
        output: that of the command.
        key: stands for everything that the result depends on, see `key_of`.
    """

    def __init__(self, output: Path, part: Part, key: str) -> None:
        self.part, self._key = part, key
        self.directory = parts_of(output)

    @property
    def merging(self) -> bool:
        return self.part.number is None

    def path(self, suffix: str, number: int | None = None) -> Path:
        """A file of this task, or of task `number`."""
        number = self.part.number if number is None else number
        return self.directory / f"{number:05d}-of-{self.part.of:05d}{suffix}"

    def make(self) -> None:
        """Make the directory. Raises UserError."""
        make_directory(self.directory)

    def record(self, **found: Any) -> None:
        """Say that this task is done, and what it found. Written when all else is."""
        write_json(self.path(".json"), {"schema": SCHEMA, "part": str(self.part), "key": self._key, **found})

    def records(self) -> list[dict[str, Any]]:
        """What each task found, in order. Raises UserError that names those which are missing or of another run."""
        paths = [self.path(".json", number) for number in range(self.part.of)]
        missing = [number for number, path in enumerate(paths) if not path.is_file()]
        if missing:
            raise UserError(self.directory, f"no record of {self._named(missing)}",
                            f"one of each of {self.part.of} tasks", "run what is missing again by itself")  # fmt: skip
        found = [read_json(path, "remove it and run this part again") for path in paths]
        others = [
            number for number, value in enumerate(found)
            if not isinstance(value, dict) or (value.get("schema"), value.get("key")) != (SCHEMA, self._key)
        ]  # fmt: skip
        if others:
            raise UserError(self.directory, f"{self._named(others)} from other inputs or settings",
                            "those of this command", "run them again, or say what they were run with")  # fmt: skip
        return found

    def _named(self, numbers: Collection[int]) -> str:
        shown = [f"part={number}/{self.part.of}" for number in sorted(numbers)[:8]]
        return ", ".join(shown) + (f" and {len(numbers) - len(shown)} more" if len(numbers) > len(shown) else "")


def parts_of(output: Path) -> Path:
    """Where the tasks of a command with this output leave what they make."""
    return Path(f"{os.path.abspath(output)}.parts")


def key_of(config: Any, without: Collection[str], *inputs: Any) -> str:
    """Digest of the settings, except those `without` effect on the result, and of what stands for the inputs."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in without}
    content = json.dumps([settings, *inputs], sort_keys=True, default=_plain)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} in settings")
