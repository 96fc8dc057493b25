"""What a run of translation counts of the distinct texts, as they are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from reranker.prepare.translate.gates import length_ratio
from reranker.prepare.translate.ledger import FAILED, MISSING, REJECTED, TRANSLATED, Entry
from reranker.prepare.translate.report import EDGES, length_histogram


class Tally:
    """Counts of texts by what became of them, by the gate that refused them, and by their length ratio."""

    def __init__(self) -> None:
        self._statuses: Counter[str] = Counter()
        self._by_gate: Counter[str] = Counter()
        self._ratios = [0] * (len(EDGES) - 1)
        self._distinct = 0

    def add(self, texts: Iterable[tuple[bytes, str]], entries: Mapping[bytes, Entry]) -> None:
        """Count texts, given with their keys, each of which has an entry."""
        ratios = []
        for key, text in texts:
            entry = entries[key]
            self._distinct += 1
            self._statuses[entry.status] += 1
            if entry.status == REJECTED:
                self._by_gate[str(entry.reason).partition(":")[0]] += 1
            if entry.translation is not None:
                ratios.append(length_ratio(text, entry.translation))
        counts = length_histogram(ratios)["counts"]
        self._ratios = [sum(both) for both in zip(self._ratios, counts, strict=True)]

    @property
    def failed(self) -> int:
        """Distinct texts that failed and can be sent again."""
        return self._statuses[FAILED]

    @property
    def missing(self) -> int:
        """Distinct texts that no backend has."""
        return self._statuses[MISSING]

    @property
    def summary(self) -> dict[str, Any]:
        """`texts`, `by_gate` and `length_ratios` of the report. Distinct texts = translated + rejected + failed."""
        translated, rejected = self._statuses[TRANSLATED], self._statuses[REJECTED]
        failed = self.failed + self.missing
        assert self._distinct == translated + rejected + failed
        texts = {"distinct": self._distinct, "translated": translated, "rejected": rejected, "failed": failed}
        ratios = {"edges": list(EDGES), "counts": self._ratios}
        return {"texts": texts, "by_gate": dict(self._by_gate), "length_ratios": ratios}
