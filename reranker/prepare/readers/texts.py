"""Texts by id, on the disk: MS MARCO's 8.8 million passages do not fit into memory as Python strings.

In: a tsv (`id<tab>text`) or jsonl (`_id` or `id`, `text`, with BEIR's `title` before it) file. Out: the text of an id.
Of a plain file a temporary SQLite table keeps where each line begins; of a compressed one it keeps the lines. Lines
that hold no text by an id are named in `unreadable`, by place; of an id that comes twice the first text is taken.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from reranker.errors import UserError
from reranker.prepare.readers.lines import located_lines
from reranker.prepare.readers.record import Unreadable

_BATCH = 20_000
_WRONG = 1000
"""Unreadable lines from the first on that make a wrong file."""


class TextIndex:
    """The texts of one file by id; close it, or use it as a context manager.

    Raises UserError for a file that is missing, and for one of whose first 1,000 lines none holds a text by an id.
    """

    def __init__(self, path: str | Path, longest: int) -> None:
        self.path = Path(path)
        self.unreadable: list[tuple[int, Unreadable]] = []
        self._tsv = ".tsv" in self.path.suffixes
        self._compressed = self.path.suffix in (".gz", ".zst")
        self._directory = tempfile.TemporaryDirectory(prefix="ko-reranker-")
        self._table = sqlite3.connect(str(Path(self._directory.name) / "texts.sqlite"))
        # The table dies with the process: a journal would be written for nobody.
        self._table.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;"
                                  "CREATE TABLE texts (id TEXT PRIMARY KEY, place) WITHOUT ROWID")  # fmt: skip
        self._stream: IO[bytes] | None = None
        try:
            self._fill(longest)
            self._stream = open(self.path, "rb")  # noqa: SIM115
        except BaseException:
            self.close()
            raise

    def get(self, name: str) -> str | None:
        """The text of an id, or None."""
        found = self._table.execute("SELECT place FROM texts WHERE id = ?", (name,)).fetchone()
        if found is None:
            return None
        if self._compressed:
            line = found[0]
        else:
            assert self._stream is not None
            self._stream.seek(found[0])
            line = self._stream.readline()
        return self._split(line)[1]

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._table.close()
        self._directory.cleanup()

    def __enter__(self) -> TextIndex:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _fill(self, longest: int) -> None:
        batch: list[tuple[str, object]] = []
        for name, place in self._places(longest):
            batch.append((name, place))
            if len(batch) == _BATCH:
                self._add(batch)
                batch = []
        self._add(batch)
        self._table.commit()

    def _add(self, batch: list[tuple[str, object]]) -> None:
        self._table.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", batch)

    def _places(self, longest: int) -> Iterator[tuple[str, object]]:
        form = "id<tab>text" if self._tsv else '{"_id": "...", "text": "..."}'
        readable = False
        for number, offset, line in located_lines(self.path, longest):
            if not readable and len(self.unreadable) >= _WRONG:
                found = f"{_WRONG:,} lines from the first on of which none is a passage or query"
                raise UserError(self.path, found, form, "name the right file with reading.corpus or reading.queries")
            if isinstance(line, Unreadable):
                self.unreadable.append((number, line))
                continue
            try:
                name, text = self._split(line)
                if not text.strip() or "\x00" in text:
                    raise ValueError("no text" if not text.strip() else "a NUL character in the text")
                f"{name}{text}".encode()  # half a character, which JSON can escape, is no text
                readable = True
                yield name, line if self._compressed else offset
            except (ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
                reason = f"found a line that is no passage or query ({error}), expected {form}"
                # Not the line itself: of a wrong file that would be all of it.
                where = f"{self.path}:{number}"
                unread = Unreadable(where, "schema", reason, offset=offset, size=len(line))
                self.unreadable.append((number, unread))

    def _split(self, line: bytes) -> tuple[str, str]:
        text = line.decode("utf-8-sig").rstrip("\r\n")
        if self._tsv:
            name, tab, rest = text.partition("\t")
            if not tab:
                raise ValueError("no tab")
            return name, rest
        value = json.loads(text)
        name = next(value[key] for key in ("_id", "id", "qid", "docid", "text") if key in value)
        body = value["text"] if "text" in value else value["query"]
        return str(name), " ".join(part for part in (value.get("title"), body) if part)
