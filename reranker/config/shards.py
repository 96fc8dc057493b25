"""The settings of the commands that write, index and look into shards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from reranker.config.common import MISSING, CacheConfig

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


@dataclass
class PackConfig:
    groups: str = MISSING
    """Groups, one JSON object a line (.jsonl, .jsonl.gz, .jsonl.zst)"""
    output: str = MISSING
    """Directory for the shards and their manifest"""
    groups_per_shard: int = 2048
    """Groups in each shard but the last"""
    tokenizer: Optional[str] = None
    """Model whose token lengths are written as well, for batch.policy=tokens; null: training counts them"""
    query_prefix: str = ""
    """The training's data.query_prefix, which is counted with each query"""
    passage_prefix: str = ""
    """The training's data.passage_prefix, which is counted with each passage"""
    workers: int = 1
    """Processes that write shards"""
    part: Optional[str] = None
    """i/n: the i-th of n tasks, from 0, writes its share of the shards; merge/n: put them together"""
    overwrite: bool = False
    """Replace shards made from other groups"""


@dataclass
class IndexConfig:
    shards: Any = field(default=MISSING, metadata={"kind": "str or list"})
    """Tars of others: a directory, a pattern like dir/{000..127}.tar, an https://, s3:// or pipe: URL, or a list"""
    output: str = MISSING
    """Directory for the manifest and the indexes; the tars stay where they are"""
    tokenizer: Optional[str] = None
    """Model whose token lengths are written as well, for batch.policy=tokens; null: training counts them"""
    query_prefix: str = ""
    """The training's data.query_prefix, which is counted with each query"""
    passage_prefix: str = ""
    """The training's data.passage_prefix, which is counted with each passage"""
    workers: int = 1
    """Processes that read shards"""
    cache: CacheConfig = field(default_factory=CacheConfig)
    overwrite: bool = False
    """Replace an index made of other tars"""


@dataclass
class DataInspectConfig:
    shards: str = MISSING
    """Directory or URL of shards"""
    tokenizer: Optional[str] = None
    """Model whose tokens are counted; null: lengths that lie beside the shards, or none"""
    samples: int = 3
    """Groups that are shown"""
    worlds: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    """Numbers of ranks for which micro-batches are planned"""
    group_size: int = 3
    """Passages of a group in the plan: one positive and the rest negatives"""
    max_length: int = 512
    """Tokens of a pair at most in the plan"""
    query_max_length: Optional[int] = None
    """Tokens of a query at most in the plan; null: no limit of its own"""
    passage_max_length: Optional[int] = None
    """Tokens of a passage at most in the plan; null: no limit of its own"""
    query_prefix: str = ""
    """Stands before every query in the plan"""
    passage_prefix: str = ""
    """Stands before every passage in the plan"""
    groups: int = 32
    """Groups of an optimizer step in the plan"""
    per_gpu: int = 1
    """Groups of a micro-batch of policy `fixed`"""
    tokens: int = 8192
    """Tokens of a micro-batch of policy `tokens`"""
    steps: int = 50
    """Optimizer steps that are planned and averaged"""
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class DataVerifyConfig:
    shards: str = MISSING
    """Directory or URL of shards"""
    workers: int = 4
    """Files that are read at a time"""
