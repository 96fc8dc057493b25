"""What a mining found, for report.json and report.md.

In: the counts of all blocks. Out: a JSON value and a Markdown text. Nothing is read or written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from reranker.errors import shorten
from reranker.prepare.mine.finish import Found

SAMPLES = 5
_BOUNDS = (1, 2, 4, 11, 31, 101)
"""First ranks of the ranges that are told."""


def summarize(total: Found, removed: int, samples: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of report.json.

    `total` has the counts of all blocks, `removed` is the number of lines of removed.jsonl, `samples` are the first
    lines of groups.jsonl.
    """
    groups = sum(total.sizes.values())
    requests = sum(total.positive_ranks.values())
    return {
        "groups": groups,
        "rejected": requests - groups,
        "negatives": sum(size * count for size, count in total.sizes.items()),
        "removed": removed,
        "scores_dropped": total.scores_dropped,
        "negatives_of_a_group": {str(size): count for size, count in sorted(total.sizes.items())},
        "dropped": dict(sorted(total.dropped.items())),
        "origins": dict(sorted(total.origins.items())),
        "ranks_of_negatives": _ranges(total.ranks),
        "rank_of_the_first_positive": {**_ranges(total.positive_ranks), "not found": total.positive_ranks[0]},
        "samples": [json.loads(line) for line in samples],
        "settings": dict(settings),
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The content of report.md."""
    lines = [
        f"{report['groups']:,} groups with {report['negatives']:,} negatives; "
        f"{report['rejected']:,} groups rejected (rejected.jsonl says why).",
    ]
    if report["removed"]:
        lines += ["", removed(report["removed"])]
    if report["scores_dropped"]:
        lines += ["", scores_dropped(report["scores_dropped"])]
    for key, title in (
        ("dropped", "candidates dropped by"),
        ("origins", "negatives from"),
        ("ranks_of_negatives", "ranks of negatives"),
        ("rank_of_the_first_positive", "rank of the first positive"),
        ("negatives_of_a_group", "negatives of a group"),
    ):
        lines += [
            "",
            f"| {title} | |",
            "|---|---:|",
            *(f"| {name} | {count:,} |" for name, count in report[key].items()),
        ]
    for sample in report["samples"]:
        lines += ["", f"**{_cell(sample['query'])}**", "", f"- right: {_cell(sample['pos'][0])}"]
        lines += [f"- wrong: {_cell(text)}" for text in sample["neg"][:3]]
    return "\n".join(lines) + "\n"


def removed(count: int) -> str:
    """What became of negatives that groups came with."""
    return f"{count:,} negatives that groups came with are right for the same query and left out: see removed.jsonl"


def scores_dropped(count: int) -> str:
    """What became of scores that groups came with."""
    return (
        f"{count:,} groups came with pos_scores or neg_scores that are left out, for their negatives are others now; "
        "teacher= writes scores of all"
    )


def _ranges(ranks: Mapping[int, int]) -> dict[str, int]:
    found = {}
    for first, following in zip(_BOUNDS, (*_BOUNDS[1:], None), strict=True):
        count = sum(number for rank, number in ranks.items() if first <= rank and (not following or rank < following))
        name = f"{first}+" if following is None else f"{first}-{following - 1}" if following - first > 1 else f"{first}"
        if count:
            found[name] = count
    return found


def _cell(text: str) -> str:
    return shorten(text, 160)
