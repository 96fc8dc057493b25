"""What was found -> report.json for programs, report.md and a table on the terminal for people.

In: `Collected`. Out: one dict, `SCHEMA` its version, and the two ways of showing it. Shares are of the groups; of
unreadable records they are of all records, of pairs that are too long of all pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reranker.prepare.check.collect import Collected
from reranker.prepare.check.kinds import KINDS

SCHEMA = 1
_PERCENT = (50, 90, 95, 99, 100)


def summarize(found: Collected, unit: str) -> dict[str, Any]:
    """The report, but for what the command adds of itself."""
    totals = {"unreadable": found.groups + found.unreadable, "too_long": found.pairs}
    findings = [
        {
            "kind": name, "severity": kind.severity, "count": found.counts[name],
            "share": found.counts[name] / max(1, totals.get(name, found.groups)),
            "advice": kind.advice, "fix": kind.fix,
            "examples": [{"where": where, "detail": detail} for where, detail in found.examples.get(name, ())],
        }
        for name, kind in KINDS.items() if found.counts[name]
    ]  # fmt: skip
    return {
        "schema": SCHEMA, "groups": found.groups, "without_negatives": found.without_negatives,
        "unreadable": dict(found.reasons), "pairs": found.pairs,
        "errors": sum(of["count"] for of in findings if of["severity"] == "error"),
        "warnings": sum(of["count"] for of in findings if of["severity"] == "warning"),
        "findings": findings, "lengths": {"unit": unit, **{name: _spread(of) for name, of in found.lengths.items()}},
        "scripts": {role: dict(scripts.most_common()) for role, scripts in found.scripts.items()},
    }  # fmt: skip


def _spread(counts: np.ndarray) -> dict[str, float]:
    total = int(counts.sum())
    if not total:
        return {}
    sums = np.cumsum(counts)
    spread = {f"p{percent}": float(np.searchsorted(sums, max(1, total * percent / 100))) for percent in _PERCENT}
    return {"mean": round(float((counts * np.arange(len(counts))).sum() / total), 1), **spread}


def markdown(report: dict[str, Any]) -> str:
    lines = [
        f"# {report['source']}", "", _summary(report), "",
        "| kind | severity | count | share | what to do | fix=true |", "|---|---|---:|---:|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {of['kind']} | {of['severity']} | {of['count']:,} | {of['share']:.2%} | {of['advice']} "
        f"| {of['fix'] or '-'} |"
        for of in report["findings"]
    ]
    for of in report["findings"]:
        lines += ["", f"## {of['kind']}", ""]
        lines += [f"- `{example['where']}`: {_escaped(example['detail'])}" for example in of["examples"]]
    lines += ["", "## lengths and scripts", "", *_about(report), ""]
    return "\n".join(lines)


def show(report: dict[str, Any]) -> None:
    """The table, on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    console.print(Text(_summary(report)))
    if report["findings"]:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("kind", no_wrap=True)
        table.add_column("count", justify="right", no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
        table.add_column("first, and what to do")
        for of in report["findings"]:
            style = "bold red" if of["severity"] == "error" else "yellow"
            first = of["examples"][0] if of["examples"] else {"where": "", "detail": ""}
            text = Text(f"{Path(first['where']).name}: {first['detail']}\n").append(of["advice"], "dim")
            table.add_row(Text(of["kind"], style), f"{of['count']:,}", f"{of['share']:.2%}", text)
        console.print(table)
    for line in _about(report):
        console.print(Text(line))


def _summary(report: dict[str, Any]) -> str:
    unread = sum(report["unreadable"].values())
    return (f"{report['source']}: {report['groups']:,} groups ({report['without_negatives']:,} without negatives), "
            f"{unread:,} unreadable records, {report['errors']:,} errors, {report['warnings']:,} warnings")  # fmt: skip


def _about(report: dict[str, Any]) -> list[str]:
    lengths = report["lengths"]
    lines = [
        f"{name}, {lengths['unit']}: " + ", ".join(f"{key} {value:,.0f}" for key, value in spread.items())
        for name, spread in lengths.items() if name != "unit" and spread
    ]  # fmt: skip
    for role, scripts in report["scripts"].items():
        total = max(1, sum(scripts.values()))
        shares = [f"{name} {count / total:.1%}" for name, count in list(scripts.items())[:5]]
        lines.append(f"scripts of each {role}: {', '.join(shares)}")
    return lines


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")
