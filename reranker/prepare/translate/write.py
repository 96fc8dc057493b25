"""Groups and the entries of their texts -> translated groups, rejected ones, unreadable lines, and their counts.

In: the lines of the source once more, and a `Translator` that has an entry for every text. Out: `groups.jsonl`,
`rejected.jsonl` and `unreadable.jsonl`, each whole or not at all. Nothing is dropped: every line that is not blank is
a group written, a group rejected or a line unreadable, kept as it came. A group is rejected with its query, a positive
or all its negatives, if it had any; a rejected negative leaves the others. Scores, `id` and `prompt` are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reranker.errors import UserError
from reranker.files import atomic_open
from reranker.groups import Group
from reranker.prepare.translate.ledger import TRANSLATED, Entry, hash_of
from reranker.prepare.translate.lines import Line
from reranker.prepare.translate.report import Sample
from reranker.prepare.translate.run import Translator, texts_of

GROUPS, REJECTED, UNREADABLE = "groups.jsonl", "rejected.jsonl", "unreadable.jsonl"
_KINDS = {"que": "query", "pos": "positive", "neg": "negative"}
_LOOKED_UP = 2000
"""Texts that are looked up together."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        counts: groups in, out and rejected, lines unreadable, negatives rejected in groups that were written.
        samples: texts beside their translations, accepted ones and rejected ones, chosen by their hash.
    """

    counts: dict[str, int]
    samples: list[Sample]


def write_outputs(directory: Path, lines: Iterable[Line], translator: Translator, samples: int) -> Written:
    """Write the three files, with at most `samples` samples accepted and as many rejected.

    Raises UserError for a text without entry: the source has changed meanwhile.
    """
    counts: Counter[str] = Counter()
    accepted: dict[bytes, Sample] = {}
    refused: dict[bytes, Sample] = {}
    with contextlib.ExitStack() as stack:
        names = (GROUPS, REJECTED, UNREADABLE)
        out, rejected, unreadable = (stack.enter_context(atomic_open(directory / name)) for name in names)
        for some in _together(lines):
            texts = {hash_of(text): text for line in some if line.group for text in texts_of(line.group)}
            entries = translator.resolve(texts)
            for line in some:
                counts["in"] += 1
                if line.group is None:
                    assert line.unreadable is not None
                    counts["unreadable"] += 1
                    unreadable.write(line.unreadable.to_json())
                    continue
                group, reasons = _translate(line, line.group, entries)
                counts["out" if group else "rejected"] += 1
                if group:
                    out.write(group.to_json().encode("utf-8") + b"\n")
                    counts["negatives_rejected"] += len(reasons)
                    both = (line.group.query, group.query, "query"), (line.group.pos[0], group.pos[0], "positive")
                    accepted |= {hash_of(text): Sample(text, made, None, kind) for text, made, kind in both}
                if reasons:
                    what = "negatives" if group else "group"
                    source = json.loads(line.group.to_json())
                    _write(rejected, {"where": line.where, "rejected": what, "reasons": reasons, "group": source})
                refused |= {
                    hash_of(one["text"]): Sample(
                        one["text"], one["translation"], one["reason"], _KINDS[one["place"][:3]]
                    )
                    for one in reasons
                }
            accepted, refused = _fewest(accepted, samples), _fewest(refused, samples)
        assert counts["in"] == counts["out"] + counts["rejected"] + counts["unreadable"]
    counted = {name: counts[name] for name in ("in", "out", "rejected", "unreadable", "negatives_rejected")}
    return Written(counted, [*accepted.values(), *refused.values()])


def _fewest(samples: dict[bytes, Sample], count: int) -> dict[bytes, Sample]:
    return dict(heapq.nsmallest(count, samples.items(), key=lambda item: item[0]))


def _together(lines: Iterable[Line]) -> Iterator[list[Line]]:
    some: list[Line] = []
    texts = 0
    for line in lines:
        some.append(line)
        texts += len(texts_of(line.group)) if line.group else 1
        if texts >= _LOOKED_UP:
            yield some
            some, texts = [], 0
    if some:
        yield some


def _translate(line: Line, group: Group, entries: dict[bytes, Entry]) -> tuple[Group | None, list[dict[str, Any]]]:
    """(the translated group or None, what is rejected of it)."""
    reasons: list[dict[str, Any]] = []

    def translated(text: str, place: str) -> str | None:
        entry = entries.get(hash_of(text))
        if entry is None:
            raise UserError(line.where, "a text that was not there before", "a file that stays as it is",
                            "run the same command again")  # fmt: skip
        if entry.status == TRANSLATED:
            return entry.translation
        reasons.append({"place": place, "text": text, "translation": entry.translation, "reason": entry.reason})
        return None

    query = translated(group.query, "query")
    pos = [translated(text, f"pos[{place}]") for place, text in enumerate(group.pos)]
    neg = [translated(text, f"neg[{place}]") for place, text in enumerate(group.neg)]
    left = [place for place, text in enumerate(neg) if text is not None]
    if query is None or None in pos or (neg and not left):
        return None, reasons
    scores = group.neg_scores and tuple(group.neg_scores[place] for place in left)
    made = dataclasses.replace(
        group, query=query, pos=tuple(map(str, pos)), neg=tuple(str(neg[place]) for place in left), neg_scores=scores
    )
    return made, reasons


def _write(stream: IO[bytes], record: dict[str, Any]) -> None:
    stream.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
