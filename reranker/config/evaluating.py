"""The settings of one set of an evaluation, and of the comparison of two reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from reranker.config.common import MISSING, FirstStageConfig
from reranker.config.mining import DenseConfig

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


class SetForm(Enum):
    auto = "auto"
    own = "own"
    groups = "groups"
    beir = "beir"
    trec = "trec"
    reranking = "reranking"
    csv = "csv"


class Stage(Enum):
    auto = "auto"
    bm25 = "bm25"
    dense = "dense"
    run = "run"


@dataclass
class SetConfig:
    path: Optional[str] = None
    """Directory or file of the set; null: the files that corpus, queries and qrels name"""
    form: SetForm = SetForm.auto
    """auto: by names and first lines; own: corpus and queries as of corpus= and queries=; or what it is"""
    corpus: Optional[str] = None
    """Passages by id; null: those in the directory, of csv those of its lines"""
    queries: Optional[str] = None
    """Queries by id; null: those in the directory"""
    qrels: Optional[str] = None
    """Relevance judgements of trec or beir; null: those in the directory, of the split"""
    split: Optional[str] = None
    """Split of a directory, as in qrels/test.tsv; null: test, or the only one"""
    stage: Stage = Stage.auto
    """auto: the candidates that a set comes with, or its run, or else bm25"""
    run: Optional[str] = None
    """Run of TREC, whose passages are the candidates, by falling score"""
    bm25: Optional[FirstStageConfig] = None
    """Settings of BM25; null: those of first_stage"""
    dense: DenseConfig = field(default_factory=DenseConfig)
    """The encoder of stage=dense"""
    depth: Optional[int] = None
    """Passages of the first stage that are reranked; null: the command's depth"""
    depths: list[int] = field(default_factory=list)
    """Other depths at which the systems are compared as well; empty: the command's depths"""


@dataclass
class CompareConfig:
    first: str = MISSING
    """Report directory, with :SYSTEM behind it for another system than fine-tuned"""
    second: str = MISSING
    """Report directory and system that it is compared with, of the same queries"""
    metric: str = "mrr"
    """Metric by which a query is won or lost, one of those in the reports"""
    show: int = 5
    """Queries won, and as many lost, that are shown with their texts, those of the largest differences"""
    output: Optional[str] = None
    """JSON lines file for all queries that are won or lost; null: none"""
    resamples: int = 2000
    """Bootstrap resamples behind the interval"""
    permutations: int = 10000
    """Permutations behind the p-value"""
    seed: int = 42
    """Seed of both"""
