"""Which form a path is in, by names and first bytes.

In: a path and the reader's settings. Out: `Found`: the form and the files it is made of, in words for the user as
well. Raises UserError that lists what was looked for.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from reranker.config.reading import Form, ReaderConfig
from reranker.errors import UserError
from reranker.files import open_text
from reranker.prepare.readers.arrow import SUFFIXES, dataset_files
from reranker.prepare.readers.columns import label_of

LOOKED_FOR = (
    "groups or triplets (.jsonl, .json, .gz, .zst), .parquet or .arrow files or a directory of them, MS MARCO "
    "(triples*.tsv, or qidpidtriples*.tsv with queries*.tsv and collection.tsv), BEIR (corpus.jsonl, queries.jsonl, "
    "qrels/*.tsv), TREC (qrels with corpus and queries)"
)

CORPUS = ("collection.tsv", "corpus.jsonl", "collection*", "corpus*")
"""What the passages by id are called in a directory."""


@dataclass(frozen=True)
class Found:
    """What is read.

    Attributes:
        form: lines (JSON), labelled (JSON lines of a query, a passage and a label), array (one JSON array), tsv (three
            texts), columns (parquet, arrow), ids (qid, pid, pid) or judged (qrels).
        files: the files with the records themselves.
        queries, corpus, run: the files that ids are looked up in, and the run, or None.
    """

    form: str
    files: tuple[Path, ...]
    queries: Path | None = None
    corpus: Path | None = None
    run: Path | None = None

    @property
    def everything(self) -> tuple[Path, ...]:
        """All files that records come from."""
        return (*self.files, *(path for path in (self.queries, self.corpus, self.run) if path))

    def __str__(self) -> str:
        words = {
            "lines": "JSON lines", "labelled": "JSON lines with labels", "array": "one JSON array",
            "tsv": "MS MARCO triples of texts", "columns": "rows of columns", "ids": "MS MARCO triples of ids",
            "judged": "relevance judgements",
        }  # fmt: skip
        beside = "".join(
            f", {name} {path}" for name, path in (("queries", self.queries), ("corpus", self.corpus), ("run", self.run))
            if path
        )  # fmt: skip
        return f"{words[self.form]} in {', '.join(map(str, self.files))}{beside}"


def detect(path: str | Path, config: ReaderConfig) -> Found:
    """The form that `path` is in. Raises UserError."""
    path = Path(path)
    if not path.exists():
        raise UserError(path, "no such file or directory", LOOKED_FOR, "check the path")
    if path.is_dir():
        return _directory(path, config)
    if path.suffix in SUFFIXES:
        return Found("columns", (path,))
    if config.form in (Form.groups, Form.triplets):
        return Found("array", (path,)) if _is_array(path) else _lines(path)
    if config.qrels or config.form in (Form.trec, Form.beir):
        return _judged(Path(config.qrels or path), path.parent, config)
    if ".tsv" in path.suffixes or config.form is Form.msmarco:
        columns = _first(path).split("\t")
        if len(columns) in (3, 4) and all(column.strip().isdigit() for column in columns[:3]):
            return _with_texts("ids", path, path.parent, config)
        if len(columns) == 3:
            return Found("tsv", (path,))
        raise _unknown(path, f"a tsv file of {len(columns)} columns")
    if _is_array(path):
        return Found("array", (path,))
    if {".json", ".jsonl"}.intersection(path.suffixes) or _first(path).lstrip("\ufeff \t")[:1] in ("{", "["):
        return _lines(path)
    raise _unknown(path, "a file whose name and first line tell no form")


def corpus_file(path: str | Path) -> Path:
    """The file of passages that `path` names: itself, or the one of a BEIR or MS MARCO directory. Raises UserError."""
    path = Path(path)
    return _beside("corpus", None, path, CORPUS) if path.is_dir() else path


def _directory(directory: Path, config: ReaderConfig) -> Found:
    split, form = config.split or "train", config.form
    if form in (Form.auto, Form.groups, Form.triplets) and (files := dataset_files(directory, config.split)):
        return Found("columns", tuple(files))
    if form in (Form.auto, Form.beir, Form.trec):
        names = sorted(file.stem for file in (directory / "qrels").glob("*.tsv"))
        if config.split is None and len(names) == 1:
            split = names[0]
        qrels = Path(config.qrels) if config.qrels else directory / "qrels" / f"{split}.tsv"
        if qrels.is_file():
            return _judged(qrels, directory, config)
        if names:
            raise UserError("split", split, f"one of {names} of {directory / 'qrels'}", "choose one")
    if form in (Form.auto, Form.msmarco):
        for pattern, kind in (("triples*.tsv*", "tsv"), ("qidpidtriples*.tsv*", "ids"), ("qrels*.tsv", "judged")):
            files = sorted(directory.glob(pattern))
            files = [file for file in files if f".{split}." in file.name] or files
            if len(files) > 1:
                raise UserError(directory, f"{len(files)} files {pattern}", "one", "name the file itself")
            if files and kind == "judged":
                return _judged(files[0], directory, config)
            if files:
                return Found(kind, (files[0],)) if kind == "tsv" else _with_texts(kind, files[0], directory, config)
    raise _unknown(directory, f"a directory with {sorted(file.name for file in directory.iterdir())[:8]}")


def _judged(qrels: Path, directory: Path, config: ReaderConfig) -> Found:
    return _with_texts("judged", qrels, directory.parent if directory.name == "qrels" else directory, config)


def _with_texts(form: str, records: Path, directory: Path, config: ReaderConfig) -> Found:
    split = config.split or "train"
    queries = _beside("queries", config.queries, directory, (f"queries.{split}.tsv", "queries.jsonl", "queries*"))
    corpus = _beside("corpus", config.corpus, directory, CORPUS)
    run = Path(config.run) if config.run else None
    for key, path in (("qrels", records), ("run", run)):
        if path is not None and not path.is_file():
            raise UserError(key, f"{path}, no such file", "a file", "check the path")
    return Found(form, (records,), queries, corpus, run)


def _beside(key: str, given: str | None, directory: Path, patterns: tuple[str, ...]) -> Path:
    if given:
        if not Path(given).is_file():
            raise UserError(key, f"{given}, no such file", "a tsv or jsonl file", "check the path")
        return Path(given)
    for pattern in patterns:
        if found := sorted(path for path in directory.glob(pattern) if path.is_file()):
            return found[0]
    raise UserError(key, f"none of {', '.join(patterns)} in {directory}", "texts by id, tsv or jsonl", f"say {key}=...")


def _lines(path: Path) -> Found:
    try:
        labelled = label_of(json.loads(_first(path).lstrip("\ufeff"))) != -1
    except (ValueError, RecursionError):
        labelled = False
    return Found("labelled" if labelled else "lines", (path,))


def _first(path: Path) -> str:
    with open_text(path) as stream:
        try:
            return stream.buffer.readline(1 << 16).decode("utf-8", "replace")  # type: ignore[attr-defined]
        except (EOFError, OSError, zlib.error):
            return ""


def _is_array(path: Path) -> bool:
    """Whether the file is one array of records. A line `["query", "positive", "negative"]` is a record by itself."""
    with open_text(path) as stream:
        try:
            head = stream.buffer.read(1 << 12).decode("utf-8-sig", "replace")  # type: ignore[attr-defined]
        except (EOFError, OSError, zlib.error):
            return False
    return head.lstrip()[:1] == "[" and head.lstrip()[1:].lstrip()[:1] in ("[", "{")


def _unknown(path: Path, found: str) -> UserError:
    return UserError(path, found, LOOKED_FOR, "say reading.form=... and the files, or convert it")
