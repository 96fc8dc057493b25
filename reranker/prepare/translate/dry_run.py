"""What a run would send, cost and take.

In: windows of texts, the ledgers, the backends. Out: for each backend texts and characters that are new to it.
Nothing is sent and nothing recorded; a backend that takes no time, a translation memory, is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reranker.prepare.translate.backend import MISSING, Backend
from reranker.prepare.translate.ledger import MISSING as MISSING_STATUS
from reranker.prepare.translate.ledger import Ledger
from reranker.prepare.translate.run import Text, entries_of


@dataclass
class Estimate:
    """What one backend would get.

    Attributes:
        known, new: distinct texts that the ledgers answer for, and those that would be sent.
        characters: of the new ones, in the source language.
        dollars: their cost at the backend's price.
        hours: their time at the backend's seconds_per_text and concurrency.
    """

    backend: Backend
    known: int = 0
    new: int = 0
    characters: int = 0

    @property
    def dollars(self) -> float:
        return self.characters * self.backend.price / 1e6

    @property
    def hours(self) -> float:
        return self.new * self.backend.seconds_per_text / self.backend.concurrency / 3600


def estimate(
    windows: Iterable[Sequence[Text]], ledgers: Sequence[Ledger], backends: Sequence[Backend], again: Sequence[str]
) -> tuple[int, int, list[Estimate]]:
    """(distinct texts, their characters, an estimate for each backend).

    Texts whose status is one of `again`, by the gates that judged them last, would be sent once more.
    """
    distinct = characters = 0
    estimates = [Estimate(backend) for backend in backends]
    for window in windows:
        distinct += len(window)
        characters += sum(len(text) for _, text in window)
        texts = dict(window)
        for told in estimates:
            found = entries_of(ledgers, told.backend, list(texts))
            entries = {key: entry for key, entry in found.items() if entry.status not in again}
            new = {key: text for key, text in texts.items() if key not in entries}
            told.known += len(entries)
            told.new += len(new)
            told.characters += sum(map(len, new.values()))
            lacking = {key for key, entry in entries.items() if entry.status == MISSING_STATUS}
            if new and not told.backend.seconds_per_text:
                outcomes = zip(new, told.backend.translate(list(new.values())), strict=True)
                lacking.update(key for key, outcome in outcomes if (outcome.reason or "").startswith(MISSING))
            texts = {key: texts[key] for key in lacking}
    return distinct, characters, estimates
