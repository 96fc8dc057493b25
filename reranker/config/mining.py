"""The settings of `reranker mine`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from reranker.config.common import MISSING, Device
from reranker.config.reading import ReaderConfig

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


class Retriever(Enum):
    bm25 = "bm25"
    dense = "dense"
    fused = "fused"


class Teacher(Enum):
    none = "none"
    bm25 = "bm25"
    dense = "dense"
    rescore = "rescore"


class Draw(Enum):
    first = "first"
    random = "random"


@dataclass
class LexicalConfig:
    analyzer: str = "kiwi"
    """kiwi: Korean content morphemes; words: lower-cased words; whitespace: cut at blanks; bigrams: character pairs"""
    k1: float = 0.9
    """BM25's term frequency saturation"""
    b: float = 0.4
    """BM25's length normalisation"""
    max_document_share: float = 1.0
    """Query terms in a larger share of the passages are left out of the search: quicker, less exact; 1: none is"""


@dataclass
class DenseConfig:
    model: Optional[str] = None
    """Directory or hub name of a sentence-transformers encoder"""
    query_prefix: str = ""
    """Put before each query; multilingual-e5 wants "query: " """
    passage_prefix: str = ""
    """Put before each passage; multilingual-e5 wants "passage: " """
    max_length: Optional[int] = None
    """Tokens of a text at most, what is behind them is not looked at; null: the model's own"""
    batch_tokens: int = 8192
    """Tokens of an encoder's batch at most, padding included"""
    block: int = 16384
    """Passages that the exact search compares at a time: bounds its memory"""
    device: Device = Device.auto
    """auto: all GPUs, one process each, or else the CPU"""


@dataclass
class RescoreConfig:
    model: Optional[str] = None
    """Directory or hub name of a reranker that looks at the candidates once more; null: none does"""
    margin: Optional[float] = 0.95
    """Candidates whose probability is above this share of the least likely positive's are dropped; null: not so"""
    threshold: Optional[float] = None
    """Candidates whose probability (sigmoid of the score) is above are dropped; null: not so"""
    depth: int = 32
    """Ranked candidates of a query that are rescored at most"""
    max_length: Optional[int] = None
    """Tokens of a pair at most; null: the model's own"""
    batch_tokens: int = 4096
    """Tokens of a forward batch at most"""
    device: Device = Device.auto
    """auto: all GPUs, one process each, or else the CPU"""


@dataclass
class MineConfig:
    groups: str = MISSING
    """Groups that get negatives: {"query", "pos"} a line, or any other form that reranker check reads"""
    output: str = MISSING
    """Directory for groups.jsonl, rejected.jsonl, the report and the cache that a later run goes on from"""
    corpus: Optional[str] = None
    """Passages: {"id", "text"} a line, optionally "doc" and "same", or a tsv or directory; null: those of the groups"""
    retriever: Retriever = Retriever.bm25
    """bm25, dense, or fused: both, by reciprocal rank"""
    bm25: LexicalConfig = field(default_factory=LexicalConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    fusion_constant: int = 60
    """k of reciprocal rank fusion, 1 / (k + rank)"""
    negatives: int = 8
    """Negatives of a group, those that it had already included"""
    least: int = 1
    """Groups with fewer negatives go to rejected.jsonl"""
    window: list[int] = field(default_factory=lambda: [1, 100])
    """First and last rank that negatives are taken from; the query's known right passages take no rank"""
    draw: Draw = Draw.first
    """first: the best of the window that pass the filters; random: any of it that do"""
    random_share: float = 0.0
    """Share of the negatives that are drawn from the whole corpus"""
    same_document_share: float = 0.0
    """Share of the negatives that are drawn from the documents of the positives"""
    keep_existing: bool = True
    """Negatives that a group has already stay, and stand first"""
    margin: Optional[float] = 0.95
    """Candidates that a retriever scores above this share of the lowest positive's score are dropped; null: none"""
    near_duplicates: Optional[float] = 0.6
    """Candidates as similar to a known right passage are dropped (Jaccard of character trigrams); null: none"""
    rescore: RescoreConfig = field(default_factory=RescoreConfig)
    teacher: Teacher = Teacher.none
    """Whose scores are written as pos_scores and neg_scores, for distillation: bm25, dense, rescore or none's"""
    workers: int = 1
    """Processes that analyze, search and filter; the result is the same for any number"""
    part: Optional[str] = None
    """i/n: the i-th of n tasks, from 0, on one file system, mines its share of the groups; merge/n: write them"""
    seed: int = 42
    """Seed of what is drawn, together with the query's own text"""
    reading: ReaderConfig = field(default_factory=ReaderConfig)
