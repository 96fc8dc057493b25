"""Whether a translation keeps the numbers of its source, however the two languages write them.

In: two texts. Out: the numbers of the source that the translation lacks. Numbers are compared as multisets of values:
`1,000`, `1 000` and `1000` are one value, `5 million` and `500만` are one, `3 March 2020` and `2020년 3월 3일` agree.
A small number may be written as a word on either side. Pure.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from decimal import Decimal

SMALL = 12
"""Numbers up to this are often words: three, March, noon."""

# Bounded, and never begun within a run of digits: a text of digits alone would else take the square of its length.
_GROUPED = r"\d{1,3}(?:[,.'’ \u00a0\u202f]\d{3}){1,12}(?![\d])(?![.,]\d)"
_PLAIN = r"\d+"
_MAGNITUDES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "백": 10**2, "천": 10**3, "만": 10**4, "십만": 10**5, "백만": 10**6, "천만": 10**7,
    "억": 10**8, "십억": 10**9, "백억": 10**10, "천억": 10**11, "조": 10**12,
    "百": 10**2, "千": 10**3, "万": 10**4, "萬": 10**4, "億": 10**8, "亿": 10**8, "兆": 10**12,
}  # fmt: skip
_WORDS = "|".join(sorted(_MAGNITUDES, key=len, reverse=True))
_DIGITS = rf"(?:{_GROUPED}|(?<!\d)\d{{1,30}})(?:\.\d{{1,30}})?"
# 1억 2천만 and 2 million: parts that a magnitude follows, one after another, and what is left in plain digits.
_MAGNIFIED = rf"{_DIGITS} ?(?:{_WORDS})(?![a-z])"
_LARGE = re.compile(rf"{_MAGNIFIED}(?: ?{_MAGNIFIED})*(?: ?\d{{1,4}}(?![\d.,]))?")
_PART = re.compile(rf"({_DIGITS}) ?({_WORDS})?")
_NUMBER = re.compile(rf"{_GROUPED}|{_PLAIN}")
_SEPARATORS = re.compile(r"[,.'’ \u00a0\u202f]")


def lost_numbers(source: str, translation: str) -> list[str]:
    """The numbers of `source` that `translation` lacks, as they are told to a user.

    A lost number up to `SMALL` counts only where another number took its place: it may stand there as a word.
    """
    wanted, found = _values(source), _values(translation)
    lost, new = wanted - found, found - wanted
    words = _round_words(translation)
    large = [value for value in lost.elements() if value > SMALL and value not in words]
    small = [value for value in lost.elements() if value <= SMALL]
    # `two` that became 2 has no number on the other side: as many new ones as lost ones are replacements.
    replaced = small if small and sum(new.values()) >= len(small) else []
    return [f"{value:f}" for value in sorted((*large, *replaced))]


def _values(text: str) -> Counter[Decimal]:
    text = unicodedata.normalize("NFKC", text).lower()
    values: Counter[Decimal] = Counter()

    def take(match: re.Match[str]) -> str:
        values[_large_value(match[0])] += 1
        return " ; "

    rest = _LARGE.sub(take, text)
    # A point can divide the parts of a version or a date, so 7.4.2 is 7, 4 and 2 in any language's order.
    values.update(Decimal(_SEPARATORS.sub("", match[0])) for match in _NUMBER.finditer(rest))
    return values


def _large_value(text: str) -> Decimal:
    total = Decimal(0)
    for digits, word in _PART.findall(text):
        whole, point, fraction = digits.partition(".")
        if point and len(fraction) == 3:
            whole, fraction = whole + fraction, "0"
        number = Decimal(_SEPARATORS.sub("", whole) + "." + (fraction or "0"))
        total += number * _MAGNITUDES.get(word, 1)
    return total.normalize()


def _round_words(text: str) -> set[Decimal]:
    """The values of magnitudes that stand in a text without digits: 천 for 1000."""
    return {Decimal(value) for word, value in _MAGNITUDES.items() if word in text.lower()}
