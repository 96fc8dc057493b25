"""Texts -> entries of the ledger: each distinct text is sent once, by the first backend that has it.

In: windows of (hash, text). Out: an entry for each in the ledger, or its hash where another process has it in hand.
Between the answer of a backend and the ledger stand at most `concurrency` batches: that is what a kill -9 loses. Any
other end (Ctrl-C, a UserError, a defect) waits for the batches under way and records them first: they are paid.
Memory holds one window.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from reranker.config.translation import Retry
from reranker.errors import UserError, shorten
from reranker.groups import Group
from reranker.prepare.translate.backend import ERROR, MISSING, Backend, Outcome
from reranker.prepare.translate.ledger import FAILED, REJECTED, TRANSLATED, Entry, Ledger, Seen, hash_of
from reranker.prepare.translate.ledger import MISSING as MISSING_STATUS
from reranker.prepare.translate.lines import Line

Text = tuple[bytes, str]
"""A text behind its hash."""
_WINDOW_CHARACTERS = 1 << 24

AGAIN: dict[Retry, tuple[str, ...]] = {
    Retry.none: (),
    Retry.errors: (FAILED,),
    Retry.rejected: (FAILED, REJECTED),
}
"""The statuses of texts that are sent again."""


class Judge(Protocol):
    """What quality gates are to a run: `digest` stands for their settings."""

    @property
    def digest(self) -> str: ...

    def check_many(self, sources: Sequence[str], translations: Sequence[str]) -> list[str | None]:
        """Why each translation is refused, or None."""
        ...


class Translator:
    """Sends what the ledgers lack.

    Attributes:
        sent: for each backend, (texts, characters) that it answered in this run.
    """

    def __init__(
        self,
        ledger: Ledger,
        others: Sequence[Ledger],
        backends: Sequence[Backend],
        gates: Judge,
        retry: Retry,
        max_failures: int,
        shown: Callable[[int], object] = lambda count: None,
    ) -> None:
        self._ledger, self._others, self._backends = ledger, others, backends
        self._gates, self._again, self._max_failures, self._shown = gates, AGAIN[retry], max_failures, shown
        self._failures = 0
        self.sent = {backend.identity: (0, 0) for backend in backends}

    def resolve(self, texts: Mapping[bytes, str]) -> dict[bytes, Entry]:
        """The final entries of texts, given by hash; those that are still to be sent are left out.

        They have the judgement of these gates, whatever gates another run on the same ledger has meanwhile.
        """
        found: dict[bytes, Entry] = {}
        left = list(texts)
        for backend in self._backends:
            entries = self._entries(backend, left)
            entries |= self._judged_anew(entries, texts)
            last = backend is self._backends[-1]
            found.update((key, entry) for key, entry in entries.items() if last or entry.status != MISSING_STATUS)
            left = [key for key in left if key in entries and key not in found]
        return found

    def translate(self, window: Sequence[Text]) -> set[bytes]:
        """Send what is not known of a window. Returns the hashes that other processes have in hand.

        Raises UserError from the backends, and where `max_failures` texts in a row have failed.
        """
        texts, waiting = dict(window), set[bytes]()
        for backend in self._backends:
            known = self._entries(backend, list(texts))
            if changed := self._judged_anew(known, texts):
                self._ledger.record(backend.identity, changed.values())
                known |= changed
            wanted = [key for key in texts if key not in known or known[key].status in self._again]
            mine = self._ledger.claim(backend.identity, wanted, self._again)
            self._send(backend, [(key, texts[key]) for key in wanted if key in mine])
            known = self._entries(backend, list(texts))
            waiting.update(key for key in texts if key not in known)
            texts = {key: texts[key] for key, entry in known.items() if entry.status == MISSING_STATUS}
        return waiting

    def _entries(self, backend: Backend, texts: Sequence[bytes]) -> dict[bytes, Entry]:
        return entries_of([self._ledger, *self._others], backend, texts)

    def _judged_anew(self, known: Mapping[bytes, Entry], texts: Mapping[bytes, str]) -> dict[bytes, Entry]:
        """The entries of other gates with the judgement of these: that costs no translation."""
        others = [
            (key, entry.translation)
            for key, entry in known.items()
            if entry.translation is not None and entry.gates != self._gates.digest
        ]
        entries = self._judged([(key, texts[key]) for key, _ in others], [Outcome(text) for _, text in others])
        return {entry.text: entry for entry in entries}

    def _send(self, backend: Backend, items: list[Text]) -> None:
        # Alike in length: a model pads a batch to its longest text.
        ordered = iter(sorted(items, key=lambda item: (len(item[1]), item[0])))
        running: dict[Future[list[Outcome]], list[Text]] = {}
        with ThreadPoolExecutor(backend.concurrency) as pool:
            try:
                for batch in _batches(ordered, backend.batch_texts):
                    if len(running) == backend.concurrency:
                        self._record(backend, running)
                    running[pool.submit(backend.translate, [text for _, text in batch])] = batch
                while running:
                    self._record(backend, running)
            except BaseException:
                wait(running)
                answered = {future: batch for future, batch in running.items() if future.exception() is None}
                if answered:
                    self._record(backend, answered)
                raise

    def _record(self, backend: Backend, running: dict[Future[list[Outcome]], list[Text]]) -> None:
        """Wait for some of the batches that are under way, and record those that are answered."""
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        answered = [future for future in done if future.exception() is None]
        entries: list[Entry] = []
        for future in answered:
            batch, outcomes = running[future], future.result()
            if len(outcomes) != len(batch):
                raise UserError(self._key(backend), f"{len(outcomes)} outcomes of {len(batch)} texts",
                                "one for each text", "mend the backend's class")  # fmt: skip
            entries += self._judged(batch, outcomes)
        self._ledger.record(backend.identity, entries)
        for future in answered:
            del running[future]
        good = [entry for entry in entries if entry.status in (TRANSLATED, REJECTED)]
        texts, characters = self.sent[backend.identity]
        self.sent[backend.identity] = (texts + len(good), characters + sum(entry.characters for entry in good))
        self._shown(len(entries))
        for future in done - set(answered):
            future.result()  # raises
        failed = [entry for entry in entries if entry.status == FAILED]
        self._failures = self._failures + len(failed) if len(failed) == len(entries) else 0
        if self._failures >= self._max_failures:
            found = f"{self._failures} texts in a row that failed (the last with {failed[-1].reason})"
            raise UserError(self._key(backend), found, "a service that translates",
                            "see what it lacks, or raise max_failures")  # fmt: skip

    def _key(self, backend: Backend) -> str:
        return "backend" if backend is self._backends[0] else "fallback"

    def _judged(self, items: Sequence[Text], outcomes: Sequence[Outcome]) -> list[Entry]:
        """The entries of texts and what a backend made of them, judged by the gates all together."""
        made = [(text, outcome.text) for (_, text), outcome in zip(items, outcomes, strict=True) if outcome.text]
        reasons = iter(self._gates.check_many([text for text, _ in made], [translation for _, translation in made]))
        return [
            self._entry(item, outcome, next(reasons) if outcome.text else None)
            for item, outcome in zip(items, outcomes, strict=True)
        ]

    def _entry(self, item: Text, outcome: Outcome, refused: str | None) -> Entry:
        key, text = item
        entry = functools.partial(Entry, key, gates=self._gates.digest, characters=len(text))
        if outcome.text is None:
            assert outcome.reason is not None
            missing = outcome.reason.startswith(MISSING)
            return entry(status=MISSING_STATUS if missing else FAILED, translation=None, reason=outcome.reason)
        if any("\ud800" <= character <= "\udfff" for character in outcome.text):
            reason = f"{ERROR}half a character in {shorten(ascii(outcome.text))}"
            return entry(status=FAILED, translation=None, reason=reason)
        # Of no use in a group, whatever gates are on.
        refused = refused if outcome.text.strip() else "empty: no text"
        return entry(status=REJECTED if refused else TRANSLATED, translation=outcome.text, reason=refused)


def entries_of(ledgers: Sequence[Ledger], backend: Backend, texts: Sequence[bytes]) -> dict[bytes, Entry]:
    """What ledgers know of texts, the earlier one first; a later one is heard where that has none or a failure."""
    entries: dict[bytes, Entry] = {}
    for ledger in ledgers:
        for key, entry in ledger.entries(backend.identity, texts).items():
            if key not in entries or entries[key].status == FAILED:
                entries[key] = entry
    return entries


def texts_of(group: Group) -> tuple[str, ...]:
    """All texts of a group that are translated."""
    return (group.query, *group.pos, *group.neg)


def windows(lines: Iterable[Line], seen: Seen, part: int, parts: int, size: int) -> Iterator[list[Text]]:
    """The distinct texts of groups that the run has not seen, in windows of `size` texts at most.

    Of several `parts` only the texts whose hash falls into `part`.
    """
    pending: dict[bytes, str] = {}
    characters = 0
    for line in lines:
        for text in texts_of(line.group) if line.group else ():
            key = hash_of(text)
            if key in pending or int.from_bytes(key[:8], "big") % parts != part:
                continue
            pending[key] = text
            characters += len(text)
            if len(pending) >= size or characters >= _WINDOW_CHARACTERS:
                yield _new(pending, seen)
                pending, characters = {}, 0
    if pending:
        yield _new(pending, seen)


def _new(pending: dict[bytes, str], seen: Seen) -> list[Text]:
    new = seen.add(list(pending))
    return [(key, text) for key, text in pending.items() if key in new]


def _batches(items: Iterator[Text], size: int) -> Iterator[list[Text]]:
    batch: list[Text] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
