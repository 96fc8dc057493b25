"""A text that is too long for one request -> parts that are not, cut at sentence ends.

In: a text and a limit in UTF-8 bytes. Out: parts with the separators behind them, which joined are the text. A part
ends with a sentence where the limit leaves one, else with a word, else with a character. Pure.
"""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s)|[。！？][\"'”’」』)\]]*|(?<=\S)(?=\n)")
_WORD_END = re.compile(r"(?<=\S)(?=\s)")
_SPACE = re.compile(r"\s*")


def split_text(text: str, limit: int) -> list[tuple[str, str]]:
    """(part, separator behind it) of a text; no part has more than `limit` bytes, at least 4.

    The first part is empty where the text begins with white space and has to be cut.
    """
    assert limit >= 4, "a character can take four bytes"
    if len(text.encode("utf-8")) <= limit:
        return [(text, "")]
    start = _space_end(text, 0)
    pieces = [("", text[:start])] if start else []
    while start < len(text):
        window = text[start : start + limit].encode("utf-8")[:limit].decode("utf-8", "ignore")
        most = start + len(window)
        end = len(text.rstrip()) if len(text) == most else _cut(text, start, most)
        after = _space_end(text, end)
        pieces.append((text[start:end], text[end:after]))
        start = after
    return pieces


def _cut(text: str, start: int, most: int) -> int:
    """Where a part from `start` on ends, at `most` at the latest."""
    for pattern in (_SENTENCE_END, _WORD_END):
        # One character more, which the look ahead needs.
        ends = [match.end() for match in pattern.finditer(text, start + 1, most + 1) if match.end() <= most]
        if ends:
            return ends[-1]
    return most


def _space_end(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None
    return match.end()
