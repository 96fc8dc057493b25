"""The card of an export -> that of a model made from it: what is not true of the other any more leaves it.

Pure functions of Markdown. A card that is not ours stays as it is, for nothing in it is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from reranker.config.common import Precision
from reranker.export.card_words import LANGUAGES, Words

ONNX = "ONNX Runtime"
"""The heading, in every language, of what is said of files that are not made anew."""
_HEADING = re.compile(r"(#+) (.*)")


def without_section(card: str, title: str) -> str:
    """The card without what stands below a heading, up to the next one that is not below it."""
    kept, level = [], 0
    for line, found in _lines(card):
        if found and (not level or len(found[1]) <= level):
            level = len(found[1]) if found[2] == title else 0
        if not level:
            kept.append(line)
    return "".join(kept)


def with_size(card: str, before: int, after: int, dtype: Precision | None = None) -> str:
    """The card of a model of `after` parameters in place of `before`, stored in `dtype` where it is another one."""
    for say in map(Words, LANGUAGES):
        for stored in Precision.__members__:
            told = say("introduction.size", parameters=before, dtype=stored)
            card = card.replace(
                told, say("introduction.size", parameters=after, dtype=dtype.value if dtype else stored)
            )
    return card


def _lines(card: str) -> Iterator[tuple[str, re.Match[str] | None]]:
    """Each line, and what it is as a heading; a comment of a snippet is none."""
    snippet = False
    for line in card.splitlines(keepends=True):
        snippet ^= line.startswith("```")
        yield line, None if snippet else _HEADING.fullmatch(line.rstrip("\n"))
