"""The settings of `reranker check`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from reranker.config.common import MISSING
from reranker.config.reading import ReaderConfig

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


@dataclass
class CheckConfig:
    groups: str = MISSING
    """Groups to look at, in any form that can be read: a file or directory"""
    evaluation: Any = field(default=None, metadata={"kind": "str, list of str or null"})
    """What the groups must not hold: groups, queries, passages, directories (their train is left out); null: nothing"""
    output: Optional[str] = None
    """Directory for report.json and report.md, with fix=true the mended groups; null: the table is printed only"""
    fix: bool = False
    """Write groups.jsonl mended, removed.jsonl with what went and why, unreadable.jsonl; the input stays as it is"""
    negatives: bool = True
    """Groups must have negatives; false: those without stay, as before mining"""
    strict: bool = False
    """Exit with 1 for warnings too"""
    tokenizer: Optional[str] = None
    """Model directory or name whose tokenizer counts the lengths; null: they are in characters, without a limit"""
    max_length: int = 512
    """Tokens of a pair at most in training, special tokens included"""
    group_size: int = 3
    """Passages of a group in training: a group needs group_size - 1 negatives"""
    near: float = 0.8
    """Share of common character sequences (Jaccard) from which two texts are nearly the same"""
    error_texts: list[str] = field(default_factory=list)
    """Regular expressions; a text that one of them matches whole is an error text, beside those known"""
    examples: int = 5
    """Places that are named of each kind of finding"""
    workers: int = 1
    """Processes that look at groups; what is found does not depend on them"""
    reading: ReaderConfig = field(default_factory=ReaderConfig)
