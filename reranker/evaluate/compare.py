"""`reranker evaluate compare A B`: which queries one system wins over another, and how sure the difference is.

In: two reports of `reranker evaluate`, or one twice with two systems, as DIRECTORY or DIRECTORY:SYSTEM. Out: on
standard output the counts of queries won, tied and lost, the difference of the metric with its interval and p-value,
and the queries of the largest differences with their texts; on request all of them as JSON lines. Only queries that
both reports have are compared, and how many one has alone is said, as are settings that differ. Raises `UserError`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reranker.config.evaluating import CompareConfig
from reranker.errors import UserError, closest
from reranker.evaluate.measures import AMONG_CONTEXTS
from reranker.evaluate.metrics import Estimate, estimate
from reranker.evaluate.statistics import Sample, estimate_over_sets, p_value
from reranker.evaluate.systems import TUNED
from reranker.files import atomic_open, read_json, sha256
from reranker.groups import read_lines

Name = tuple[str, str]
"""(set, qid) of a query."""
FIX = "name a directory that reranker evaluate has written"


@dataclass(frozen=True)
class Side:
    """A system of a report: {query: its line of queries.jsonl}, {(set, id): text}, and the content of details.json."""

    directory: Path
    system: str
    details: Mapping[str, Any]
    lines: Mapping[Name, Mapping[str, Any]]
    texts: Mapping[Name, str]

    def value(self, name: Name, metric: str) -> float:
        return float(self.lines[name]["metrics"][self.system][metric])

    def ranked(self, name: Name) -> list[str]:
        """The ids of the candidates as this system ranks them."""
        line = self.lines[name]
        return [line["candidates"][place] for place in line["order"][self.system]]

    def settings(self, sets: Sequence[str]) -> dict[str, Any]:
        """What the values of these sets depend on beside the systems."""
        of_sets = self.details.get("sets") or {"": self.details}
        of_all = self.details["settings"]
        cut = {key: of_all[key] for key in ("max_length", "long", "window_overlap", "window_best") if key in of_all}
        found = {**cut, **self.details["environment"]}
        for name in sets:
            for key in ("stage", "depth"):
                found[f"{key} of {name}" if name else key] = of_sets[name][key]
        return found


@dataclass(frozen=True)
class Comparison:
    """Both sides over the queries that they share.

    Attributes:
        won, lost: queries by falling difference. tied: how many are neither.
        alone: queries that only the first, and only the second has.
        means: of the metric. difference: first minus second, the mean over sets where there are several.
    """

    won: list[Name]
    lost: list[Name]
    tied: int
    alone: tuple[int, int]
    sets: int
    means: tuple[float, float]
    difference: Estimate
    p: float


def compare_command(config: CompareConfig) -> int:
    """Print the comparison. Raises UserError."""
    for key, least in {"show": 0, "resamples": 100, "permutations": 100, "seed": 0}.items():
        if getattr(config, key) < least:
            raise UserError(key, str(getattr(config, key)), f"{least} or more", "change the value")
    first, second = read_side(config.first, config.metric), read_side(config.second, config.metric)
    for side in (first, second):
        if config.output and Path(config.output).resolve().is_relative_to(side.directory.resolve()):
            raise UserError("output", f"{config.output}, within the report {side.directory}", "a file elsewhere",
                            "name another one: a report holds its own files alone")  # fmt: skip
    found = compare(first, second, config.metric, config.resamples, config.permutations, config.seed)
    if config.output:
        with atomic_open(config.output) as stream:
            for name in (*found.won, *found.lost):
                stream.write(
                    json.dumps(_record(name, first, second, config.metric), ensure_ascii=False).encode() + b"\n"
                )
    print("\n".join(_told(found, first, second, config.metric, config.show)))
    if config.output:
        print(f"\nwritten to {config.output}: {len(found.won) + len(found.lost):,} queries that are won or lost")
    return 0


def read_side(named: str, metric: str) -> Side:
    """The report and system that `DIRECTORY` or `DIRECTORY:SYSTEM` means. Raises UserError."""
    whole = ":" not in named or Path(named).is_dir()
    directory, _, system = (named, "", "") if whole else named.rpartition(":")
    path = Path(directory)
    details = read_json(path / "details.json", FIX)
    for file in ("queries.jsonl", "passages.jsonl"):
        digest = (details.get("files") or {}).get(file) if isinstance(details, dict) else None
        if digest is None or not (path / file).is_file() or sha256(path / file) != digest:
            raise UserError(path / file, "another file than the report's", f"the one that {path}/details.json names",
                            "evaluate again with force=true")  # fmt: skip
    lines = {(line["set"], line["qid"]): line for _, line in read_lines(path / "queries.jsonl")}
    side = Side(
        path, system or TUNED, details, lines,
        {(text["set"], text["id"]): text["text"] for _, text in read_lines(path / "passages.jsonl")},
    )  # fmt: skip
    for line in lines.values():
        _known(side.system, line["metrics"], f"{path}: system")
        _known(metric, line["metrics"][side.system], f"{path}: metric")
    return side


def compare(first: Side, second: Side, metric: str, resamples: int, permutations: int, seed: int) -> Comparison:
    """Compare both sides. Raises UserError where a query has other judgements or another text on the other side, and
    where the metric looks among another number of contexts there."""
    shared = [name for name in first.lines if name in second.lines]
    if not shared:
        raise UserError(second.directory, "none of the queries of the other report", "a report of the same queries",
                        "evaluate both systems on the same sets")  # fmt: skip
    for name in shared:
        for key in ("query", "judged"):
            if first.lines[name][key] != second.lines[name][key]:
                raise UserError(second.directory, f"another {key} of query {name[1]} than in {first.directory}",
                                "reports of the same queries", "evaluate both systems on the same files")  # fmt: skip
    handed = [side.details["settings"]["contexts"] for side in (first, second)]
    if metric in AMONG_CONTEXTS and handed[0] != handed[1]:
        raise UserError(second.directory, f"{metric} among contexts={handed[1]}", f"{handed[0]}, as in "
                        f"{first.directory}", f"evaluate both with the same contexts, or {metric}@k")  # fmt: skip
    differences = {name: first.value(name, metric) - second.value(name, metric) for name in shared}
    samples = _samples(first, differences)
    if len(samples) == 1:
        difference = estimate(*samples[0], resamples, seed)
    else:
        difference = estimate_over_sets(samples, resamples, seed)
    ordered = sorted(shared, key=lambda name: (-abs(differences[name]), name))
    means = tuple(_mean(side, shared, metric) for side in (first, second))
    return Comparison(
        [name for name in ordered if differences[name] > 0], [name for name in ordered if differences[name] < 0],
        sum(value == 0 for value in differences.values()),
        (len(first.lines) - len(shared), len(second.lines) - len(shared)), len(samples), (means[0], means[1]),
        difference, p_value(samples, permutations, seed),
    )  # fmt: skip


def _samples(first: Side, differences: Mapping[Name, float]) -> list[Sample]:
    """The differences of each set, with the clusters."""
    by_set: dict[str, list[Name]] = {}
    for name in differences:
        by_set.setdefault(name[0], []).append(name)
    return [
        (np.array([differences[name] for name in names]), [first.lines[name]["cluster"] for name in names])
        for names in by_set.values()
    ]  # fmt: skip


def _mean(side: Side, names: Sequence[Name], metric: str) -> float:
    """The mean over the sets of each set's mean."""
    by_set: dict[str, list[float]] = {}
    for name in names:
        by_set.setdefault(name[0], []).append(side.value(name, metric))
    return float(np.mean([np.mean(values) for values in by_set.values()]))


def _known(name: str, known: Mapping[str, Any], where: str) -> None:
    if name not in known:
        near = closest(name, known)
        raise UserError(where, name, "one of " + ", ".join(known), f"did you mean {near}?" if near else "choose one")


def _told(found: Comparison, first: Side, second: Side, metric: str, show: int) -> list[str]:
    width = max(60, min(120, shutil.get_terminal_size((96, 24)).columns))
    count = len(found.won) + found.tied + len(found.lost)
    alone = f"; {found.alone[0]:,} only in A, {found.alone[1]:,} only in B" if any(found.alone) else ""
    over = f", the mean over {found.sets} sets" if found.sets > 1 else ""
    ours, of = found.means, found.difference
    lines = [
        f"A  {first.directory}: {first.system}",
        f"B  {second.directory}: {second.system}",
        *_otherwise(first, second),
        "",
        f"{count:,} queries: {len(found.won):,} won by A, {found.tied:,} tied, {len(found.lost):,} lost{alone}",
        f"{metric}: A {ours[0]:.3f}, B {ours[1]:.3f}, A minus B {of.value:+.3f} [{of.low:+.3f}, {of.high:+.3f}], "
        f"p {found.p:.4f}{over}",
    ]
    for heading, names in (("won by A", found.won), ("lost by A", found.lost)):
        for name in names[:show]:
            record = _record(name, first, second, metric)
            lines += [
                "",
                f"{heading}  {metric} {record['A']:.3f} against {record['B']:.3f}  {'/'.join(filter(None, name))}",
            ]
            lines.append(_short("query", record["query"], width))
            for right in record["right"]:
                ranks = " against ".join("no" if rank is None else f"{rank}." for rank in right["ranks"].values())
                lines.append(_short(f"right, {ranks}", right["text"], width))
            rights = [right["id"] for right in record["right"]]
            for side in ("A", "B"):
                if (top := record["first"][side]) and top["id"] not in rights:
                    lines.append(_short(f"first of {side}", top["text"], width))
    return lines


def _otherwise(first: Side, second: Side) -> list[str]:
    """A line for each setting that differs."""
    theirs_too = {name for name, _ in second.lines}
    sets = [name for name in dict.fromkeys(name for name, _ in first.lines) if name in theirs_too]
    ours, theirs = first.settings(sets), second.settings(sets)
    return [f"   other {key}: A {ours.get(key)}, B {theirs.get(key)}"
            for key in ours | theirs if ours.get(key) != theirs.get(key)]  # fmt: skip


def _short(name: str, text: str | None, width: int) -> str:
    """A text within `width` columns, of which a Hangul syllable takes two."""
    from rich.cells import cell_len, set_cell_size

    shown, room = " ".join((text or "a text that the report does not have").split()), width - 24
    if cell_len(shown) > room:
        shown = set_cell_size(shown, room - 2).rstrip() + " …"
    return f"  {name:20s}  {shown}"


def _record(name: Name, first: Side, second: Side, metric: str) -> dict[str, Any]:
    """A query with its texts: the right passages with their ranks, and what each side puts first."""
    sides = {"A": first, "B": second}
    ranked = {key: side.ranked(name) for key, side in sides.items()}

    def text_of(passage: str) -> str | None:
        return first.texts.get((name[0], passage)) or second.texts.get((name[0], passage))

    right = [passage for passage, grade in first.lines[name]["judged"].items() if grade > 0]
    return {
        "set": name[0], "qid": name[1], "query": first.lines[name]["query"],
        **{key: side.value(name, metric) for key, side in sides.items()},
        "right": [
            {"id": passage, "text": text_of(passage),
             "ranks": {key: of.index(passage) + 1 if passage in of else None for key, of in ranked.items()}}
            for passage in right
        ],
        "first": {key: {"id": of[0], "text": text_of(of[0])} if of else None for key, of in ranked.items()},
    }  # fmt: skip
