"""The sets of an evaluation: which files each is made of, and what is in them.

In: `corpus=` and `queries=`, or `sets=` as a mapping {name: {path, form, ...}} or a yaml file that holds one. Out:
`EvaluationSet`s. Files are found and named before anything is read, so that a digest of them can spare the reading.
Raises `UserError`.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.config.common import FirstStageConfig
from reranker.config.evaluating import SetConfig, SetForm, Stage
from reranker.config.models import EvaluateConfig
from reranker.errors import UserError
from reranker.evaluate import forms
from reranker.evaluate.forms import Material
from reranker.evaluate.named import Named, read_named
from reranker.evaluate.rank import read_corpus, read_queries
from reranker.groups import raw_lines

ALONE = ""
"""The name of the set that corpus= and queries= are."""
_NAMED = Named("sets", "a set", "path", "a path, or {path: ..., form: ...}")
_OWN = (("corpus", ("corpus.jsonl*", "corpus*")), ("queries", ("queries.jsonl*", "queries*")))


@dataclass(frozen=True)
class EvaluationSet:
    """A set before it is read.

    Attributes:
        name: the user's, or "" for the one that has none.
        files: {role: file} of all that it is read from.
        stage: bm25, dense, run, or auto where the set comes with its candidates.
        depths: passages that are reranked, the table's own first.
    """

    name: str
    form: SetForm
    files: dict[str, Path]
    stage: Stage
    depths: tuple[int, ...]
    bm25: FirstStageConfig
    config: SetConfig

    def key(self, role: str) -> str:
        """How an error or a digest calls one of its keys."""
        return f"sets.{self.name}.{role}" if self.name else role

    def read(self) -> Material:
        """Passages, queries and candidates."""
        files = self.files
        if self.form is SetForm.own:
            corpus = read_corpus(files["corpus"])
            return Material(corpus, read_queries(files["queries"], corpus))
        if self.form is SetForm.groups:
            return forms.read_groups_set(files["path"])
        if self.form is SetForm.reranking:
            return forms.read_reranking(files["path"])
        if self.form is SetForm.csv:
            return forms.read_csv(files["path"], files.get("corpus"))
        return forms.read_judged(files["corpus"], files["queries"], files["qrels"])

    def settings(self) -> list[Any]:
        """What its table depends on beside the content of its files."""
        dense = self.config.dense
        return [self.name, self.form.value, self.stage.value, list(self.depths), dataclasses.asdict(self.bm25),
                [dense.query_prefix, dense.passage_prefix, dense.max_length]]  # fmt: skip

    def describe(self) -> str:
        """The first stage in words."""
        if self.stage is Stage.bm25:
            return f"BM25 ({self.bm25.analyzer}, k1={self.bm25.k1:g}, b={self.bm25.b:g})"
        if self.stage is Stage.dense:
            return f"the encoder {self.config.dense.model}"
        return f"the run {self.files['run'].name}" if self.stage is Stage.run else "none, candidates come with the set"


def sets_of(config: EvaluateConfig) -> list[EvaluationSet]:
    """The sets that the settings mean, their files found."""
    if config.sets is None:
        for key in ("corpus", "queries"):
            if getattr(config, key) is None:
                raise UserError(key, "no value", "passages and queries, or sets of them", f"say {key}=... or sets=...")
        alone = SetConfig(form=SetForm.own, corpus=config.corpus, queries=config.queries)
        return [_found(ALONE, alone, config)]
    if config.corpus is not None or config.queries is not None:
        raise UserError(
            "sets", "sets= beside corpus= or queries=", "one or the other", "make the two a set of their own"
        )
    _refuse_nameless(config.sets)
    named = read_named(config.sets, _NAMED, lambda where, given: SetConfig)
    return [_found(name, settings, config) for name, settings in named.items()]


def _refuse_nameless(sets: Any) -> None:
    """Raise UserError for one set without a name: as yaml, the keys of a record would pass for names of sets."""
    if not isinstance(sets, str) or not os.access(sets, os.R_OK):
        return
    keys = forms.first_record(Path(sets)) if os.path.isfile(sets) else {}  # a pipe can be read but once
    kinds = {
        "a directory": os.path.isdir(sets),
        "a groups file": {"pos", "neg"} <= keys.keys(),
        "a file of form=reranking": {"positive", "negative"} <= keys.keys(),
    }
    if kind := next((kind for kind, found in kinds.items() if found), None):
        raise UserError("sets", f"{sets}, {kind}", "sets by their names", f"say sets={{NAME: {sets}}}")


def _found(name: str, settings: SetConfig, config: EvaluateConfig) -> EvaluationSet:
    prefix = f"sets.{name}." if name else ""
    path = Path(settings.path) if settings.path else None
    if path is not None and not path.exists():
        raise UserError(f"{prefix}path", f"{path}, which does not exist", "a file or directory", "check the path")
    form = settings.form if settings.form is not SetForm.auto else _detect(path, settings, prefix)
    files = _files(form, path, settings, prefix)
    stage = settings.stage
    comes_with = form in (SetForm.groups, SetForm.reranking)
    if stage is Stage.auto and not comes_with:
        stage = Stage.run if settings.run else Stage.bm25
    if comes_with and (stage is not Stage.auto or settings.run):
        raise UserError(f"{prefix}stage", f"a first stage for form={form.value}", "none", "leave stage and run out: "
                        "the candidates come with it")  # fmt: skip
    if stage is Stage.run:
        files["run"] = _file(settings.run, f"{prefix}run")
    elif settings.run:
        raise UserError(f"{prefix}run", f"a run beside stage={stage.value}", "stage=run", "leave one of them out")
    if stage is Stage.dense and settings.dense.model is None:
        raise UserError(f"{prefix}dense.model", "no value", "an encoder", f"say {prefix}dense.model=...")
    bm25 = settings.bm25 or config.first_stage
    if settings.depth is not None and settings.depth < 1:
        raise UserError(f"{prefix}depth", str(settings.depth), "1 or more", "change the value")
    if comes_with:  # all of its candidates are ranked
        return EvaluationSet(name, form, files, stage, (), bm25, settings)
    first = config.depth if settings.depth is None else settings.depth
    depths = (first, *(depth for depth in settings.depths or config.depths if depth != first))
    if min(depths) < 1:
        raise UserError(f"{prefix}depths", str(min(depths)), "1 or more", "change the value")
    if config.contexts > first:
        raise UserError("contexts", str(config.contexts), f"at most {prefix}depth={first}", "raise depth or lower it")
    return EvaluationSet(name, form, files, stage, depths, bm25, settings)


def _files(form: SetForm, path: Path | None, settings: SetConfig, prefix: str) -> dict[str, Path]:
    directory = path if path is not None and path.is_dir() else None
    if form in (SetForm.groups, SetForm.reranking, SetForm.csv):
        if path is None or directory is not None:
            raise UserError(f"{prefix}path", "a directory" if path else "no value", f"a file of form={form.value}",
                            "name the file")  # fmt: skip
        files = {"path": path}
        return files | ({"corpus": _file(settings.corpus, f"{prefix}corpus")} if settings.corpus else {})
    files = {}
    for role, patterns in _OWN:
        given = getattr(settings, role)
        files[role] = _file(given, f"{prefix}{role}") if given else _beside(role, patterns, directory, prefix)
    if form is not SetForm.own:
        given = settings.qrels or (str(path) if path is not None and directory is None else None)
        files["qrels"] = _file(given, f"{prefix}qrels") if given else _qrels(directory, settings.split, prefix)
    return files


def _qrels(directory: Path | None, split: str | None, prefix: str) -> Path:
    found = sorted((directory / "qrels").glob("*.tsv")) if directory else []
    found = found or (sorted(path for path in directory.glob("*qrels*") if path.is_file()) if directory else [])
    chosen = [path for path in found if path.stem == (split or "test")] or (found if len(found) == 1 else [])
    if not chosen or (split and chosen[0].stem != split and len(found) > 1):
        names = [path.name for path in found] or "no judgements"
        raise UserError(f"{prefix}split", f"{names} in {directory}", f"{split or 'test'}.tsv in qrels/",
                        f"say {prefix}split=... or {prefix}qrels=...")  # fmt: skip
    return chosen[0]


def _detect(path: Path | None, settings: SetConfig, prefix: str) -> SetForm:
    if path is None or settings.qrels:
        return SetForm.trec if settings.qrels else SetForm.own
    if path.is_dir():
        if (path / "qrels").is_dir():
            return SetForm.beir
        return SetForm.trec if any(path.glob("*qrels*")) else SetForm.own
    if ".csv" in path.suffixes:
        return SetForm.csv
    record = forms.first_record(path)
    if {"positive", "negative"} <= record.keys():
        return SetForm.reranking
    if {"pos", "neg"} <= record.keys():
        return SetForm.groups
    columns = next(iter(raw_lines(path)), b"").split()
    if not record and len(columns) in (3, 4):
        return SetForm.trec
    raise UserError(f"{prefix}path", f"{path}, whose name and first line tell no form",
                    "groups, BEIR, TREC, MTEB's reranking, a csv, or corpus and queries",
                    f"say {prefix}form=...")  # fmt: skip


def _beside(role: str, patterns: tuple[str, ...], directory: Path | None, prefix: str) -> Path:
    for pattern in patterns if directory else ():
        assert directory is not None
        if found := sorted(path for path in directory.glob(pattern) if path.is_file()):
            return found[0]
    raise UserError(f"{prefix}{role}", f"none in {directory}" if directory else "no value", "texts by id",
                    f"say {prefix}{role}=...")  # fmt: skip


def _file(name: str | None, key: str) -> Path:
    path = Path(name) if name else None
    if path is None or not path.is_file():
        found = "no value" if path is None else f"{path}, {'a directory' if path.is_dir() else 'which does not exist'}"
        raise UserError(key, found, "a file", "check the path")
    return path
