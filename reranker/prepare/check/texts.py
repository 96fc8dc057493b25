"""What can be said of one text by itself: whether two are the same, an error message, markup, and its script.

In: texts. Out: answers that depend on nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_WORDS = (
    "err|error|none|nan|null|nil|n/?a|undefined|failed|failure|exception|timeout|timed out|(internal )?server error|"
    r"\[?object object\]?|#name\?|#ref!|#value!|#n/a|#div/0!"
)
_HTTP = (
    r"(http(/\d(\.\d)?)?\s*)?(status\s*|error\s*)*[45]\d\d[\s:-]+"
    "(bad request|unauthorized|forbidden|not found|too many requests|internal server error|bad gateway|"
    "service (temporarily )?unavailable|gateway time-?out)[.!]?"
)
# What goes on as a sentence ("Translation errors in ...", "Rate limit exceeded means ...") is a text about errors.
_BREAK = r"(\s*[:;,.!(\[-].*)?"
_SERVICES = (
    r"mymemory warning:.*|.*query length limit exce+ded.*max allowed query.*|"
    rf"(error:?\s*)?(rate limit (exceeded|reached)|quota exceeded)(\s+for\s.*|{_BREAK})|"
    rf"(error:?\s*)?you exceeded your current quota{_BREAK}|"
    rf"request (timed out|failed)[.!]?|translation (error|failed){_BREAK}|"
    r"i('m| am) sorry,? but i can('t|not) (assist|help|translate|fulfill).*|as an ai (language )?model,? i .*"
)
_PAGE = r"(<!doctype html|<html)\b.*<title>[^<]*\b(error|[45]\d\d)\b.*"
_ERROR = "|".join((_WORDS, _HTTP, _SERVICES, _PAGE))
_HTML = re.compile(
    r"</?(p|br|div|span|a|b|i|em|strong|li|ul|ol|table|tr|td|h[1-6]|img|script|style)(\s[^<>]*)?/?>"
    r"|&(amp|lt|gt|quot|nbsp|#\d{2,5}|#x[0-9a-f]{2,5});", re.IGNORECASE,
)  # fmt: skip
_LETTERS = 200
"""Characters by which a script is told."""


def same(text: str) -> str:
    """The text but for white space and how its characters are composed: equal for texts that read the same."""
    text = " ".join(text.split())
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def key(*texts: str) -> bytes:
    """16 bytes that differ where the texts do."""
    return hashlib.blake2b("\x00".join(texts).encode("utf-8"), digest_size=16).digest()


@functools.lru_cache
def error_pattern(own: tuple[str, ...]) -> re.Pattern[str]:
    """The pattern of error messages, with the user's own. Raises re.error."""
    return re.compile("|".join((_ERROR, *(f"(?:{pattern})" for pattern in own))), re.IGNORECASE | re.DOTALL)


def is_error(text: str, own: Sequence[str]) -> bool:
    """Whether a text is the message of a tool that failed."""
    return error_pattern(tuple(own)).fullmatch(text.strip()) is not None


def has_markup(text: str) -> bool:
    return ("<" in text or "&" in text) and _HTML.search(text) is not None


def script(text: str) -> str:
    """The script of most letters: latin, hangul, cjk, hiragana, ...; "none" where there are no letters."""
    found: Counter[str] = Counter()
    for character, count in Counter(text[:_LETTERS]).items():
        found[_script_of(character)] += count
    found.pop("", None)
    return max(sorted(found), key=found.__getitem__) if found else "none"


@functools.lru_cache(maxsize=1 << 17)
def _script_of(character: str) -> str:
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "").split(" ")[0].lower()
    return {"katakana": "japanese", "hiragana": "japanese"}.get(name, name)
