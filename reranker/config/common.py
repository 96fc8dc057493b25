"""What several commands' settings are made of: choices, the cache of remote shards, the first stage."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Optional

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045

MISSING: Any = "???"
"""omegaconf's mark of a value that must be given; to import it takes a fifth of the start of a process of pack."""


class ShortGroups(Enum):
    repeat = "repeat"
    shrink = "shrink"
    error = "error"


class Truncation(Enum):
    longest_first = "longest_first"
    only_second = "only_second"


class Precision(Enum):
    auto = "auto"
    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class TrackingMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Artifacts(Enum):
    none = "none"
    model = "model"
    checkpoints = "checkpoints"


class LabelLoss(Enum):
    listwise = "listwise"
    multi_positive = "multi_positive"
    pointwise = "pointwise"
    ranknet = "ranknet"
    lambdaloss = "lambdaloss"
    listmle = "listmle"
    plistmle = "plistmle"


class TeacherLoss(Enum):
    kl = "kl"
    mse = "mse"
    margin_mse = "margin_mse"


class ShardCheck(Enum):
    size = "size"
    sha256 = "sha256"


class BatchPolicy(Enum):
    fixed = "fixed"
    tokens = "tokens"


class Packing(Enum):
    auto = "auto"
    packed = "packed"
    padded = "padded"


class LongPassages(Enum):
    truncate = "truncate"
    windows = "windows"


MOST_OPEN = 256
"""Shards that a process holds open at a time."""


# `raise` is a word of Python's own: a class body cannot name a member so.
BadData = Enum("BadData", {"raise": "raise", "ghost": "ghost"})


@dataclass
class CacheConfig:
    directory: Optional[str] = None
    """Where a node keeps copies of remote shards; null: $XDG_CACHE_HOME/ko-reranker, or ~/.cache/ko-reranker"""
    gib: float = 100.0
    """Size of the copies at most; those not read for longest make room"""


@dataclass
class FirstStageConfig:
    analyzer: str = "kiwi"
    """kiwi: Korean content morphemes; words: lower-cased words; bigrams: character pairs"""
    k1: float = 0.9
    """BM25's term frequency saturation"""
    b: float = 0.4
    """BM25's length normalisation"""
