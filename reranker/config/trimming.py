"""The settings of `reranker trim`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from reranker.config.common import MISSING
from reranker.config.reading import ReaderConfig

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


@dataclass
class TrimConfig:
    model: str = MISSING
    """Directory or hub name of the reranker, or of the encoder that one is to be trained from"""
    corpus: Any = field(default=MISSING, metadata={"kind": "str or list of str"})
    """Texts whose pieces stay: groups, passages, queries, plain text (.txt); a file or directory, or several"""
    output: str = MISSING
    """Directory for the trimmed model"""
    languages: list[str] = field(default_factory=list)
    """ISO 639-1 codes: all pieces of a script that no other language has stay (Hangul for ko), used or not"""
    min_frequency: int = 1
    """Times that the corpus must use a piece; above 1 texts with rarer pieces are cut otherwise, which is counted"""
    characters: bool = True
    """Every piece of one character stays; false: those of the languages' scripts, digits and signs, and what is used"""
    unseen: Optional[str] = None
    """Texts that are not in the corpus: told how many of them are cut into other pieces; null: nothing is told"""
    sample: int = 64
    """Pairs of the corpus whose scores are compared with those of the original"""
    reading: ReaderConfig = field(default_factory=ReaderConfig)
