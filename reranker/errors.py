"""The one form in which a user's mistake is told.

In: where the mistake is, what was found there, what was expected, what to do about it.
Out: a `UserError`, whose text is one line. The command line prints it and exits with 2; nothing else
in the project prints an error and goes on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_CODE = 2


class UserError(ValueError):
    """A mistake that the user can mend.

    `where` names the file, `file:line` or configuration key; the rest completes the sentence
    "found ..., expected ...; ...". `agreed` says that every rank holds this same error, so that rank 0 alone
    prints it.
    """

    agreed = False

    def __init__(self, where: object, found: str, expected: str, fix: str) -> None:
        self.where, self.found, self.expected, self.fix = str(where), found, expected, fix
        line = f"{where}: found {found}, expected {expected}; {fix}"
        super().__init__(" ".join(line.split()))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str, str]]:
        # DataLoader workers and ranks hand errors over by pickling them.
        return type(self), (self.where, self.found, self.expected, self.fix)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def shorten(text: object, limit: int = 60) -> str:
    """`text` as one short quoted line, for the "found" part of a message."""
    line = " ".join(str(text).split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")
