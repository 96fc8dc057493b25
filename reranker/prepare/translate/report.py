"""What a translation came to: report.json for programs, report.md for readers, report.png for a look.

In: the counts of a run and samples of texts beside their translations. Out: the three files, each whole or not at all.
Nothing is computed here but shares. The texts of samples are data: in Markdown nothing of them is markup.
"""

from __future__ import annotations

import bisect
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypedDict

from reranker.files import atomic_open, make_directory, write_json, write_text
from reranker.prepare.translate.gates import GATES

FILES = ("report.json", "report.md", "report.png")
EDGES = tuple(step / 10 for step in range(31))
"""Edges of the histogram of length ratios; the last bin takes all that are longer."""


@dataclass(frozen=True)
class Sample:
    """A text beside its translation.

    Attributes:
        translation: None where the backend gave none.
        reason: why it was refused or failed; None: it was accepted.
        kind: query, positive or negative.
    """

    source: str
    translation: str | None
    reason: str | None
    kind: str


class Histogram(TypedDict):
    edges: list[float]
    counts: list[int]


class Summary(TypedDict):
    """What a run counted.

    Keys:
        source, target: language codes.
        groups: in, out, rejected, unreadable, negatives_rejected.
        texts: distinct, translated, rejected, failed.
        sent: for each backend its identity (backend), texts, characters and dollars of this run.
        by_gate: distinct texts that each gate rejected.
        length_ratios: of the translations that there are, in columns.
        seconds: wall time of this run.
    """

    source: str
    target: str
    groups: dict[str, int]
    texts: dict[str, int]
    sent: list[dict[str, Any]]
    by_gate: dict[str, int]
    length_ratios: Histogram
    seconds: float


def length_histogram(ratios: Iterable[float]) -> Histogram:
    """How many ratios lie between each two of `EDGES`."""
    counts = [0] * (len(EDGES) - 1)
    for ratio in ratios:
        counts[min(bisect.bisect_right(EDGES, ratio), len(counts)) - 1] += 1
    return {"edges": list(EDGES), "counts": counts}


def write_report(directory: Path, summary: Summary, samples: Sequence[Sample]) -> None:
    """Write the three files into `directory`. Raises UserError where it cannot be written to."""
    make_directory(directory)
    write_json(directory / "report.json", {**summary, "samples": [asdict(sample) for sample in samples]})
    write_text(directory / "report.md", markdown(summary, samples))
    with atomic_open(directory / "report.png") as stream:
        draw(summary, stream)


def markdown(summary: Summary, samples: Sequence[Sample]) -> str:
    """The content of report.md."""
    groups, texts = summary["groups"], summary["texts"]
    lines = [f"# Translation, {summary['source']} to {summary['target']}", ""]
    lines += _table(("groups", "count", "share"), _shares(groups, "in"))
    if count := groups.get("negatives_rejected"):
        lines += ["", f"Written groups lack {count:,} negatives that were rejected."]
    lines += ["", *_table(("distinct texts", "count", "share"), _shares(texts, "distinct"))]
    rejections = [(gate, f"{count:,}", _share(count, texts["distinct"])) for gate, count in _by_gate(summary)]
    if rejections:
        lines += ["", *_table(("rejected by gate", "texts", "share"), rejections)]
    sent = [
        (each["backend"], f"{each['texts']:,}", f"{each['characters']:,}", f"{each['dollars']:.2f}")
        for each in summary["sent"]
    ]
    lines += ["", *_table(("sent in this run to", "texts", "characters", "US dollars"), sent)]
    lines += ["", f"This run took {summary['seconds']:,.0f} s.", "", "![length ratios and rejections](report.png)"]
    accepted = [(sample.kind, sample.source, sample.translation) for sample in samples if sample.reason is None]
    rejected = [(sample.kind, sample.reason, sample.source, sample.translation) for sample in samples if sample.reason]
    if accepted:
        lines += ["", "## Accepted", "", *_table(("kind", summary["source"], summary["target"]), accepted)]
    if rejected:
        lines += ["", "## Rejected", "", *_table(("kind", "reason", summary["source"], summary["target"]), rejected)]
    return "\n".join(lines) + "\n"


def draw(summary: Summary, stream: IO[bytes]) -> None:
    """Write the figure: the length ratios, and the rejections by gate."""
    # The object interface: pyplot would choose a backend for the whole process, and keep the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(10, 3.6), dpi=160, layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    ratios, gates = figure.subplots(1, 2)
    edges, counts = summary["length_ratios"]["edges"], summary["length_ratios"]["counts"]
    ratios.stairs(counts, edges, fill=True, color="#2563a8", alpha=0.8)
    ratios.set_title(f"length ratios of {sum(counts):,} translations", fontsize=11)
    ratios.set_xlabel(f"columns {summary['target']} / columns {summary['source']} (last bin: all above)", fontsize=9)
    ratios.set_ylabel("distinct texts", fontsize=9)
    found = dict(_by_gate(summary))
    names = [gate for gate in GATES if gate in found] + [gate for gate in found if gate not in GATES]
    bars = gates.barh(names, [found[name] for name in names], color="#c2410c", height=0.6)
    gates.bar_label(bars, [f"{found[name]:,}" for name in names], padding=3, fontsize=9)
    gates.invert_yaxis()
    gates.margins(x=0.15)
    gates.set_title(f"{sum(found.values()):,} of {summary['texts']['distinct']:,} texts rejected, by gate", fontsize=11)
    if not found:
        gates.set(xticks=[], yticks=[])
    for panel in (ratios, gates):
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.savefig(stream, format="png", metadata={"Software": None})


def _by_gate(summary: Summary) -> list[tuple[str, int]]:
    return sorted(((gate, count) for gate, count in summary["by_gate"].items() if count), key=lambda item: -item[1])


def _shares(counts: dict[str, int], whole: str) -> list[tuple[str, str, str]]:
    names = [whole, *(name for name in counts if name not in (whole, "negatives_rejected"))]
    return [(name, f"{counts[name]:,}", _share(counts[name], counts[whole])) for name in names]


def _share(count: int, of: int) -> str:
    return f"{count / of:.2%}" if of else "-"


def _table(head: Sequence[str], rows: Iterable[Sequence[str | None]]) -> list[str]:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(map(_cell, row)) for row in rows)]
    return [f"| {line} |" for line in lines]


def _cell(text: str | None) -> str:
    """A text as one cell: no markup, no line break."""
    if text is None:
        return "(none)"
    escaped = re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", html.escape(text.strip(), quote=False))
    return re.sub(r"\s*[\r\n\u2028\u2029]+\s*", "<br>", escaped) or "(empty)"
