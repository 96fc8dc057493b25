"""The table of an evaluation, for a terminal, for a reader of Markdown, and as a figure.

In: the rows of table.json and the content of details.json. Out: text or a PNG. Nothing is computed here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import IO, Any

from reranker.evaluate.metrics import METRICS

TITLES = {"has_right_in_contexts": "has-right-in-contexts", "mrr": "mrr", "ndcg@10": "nDCG@10"}
COLOURS = {"without-reranker": "#6b7280", "base": "#2563a8", "fine-tuned": "#c2410c", "fused": "#7c3aed"}


def show(rows: Sequence[dict[str, Any]], details: dict[str, Any]) -> None:
    """Print the table and the differences on standard output, within 80 columns."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print()
    console.print(_grid("system", [(row["system"], row) for row in rows], "{:.3f}"))
    if details["differences"]:
        pairs = [(f"{row['system']} minus\n{row['minus']}", row) for row in details["differences"]]
        console.print()
        console.print(_grid("difference", pairs, "{:+.3f}"))
    console.print()
    console.print(Text(f"{_described(details)} In brackets: {_INTERVALS}", style="dim"))


def markdown(rows: Sequence[dict[str, Any]], details: dict[str, Any]) -> str:
    """The content of table.md."""
    head = " | ".join(TITLES[metric] for metric in METRICS)
    lines = [f"| system | {head} |", "|---|" + "---|" * len(METRICS)]
    lines += [f"| {row['system']} | {_cells(row, '{:.3f}')} |" for row in rows]
    lines += ["", f"{_described(details)} In brackets: {_INTERVALS}"]
    if details["differences"]:
        lines += ["", f"| difference | {head} |", "|---|" + "---|" * len(METRICS)]
        lines += [
            f"| {row['system']} minus {row['minus']} | {_cells(row, '{:+.3f}')} |" for row in details["differences"]
        ]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict[str, Any]], details: dict[str, Any], stream: IO[bytes]) -> None:
    """Write the figure: a panel for each metric, a point with its interval for each system."""
    # The object interface: pyplot would choose a backend for the whole process, and keep the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(10, 1.7 + 0.45 * len(rows)), dpi=160, layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(METRICS), sharey=True)
    places = range(len(rows))
    for panel, metric in zip(panels, METRICS, strict=True):
        for place, row in zip(places, rows, strict=True):
            value, low, high = (row[metric][key] for key in ("value", "low", "high"))
            colour = COLOURS.get(row["system"], "black")
            panel.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")
            panel.plot([value], [place], "o", color=colour, markersize=7)
            panel.annotate(f"{value:.3f}", (value, place), xytext=(0, 8), textcoords="offset points",
                           ha="center", color=colour, fontsize=10)  # fmt: skip
        panel.set_title(TITLES[metric] + (f" (k = {details['settings']['contexts']})" if metric == METRICS[0] else ""),
                        fontsize=11)  # fmt: skip
        panel.set_yticks(list(places), [row["system"] for row in rows], fontsize=11)
        panel.margins(x=0.15)
        panel.grid(axis="x", alpha=0.25)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    # The first row at the top, with room above it for its label.
    panels[0].set_ylim(len(rows) - 0.6, -0.75)
    caption = textwrap.fill(f"{_described(details)} Bars: {_INTERVALS}", 150)  # a longer line leaves the figure
    figure.supxlabel(caption, fontsize=8, color="#4b5563")
    figure.savefig(stream, format="png", metadata={"Software": None})


def scored(details: dict[str, Any]) -> str:
    """How the rerankers scored, in words."""
    environment, max_length = details["environment"], details["settings"]["max_length"]
    cut = f", at most {max_length} tokens a pair" if max_length else ""
    return f"Scored in {environment['precision']} ({environment['device']}){cut}"


_INTERVALS = "95% bootstrap intervals, queries of one document resampled together."


def _described(details: dict[str, Any]) -> str:
    settings = details["settings"]
    first = settings["first_stage"]
    return (
        f"{details['queries']:,} queries, {details['passages']:,} passages; first stage BM25 "
        f"({first['analyzer']}, k1={first['k1']:g}, b={first['b']:g}), depth {settings['depth']}, "
        f"{settings['contexts']} contexts handed on. The right passage is within the depth for "
        f"{details['right_within_depth']:.1%} of the queries. {scored(details)}."
    )


def _cells(row: dict[str, Any], form: str) -> str:
    return " | ".join(" ".join(_parts(row[metric], form)) for metric in METRICS)


def _parts(found: dict[str, float], form: str) -> tuple[str, str]:
    return form.format(found["value"]), f"[{form.format(found['low'])}, {form.format(found['high'])}]"


def _grid(title: str, named: Sequence[tuple[str, dict[str, Any]]], form: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.add_column(title, no_wrap=True)
    for metric in METRICS:
        grid.add_column(TITLES[metric], no_wrap=True)
    for name, row in named:
        cells = [_parts(row[metric], form) for metric in METRICS]
        # The interval under its value: beside it, four columns would not fit a terminal of 80.
        grid.add_row(name, *(Text(value, "bold").append(f"\n{around}", "not bold dim") for value, around in cells))
    return grid
