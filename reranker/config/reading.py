"""The settings of everything that reads what people have: which form it is in, and which files belong together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


class Form(Enum):
    auto = "auto"
    groups = "groups"
    triplets = "triplets"
    msmarco = "msmarco"
    beir = "beir"
    trec = "trec"


@dataclass
class ReaderConfig:
    form: Form = Form.auto
    """auto: by names and first bytes; or what it is, where those do not tell"""
    corpus: Optional[str] = None
    """Passages by id for msmarco, beir and trec: tsv or jsonl; null: the one in the directory"""
    queries: Optional[str] = None
    """Queries by id for msmarco, beir and trec: tsv or jsonl; null: those in the directory"""
    qrels: Optional[str] = None
    """Relevance judgements of TREC or BEIR; null: those in the directory, of the split"""
    run: Optional[str] = None
    """Run of TREC, whose passages are the negatives, best first; null: only what is judged not relevant"""
    split: Optional[str] = None
    """Split of a directory, as in qrels/train.tsv or data/train-*.parquet; null: train, or the only one"""
    run_negatives: int = 100
    """Negatives that a query is given from the run at most"""
    longest_line: int = 16777216
    """Bytes of a record at most; a longer one is named and passed over"""
    most_negatives: int = 10000
    """Negatives of a group at most; a group with more is named and passed over"""
