"""What a service has answered, and is paid for: kept beside the scores, a line an answer, as it comes.

In: calls, by a digest of all that their answer depends on, and the answers. Out: scores/SYSTEM.answers.jsonl of the
output directory, {"of": digest, "scores": [...]} a line, flushed to the disk before the next is waited for, so that a
kill or a power cut loses the calls under way and no others. A last line that was cut short counts for nothing. Without
an output directory answers are kept in memory, as long as the command runs. Raises UserError for a file that cannot be
written.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from reranker.files import make_directory, refusals_told


class Answers:
    """The answers of one system. Used by one thread.

    With `read` false those of earlier runs are forgotten when the first new one comes.
    """

    def __init__(self, output: Path | None, system: str, read: bool) -> None:
        self._path = output / "scores" / f"{system}.answers.jsonl" if output else None
        self._read = read
        self._known: dict[str, list[float]] | None = None
        self._stream: IO[bytes] | None = None

    def get(self, call: str) -> list[float] | None:
        """The scores that a call was answered with, in the order of its documents."""
        return self._all().get(call)

    def put(self, call: str, scores: Sequence[float]) -> None:
        """Keep an answer, also over a loss of power."""
        self._all()[call] = list(scores)
        if self._path is None:
            return
        with refusals_told(self._path):
            if self._stream is None:
                make_directory(self._path.parent)
                self._stream = open(self._path, "ab" if self._read else "wb")  # noqa: SIM115
                if self._stream.tell() and not self._path.read_bytes().endswith(b"\n"):
                    self._stream.write(b"\n")  # behind a line that was cut short
            self._stream.write(json.dumps({"of": call, "scores": list(scores)}).encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream, self._read = None, True

    def _all(self) -> dict[str, list[float]]:
        if self._known is None:
            self._known = {}
            if self._path is not None and self._read and self._path.is_file():
                for line in self._path.read_bytes().splitlines():
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        answer = json.loads(line)
                        self._known[answer["of"]] = [float(score) for score in answer["scores"]]
        return self._known
