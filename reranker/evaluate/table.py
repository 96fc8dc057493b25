"""The table of an evaluation, for a terminal, for a reader of Markdown, and as a figure.

In: the rows of table.json and the content of details.json. Out: text or a PNG. Nothing is computed here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import IO, Any

from reranker.evaluate.measures import AMONG_CONTEXTS
from reranker.evaluate.statistics import told_p

COLOURS = {"without-reranker": "#6b7280", "base": "#2563a8", "fine-tuned": "#c2410c", "fused": "#7c3aed"}
_OTHER_COLOURS = ("#0f766e", "#a16207", "#be185d", "#4d7c0f", "#0369a1", "#7e22ce")
COLUMNS = 3
"""Metrics beside each other in a terminal of 80 columns."""


def colours(names: Sequence[str]) -> dict[str, str]:
    """The colour of each system, those beside base and fine-tuned in the order of their rows."""
    others = [name for name in names if name not in COLOURS]
    more = {name: _OTHER_COLOURS[place % len(_OTHER_COLOURS)] for place, name in enumerate(others)}
    return {name: COLOURS.get(name) or more[name] for name in names}


def title(metric: str) -> str:
    """What a column is called."""
    name, at, k = metric.partition("@")
    return name.replace("_", "-").replace("ndcg", "nDCG").replace("map", "MAP").replace("recall", "Recall") + at + k


def show(rows: Sequence[Mapping[str, Any]], details: Mapping[str, Any]) -> None:
    """Print the table and the differences on standard output, within 80 columns."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for name, set_rows, about in tables(rows, details):
        if name:
            console.print(f"\n{name}", style="bold")
        metrics = details["settings"]["metrics"]
        for start in range(0, len(metrics), COLUMNS):
            some = metrics[start : start + COLUMNS]
            console.print()
            console.print(_grid("system", [(row["system"], row) for row in set_rows], some, "{:.3f}"))
            if about["differences"]:
                pairs = [(f"{row['system']} minus\n{row['minus']}", row) for row in about["differences"]]
                console.print()
                console.print(_grid("difference", pairs, some, "{:+.3f}"))
            for depth, of_depth in about.get("depths", {}).items():
                console.print(f"\nAt depth {depth}:\n")
                console.print(_grid("system", [(row["system"], row) for row in of_depth], some, "{:.3f}"))
        console.print()
        console.print(Text(" ".join(_notes(set_rows, about, details)), style="dim"))


def markdown(rows: Sequence[Mapping[str, Any]], details: Mapping[str, Any]) -> str:
    """The content of table.md."""
    parts = []
    for name, set_rows, about in tables(rows, details):
        lines = [f"## {name}", ""] if name else []
        lines += [*_markdown_rows(set_rows, details), "", " ".join(_notes(set_rows, about, details))]
        if about["differences"]:
            named = [{**row, "system": f"{row['system']} minus {row['minus']}"} for row in about["differences"]]
            lines += ["", *_markdown_rows(named, details, "difference", "{:+.3f}")]
        for depth, of_depth in about.get("depths", {}).items():
            lines += ["", f"At depth {depth}:", "", *_markdown_rows(of_depth, details)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def tables(
    rows: Sequence[Mapping[str, Any]], details: Mapping[str, Any]
) -> list[tuple[str, Sequence[Mapping[str, Any]], Mapping[str, Any]]]:
    """(heading, rows, what is said below) of each table: the one, or that over all sets and those of each."""
    if "sets" not in details:
        return [("", rows, details)]
    of_sets = [(name, about["rows"], about) for name, about in details["sets"].items()]
    return of_sets if len(of_sets) == 1 else [("all sets", rows, details), *of_sets]


def _markdown_rows(
    rows: Sequence[Mapping[str, Any]], details: Mapping[str, Any], first: str = "system", form: str = "{:.3f}"
) -> list[str]:
    metrics = details["settings"]["metrics"]
    titles, latency = [title(metric) for metric in metrics], any("latency" in row for row in rows)
    titles += ["ms a query, median / 95%"] if latency else []
    lines = [f"| {first} | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    for row in rows:
        cells = [" ".join(_parts(row[metric], form)) for metric in metrics]
        lines.append(f"| {row['system']} | {' | '.join(cells + ([_latency(row)] if latency else []))} |")
    return lines


def _latency(row: Mapping[str, Any]) -> str:
    of = row.get("latency")
    return f"{1000 * of['median']:.1f} / {1000 * of['p95']:.1f}" if of else ""


def _notes(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], details: Mapping[str, Any]) -> list[str]:
    notes = [described(about, details), *others(details), f"In brackets: {_INTERVALS}"]
    if about["differences"]:
        notes.append("p: paired randomisation test, corrected for all differences of a metric (Holm).")
    if timed := [row for row in rows if "latency" in row]:
        told = ", ".join(f"{row['system']} {_latency(row)}" for row in timed)
        notes.append(f"Milliseconds that a query waits, one by one, median / 95th percentile: {told}.")
    return notes


def draw(rows: Sequence[Mapping[str, Any]], details: Mapping[str, Any], stream: IO[bytes]) -> None:
    """Write the figure: a panel for each metric, a point with its interval for each system."""
    # The object interface: pyplot would choose a backend for the whole process, and keep the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    metrics = details["settings"]["metrics"]
    size = (10 * max(1, len(metrics) / 3), 1.7 + 0.45 * len(rows))
    figure = Figure(figsize=size, dpi=160, layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    places, colour_of = range(len(rows)), colours([row["system"] for row in rows])
    for panel, metric in zip(panels, metrics, strict=True):
        for place, row in zip(places, rows, strict=True):
            value, low, high = (row[metric][key] for key in ("value", "low", "high"))
            colour = colour_of[row["system"]]
            panel.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")
            panel.plot([value], [place], "o", color=colour, markersize=7)
            panel.annotate(f"{value:.3f}", (value, place), xytext=(0, 8), textcoords="offset points",
                           ha="center", color=colour, fontsize=10)  # fmt: skip
        among = f" (k = {details['settings']['contexts']})" if metric in AMONG_CONTEXTS else ""
        panel.set_title(title(metric) + among, fontsize=11)
        panel.set_yticks(list(places), [row["system"] for row in rows], fontsize=11)
        panel.margins(x=0.15)
        panel.grid(axis="x", alpha=0.25)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    # The first row at the top, with room above it for its label.
    panels[0].set_ylim(len(rows) - 0.6, -0.75)
    caption = textwrap.fill(f"{described(details, details)} Bars: {_INTERVALS}", 150)  # a longer line leaves the figure
    figure.supxlabel(caption, fontsize=8, color="#4b5563")
    figure.savefig(stream, format="png", metadata={"Software": None})


def scored(details: Mapping[str, Any]) -> str:
    """How the rerankers scored, in words."""
    environment, settings = details["environment"], details["settings"]
    cut = f", at most {settings['max_length']} tokens a pair" if settings["max_length"] else ""
    if settings.get("long") == "windows":
        best = settings["window_best"]
        cut += ", longer passages by " + ("the best of their windows" if best == 1 else f"their best {best} windows")
        cut += f" (overlap {settings['window_overlap']})"
    return f"Scored in {environment['precision']} ({environment['device']}){cut}"


_INTERVALS = "95% bootstrap intervals, queries of one document resampled together."


def described(about: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """What a table was measured on, in words."""
    told = f"{about['queries']:,} queries, {about['passages']:,} passages"
    if "sets" in about:
        return f"The mean over {len(about['sets'])} sets, each counting alike; {told}. {scored(details)}."
    handed = f"{about['contexts']} contexts handed on"
    if about["depth"] is None:
        return f"{told}; the candidates came with the set, {handed}. {scored(details)}."
    return (
        f"{told}; first stage {about['stage']}, depth {about['depth']}, {handed}. The right passage is within the "
        f"depth for {about['right_within_depth']:.1%} of the queries. {scored(details)}."
    )


def others(details: Mapping[str, Any]) -> list[str]:
    """How the systems score that score otherwise, a sentence each."""
    return [f"{name}: {system['told']}." for name, system in details.get("systems", {}).items()]


def _parts(found: Mapping[str, float], form: str) -> tuple[str, str]:
    p = f", {told_p(found['p_holm'])}" if "p_holm" in found else ""
    return form.format(found["value"]), f"[{form.format(found['low'])}, {form.format(found['high'])}]{p}"


def _grid(heading: str, named: Sequence[tuple[str, Mapping[str, Any]]], metrics: Sequence[str], form: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.add_column(heading, overflow="fold")  # a long name goes on in the next line
    for metric in metrics:
        grid.add_column(title(metric), no_wrap=True)
    for name, row in named:
        cells = [_parts(row[metric], form) for metric in metrics]
        # The interval under its value: beside it, four columns would not fit a terminal of 80.
        grid.add_row(name, *(Text(value, "bold").append("\n" + around.replace(", p ", "\np "), "not bold dim")
                             for value, around in cells))  # fmt: skip
    return grid
