"""The documents that ship with the package: Korean software documentation with its English originals.

In: nothing; the files lie beside this module, in `documents/`. Out: passages and queries as plain records.
A query is a heading or a page description, its right passage is the text under it. Training looks at
LibreOffice help only; every other source is held out, whole, so that no document is on both sides.
Licences and authors: `documents/NOTICE.md`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from reranker.files import open_text, sha256

DOCUMENTS = Path(__file__).resolve().parent / "documents"
TRAIN_SOURCE = "libreoffice-help"
"""The source that training and checkpoint selection may see."""

_FILES = ("corpus.jsonl.gz", "queries.jsonl.gz")


def passages() -> list[dict[str, Any]]:
    """All passages: `id`, `text`, `text_en` (the aligned English or None), `doc`, `src`, `license`."""
    return _read(_FILES[0])


def queries() -> list[dict[str, Any]]:
    """All queries.

    `qid`, `query`, `query_en` (or None), `kind` (title or desc), `pos` (id of the right passage), `also`
    (ids of near-duplicates that count as right), `src`, `license`, `split` (train or dev, by document)
    and `verbatim` (the right passage repeats the query).
    """
    return _read(_FILES[1])


def training_queries() -> list[dict[str, Any]]:
    """The queries to train on: the training source's train split."""
    return [query for query in queries() if query["src"] == TRAIN_SOURCE and query["split"] == "train"]


def dev_queries() -> list[dict[str, Any]]:
    """The queries that select a checkpoint: the training source's dev split."""
    return [query for query in queries() if query["src"] == TRAIN_SOURCE and query["split"] == "dev"]


def held_out_queries() -> list[dict[str, Any]]:
    """The queries to report on: every other source's, whatever their split."""
    return [query for query in queries() if query["src"] != TRAIN_SOURCE]


def fingerprint() -> str:
    """A digest of the shipped documents: what is made from them is made anew when it changes."""
    digests = "".join(sha256(DOCUMENTS / name) for name in _FILES)
    return hashlib.sha256(digests.encode()).hexdigest()


def _read(name: str) -> list[dict[str, Any]]:
    return [dict(record) for record in _records(DOCUMENTS / name)]


@functools.lru_cache(maxsize=4)
def _records(path: Path) -> tuple[dict[str, Any], ...]:
    with open_text(path) as lines:
        return tuple(json.loads(line) for line in lines)
