"""The backend `memory`: exact matches in translation memories of one's own.

In: files of pairs, jsonl (also .gz and .zst) with the languages' codes as keys or "source" and "target", or TMX 1.4.
Out: an outcome for each text; what the memories lack is `missing`, for the next backend. Of several translations of
a text the first one wins. The pairs lie in a temporary file of SQLite: memory holds none of them for long.
"""

from __future__ import annotations

import itertools
import sqlite3
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.files import open_text, sha256
from reranker.groups import kind_of, parse_text, read_lines
from reranker.prepare.translate.backend import MISSING, Outcome, check_counts
from reranker.prepare.translate.ledger import hash_of

_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_AT_ONCE = 900


class Memory:
    """Translation memories, earlier files first. Raises UserError for a file that is none.

    Attributes:
        pairs: distinct texts that have a translation.
        conflicts: pairs whose text has another translation already, which were passed over.
    """

    def __init__(
        self, source: str, target: str, files: Sequence[str], batch_texts: int = 2000, config_key: str = "backend"
    ) -> None:
        check_counts(config_key, 1, batch_texts, 0, 0)
        names = [files] if isinstance(files, str) else files
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{config_key}.files", repr(files), "a path or a list of paths", "name the files")
        if not names:
            raise UserError(f"{config_key}.files", "no file", "translation memories, jsonl or TMX", "name one or more")
        self.concurrency, self.batch_texts, self.price, self.seconds_per_text = 1, batch_texts, 0.0, 0.0
        self.conflicts = 0
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("CREATE TABLE pairs (text BLOB PRIMARY KEY, translation TEXT NOT NULL) WITHOUT ROWID")
        for name in names:
            self._load(name, source, target)
        self.pairs = self._database.execute("SELECT COUNT(*) FROM pairs").fetchone()[0]
        digests = ",".join(sha256(name)[:16] for name in names)
        self.identity = f"memory {source}>{target} {digests}"

    def translate(self, texts: Sequence[str]) -> list[Outcome]:
        """What the memories have for each text."""
        hashes = [hash_of(text) for text in texts]
        found: dict[bytes, str] = {}
        for start in range(0, len(hashes), _AT_ONCE):
            some = hashes[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            found.update(self._database.execute(f"SELECT * FROM pairs WHERE text IN ({marks})", some))
        missing = Outcome(None, f"{MISSING}not in the translation memory")
        return [Outcome(found[key]) if key in found else missing for key in hashes]

    def close(self) -> None:
        self._database.close()

    def _load(self, name: str, source: str, target: str) -> None:
        tmx = Path(name).name.endswith((".tmx", ".tmx.gz", ".tmx.zst"))
        pairs = _read_tmx(name, source, target) if tmx else _read_jsonl(name, source, target)
        read = 0
        while some := [(hash_of(text), translation) for text, translation in itertools.islice(pairs, 10_000)]:
            read += len(some)
            self._database.execute("BEGIN")
            for row in some:
                if not self._database.execute("INSERT OR IGNORE INTO pairs VALUES (?, ?)", row).rowcount:
                    first = self._database.execute("SELECT translation FROM pairs WHERE text=?", row[:1]).fetchone()
                    self.conflicts += first[0] != row[1]
            self._database.execute("COMMIT")
        if not read:
            raise UserError(name, f"no pair of {source} and {target}", "a translation memory of these languages",
                            "check the file and the languages")  # fmt: skip


def _read_jsonl(name: str, source: str, target: str) -> Iterator[tuple[str, str]]:
    for where, value in read_lines(name):
        if not isinstance(value, dict):
            raise UserError(where, kind_of(value), "an object with two texts", f'write {{"{source}", "{target}"}}')
        keys = (source, target) if source in value and target in value else ("source", "target")
        for key in keys:
            if key not in value:
                raise UserError(where, f"keys {sorted(value)}", f'"{source}" and "{target}", or "source" and "target"',
                                "rename the keys")  # fmt: skip
        yield parse_text(value[keys[0]], f'"{keys[0]}"', where), parse_text(value[keys[1]], f'"{keys[1]}"', where)


def _read_tmx(name: str, source: str, target: str) -> Iterator[tuple[str, str]]:
    with open_text(name) as stream:
        try:
            body: Any = None
            # The parser reads the encoding from the file itself.
            for event, element in ElementTree.iterparse(stream.buffer, ("start", "end")):  # type: ignore[attr-defined]
                if event == "start" and element.tag == "body":
                    body = element
                elif event == "end" and element.tag == "tu":
                    texts = [_text_of(element, language) for language in (source, target)]
                    if texts[0] and texts[1]:
                        yield texts[0], texts[1]
                    if body is not None:
                        body.clear()  # else the whole file stays in memory
        except ElementTree.ParseError as error:
            raise UserError(f"{name}:{error.position[0]}", f"no XML ({error})", "TMX", "make the file anew") from None
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(name, f"a file that cannot be read to its end ({error})", "a whole file",
                            "copy or make the file anew") from None  # fmt: skip


def _text_of(unit: Any, language: str) -> str | None:
    """The first variant of a translation unit that is in a language, a region of it or its general form."""
    for variant in unit.iter("tuv"):
        code = (variant.get(_LANGUAGE) or variant.get("lang") or "").lower().replace("_", "-")
        wanted = language.lower()
        if code == wanted or code.startswith(f"{wanted}-") or (code and wanted.startswith(f"{code}-")):
            segment = variant.find("seg")
            text = "".join(segment.itertext()) if segment is not None else ""
            if text.strip():
                return text
    return None
