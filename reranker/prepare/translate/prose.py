"""What of a text is never translated: URLs, code and placeholders; and the prose that is left without them.

In: a text. Out: patterns that find these, and the text without what they find. Pure.
"""

from __future__ import annotations

import functools
import re

# Repetitions behind which a match can still fail are bounded, or begin where a run of such characters does: a text
# of one long run (digits, base64, a rule of dashes) would else take the square of its length, hours for a megabyte.
URL = re.compile(
    r"(?:https?://|ftp://|www\.)[!-~]+|(?<![\w.+-])[\w.+-]+@[\w-]{1,63}(?:\.[\w-]{1,63})+", re.ASCII
)  # fmt: skip
CODE = re.compile(
    r"(?<!`)`+([^`\n]+)`+"  # spans
    r"|(?<![\w-])(--[a-z][\w-]+)"
    r"|(?<![\w/.~<])((?:~|\.{1,2})?/(?:[\w.+-]{1,100}/){1,30}[\w.+-]{0,100}\w"
    r"|(?<![+-])[\w.+-]+(?:/[\w+-]{1,100}){1,30}/[\w+-]{0,100}\.[a-z]{1,4})\b"
    r"|\b([A-Za-z]\w{0,100}(?:\.\w{1,100}){0,10}\(\))"
    r"|\b([a-z0-9]+(?:_[a-z0-9]+)+)\b",
    re.ASCII,
)
PLACEHOLDER = re.compile(
    r"(?<![\w%])%(?:\(\w+\)|\d+\$)?[sdifgxr]\b|\$?\{\w*\}|</?[A-Za-z][^<>]{0,200}>|&(?:[a-z]+|#\d+);", re.ASCII
)


@functools.lru_cache(maxsize=4)  # several gates in turn look at the same pair
def prose(text: str) -> str:
    """A text without what is never translated."""
    for pattern in (URL, CODE, PLACEHOLDER):
        text = pattern.sub(" ", text)
    return text
