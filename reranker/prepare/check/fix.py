"""The input again -> a mended copy, with every record that went, or lost a passage, named beside it.

In: the chunks of the input once more, and what `collect` found. Out: groups.jsonl, removed.jsonl (`where`, `kind`,
`group` or `passage`) and unreadable.jsonl (`where`, `kind`, `reason`, `line`, or offset and size of what was too long).
Records in = groups written + groups removed + unreadable, which is asserted. Of the error kinds the copy is free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.files import atomic_open
from reranker.groups import Group
from reranker.prepare.check.collect import Collected
from reranker.prepare.check.inspect import keys_of
from reranker.prepare.check.texts import is_error, key, same
from reranker.prepare.readers import Chunk, Unreadable

FILES = ("groups.jsonl", "removed.jsonl", "unreadable.jsonl")


def write_fixed(
    output: Path, chunks: Iterable[Chunk], found: Collected, error_texts: Sequence[str], negatives: bool = True
) -> dict[str, Any]:
    """Write the three files, each whole or not at all. Returns what was done. Raises UserError.

    `negatives`: whether a group must have negatives to stay.
    """
    done: Counter[str] = Counter()
    passages: Counter[str] = Counter()
    seen: set[bytes] = set()
    place = unreadable = written = alone = 0
    with contextlib.ExitStack() as stack:
        groups, removed, others = (stack.enter_context(atomic_open(output / name)) for name in FILES)
        for chunk in chunks:
            for number, record in chunk:
                where = chunk.where(number)
                if isinstance(record, Unreadable):
                    unreadable += 1
                    others.write(record.to_json())
                    continue
                if place >= found.groups:
                    raise _changed(chunk)
                leaked, place = bool(found.leaked[place]), place + 1
                mended, lost = mend(record, leaked, found.positive_keys, error_texts, negatives)
                reason = mended if isinstance(mended, str) else None
                if isinstance(mended, Group):
                    if (content := keys_of(mended).group) in seen:
                        reason = "duplicate_group"
                    else:
                        seen.add(content)
                        groups.write(mended.to_json().encode("utf-8") + b"\n")
                        written += 1
                        alone += not mended.neg
                        for kind, text in lost:
                            passages[kind] += 1
                            removed.write(_line({"where": where, "kind": kind, "passage": text}))
                if reason:
                    done[reason] += 1
                    removed.write(_line({"where": where, "kind": reason, "group": json.loads(record.to_json())}))
        if place != found.groups or unreadable != found.unreadable:
            raise _changed(output)
        assert place == written + sum(done.values())
    return {
        "in": place + unreadable, "groups_written": written, "without_negatives": alone,
        "groups_removed": dict(done), "passages_removed": dict(passages), "unreadable": unreadable,
        "files": list(FILES),
    }  # fmt: skip


def mend(
    group: Group, leaked: bool, positives: Collection[bytes], error_texts: Sequence[str], negatives: bool = True
) -> tuple[Group | str, list[tuple[str, str]]]:
    """The mended group, or the kind of finding for which it goes; and (kind, text) of each passage that went.

    `positives` are the keys of pairs that are positive in some group; without `negatives` a group may end with none.
    """
    if leaked:
        return "leak", []
    if is_error(group.query, error_texts):
        return "error_text", []
    lost: list[tuple[str, str]] = []
    kept: dict[str, list[int]] = {"pos": [], "neg": []}
    taken: dict[str, str] = {}
    query = (group.prompt or "", same(group.query))
    # What an error text would be taken for is not asked: it is none of the two.
    for role, texts in (("pos", group.pos), ("neg", group.neg)):
        for index, text in enumerate(texts):
            plain = same(text)
            if is_error(text, error_texts):
                kind = "error_text"
            elif plain in taken:
                kind = "duplicate_passage" if taken[plain] == role else "positive_among_negatives"
            elif role == "neg" and key(*query, plain) in positives:
                kind = "positive_elsewhere_negative"
            else:
                taken[plain] = role
                kept[role].append(index)
                continue
            lost.append((kind, text))
    if not kept["pos"] or (negatives and not kept["neg"]):
        reason = "error_text" if not kept["pos"] else "no_negatives"
        return reason, []  # removed.jsonl holds the group whole
    if not lost:
        return group, []

    def chosen(values: tuple[Any, ...] | None, role: str) -> Any:
        return None if values is None else tuple(values[index] for index in kept[role])

    mended = dataclasses.replace(
        group, pos=chosen(group.pos, "pos"), neg=chosen(group.neg, "neg"),
        pos_scores=chosen(group.pos_scores, "pos"), neg_scores=chosen(group.neg_scores, "neg"),
    )  # fmt: skip
    return mended, lost


def _line(value: dict[str, Any]) -> bytes:
    # The name of a file may be none that UTF-8 can hold.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _changed(where: object) -> UserError:
    return UserError("groups", "an input that changed while it was read", "the same records twice",
                     "run the command again once nobody writes to it")  # fmt: skip
