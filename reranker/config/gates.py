"""The settings of the quality gates of `reranker translate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045

ERROR_TEXTS = [
    "err",
    "error",
    "exception",
    "none",
    "null",
    "nan",
    "n/a",
    "undefined",
    "translation",
    r"(translation|http|server|api|internal|timeout) ?error\b.*",
    r"error ?(:|code|\d{3}).*",
    r"traceback \(most recent call last\).*",
    r"(too many requests|rate exceeded|request timed out|service unavailable).*",
    r"(i'm sorry|i am sorry|sorry),? (but )?i (can't|cannot|am unable to).*",
    r"as an ai (language )?model.*",
]


@dataclass
class GatesConfig:
    empty: bool = True
    """Refuse translations without a letter or digit where the source has one"""
    error: bool = True
    """Refuse translations that are the text of an error"""
    error_texts: list[str] = field(default_factory=lambda: list(ERROR_TEXTS))
    """Regular expressions of such texts: the whole translation, in lower case; what the source matches too may stay"""
    untranslated: Optional[float] = 0.2
    """Least share of letters of the target's script; of words not copied where the source's is the same; null: off"""
    untranslated_words: int = 1
    """Words that may stay as they are in a translation of them alone: names and titles"""
    length: Optional[list[float]] = field(default_factory=lambda: [0.45, 2.5])
    """Least and greatest ratio of columns, translation to source, a wide character being two columns; null: off"""
    length_slack: int = 16
    """Columns added to both sides of that ratio, as it says little of short texts"""
    numbers: bool = True
    """Refuse translations that lack a number of the source, in digits or in words"""
    urls: bool = True
    """Refuse translations that lack a URL or e-mail address of the source"""
    code: bool = True
    """Refuse translations that lack code of the source: `spans`, --options, paths/to/x, calls(), snake_case"""
    placeholders: bool = True
    """Refuse translations that lack a placeholder or tag of the source: %s, {0}, ${x}, <b>, &amp;"""
    repetition: Optional[float] = 0.25
    """Greatest share of repeated character sequences above that of the source; null: off"""
    language: Optional[float] = 0.7
    """Probability from which another language than the target's is believed; null: off"""
    language_letters: int = 20
    """Letters from which a translation's language is looked at: identification is unreliable below"""
    similarity: Optional[float] = None
    """Least cosine of the source and the translation translated back; null: off. Needs similarity_model"""
    similarity_model: Optional[str] = None
    """Directory or hub name of a sentence-transformers model of the source language"""
