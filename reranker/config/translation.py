"""The settings of `reranker translate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

from reranker.config.common import MISSING
from reranker.config.gates import GatesConfig
from reranker.config.reading import ReaderConfig

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


class Retry(Enum):
    none = "none"
    errors = "errors"
    rejected = "rejected"


@dataclass
class TranslateConfig:
    groups: str = MISSING
    """Groups in the language that they are in, in any form that reranker check reads; they may lack negatives"""
    output: str = MISSING
    """Directory for the translated groups, the rejected ones, the ledger and the report"""
    source: str = "en"
    """Language of the groups, as an ISO 639-1 code"""
    target: str = "ko"
    """Language to translate to, as an ISO 639-1 code; queries and passages are translated, prompts are kept"""
    backend: dict[str, Any] = field(default_factory=dict, metadata={"kind": "name"})
    """What translates: a yaml in conf/backend/ or, with --config-dir, of one's own; its settings are backend.KEY"""
    fallback: dict[str, Any] = field(default_factory=dict, metadata={"kind": "name"})
    """What translates the texts that the backend lacks: backend@fallback=amazon; its settings are fallback.KEY"""
    back: dict[str, Any] = field(default_factory=dict, metadata={"kind": "name"})
    """What translates back for gates.similarity: backend@back=huggingface; its settings are back.KEY"""
    ledger: Optional[str] = None
    """SQLite file of all translations so far, on a disk of this machine; null: ledger.sqlite in output"""
    ledgers: list[str] = field(default_factory=list)
    """Ledgers of other runs that are read as well"""
    part: Optional[str] = None
    """i/n: the i-th of n tasks, from 0, fills a ledger with its share of the texts; merge/n: write the groups"""
    retry: Retry = Retry.errors
    """What of an earlier run is sent again: texts that failed (errors), those that gates rejected as well, none"""
    window: int = 20000
    """Distinct texts that are held in memory at a time"""
    max_unreadable: float = 0.5
    """Share of lines that may be no groups; with more the file is taken for a wrong one"""
    max_failures: int = 100
    """Texts failing in a row that stop the run"""
    samples: int = 20
    """Texts shown beside their translations in the report"""
    dry_run: bool = False
    """Print distinct texts, characters, cost and hours, then stop"""
    gates: GatesConfig = field(default_factory=GatesConfig)
    # A group's texts are sent one by one, however many there are.
    reading: ReaderConfig = field(default_factory=lambda: ReaderConfig(most_negatives=1_000_000))
