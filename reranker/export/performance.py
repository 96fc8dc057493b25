"""A report of `reranker evaluate` -> what the model card may say of the weights that are exported.

In: table.json, details.json beside it, the directory that the weights were written to. Out: the table and how it
was made, if the weights that were evaluated are these, byte for byte. A table of other weights is never shown:
one that merely lies there is left out with a line that says so, one that was asked for is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.evaluate.metrics import METRICS
from reranker.files import read_json, sha256

FIX = "evaluate the exported model again, then export again"


@dataclass(frozen=True)
class Performance:
    """What an evaluation found.

    Attributes:
        rows: of table.json, `{"system", "queries", metric: {"value", "low", "high"}}`.
        differences: `{"system", "minus", metric: {"value", "low", "high", "p_holm"}}`.
        precision, device: that the rerankers scored in and on. max_length: tokens of a pair at most, None: the model's.
        stage: of one set with a first stage, `{"stage", "depth", "passages", "found", "contexts"}`: its name, the
            passages that were reranked, of how many, the share of queries with the right one among them, and how many
            are handed on. None for candidates that came with the set, or several sets.
        contexts: passages handed on, of one set.
        metrics: of the rows, in the order of the table's columns.
        windows: of passages that are too long, where they were scored by windows: `{"best", "overlap"}`, the windows
            that count and the tokens that neighbours share. None where they were cut.
        systems: how the other systems scored, name -> what the evaluation says of it.
    """

    rows: Sequence[Mapping[str, Any]]
    differences: Sequence[Mapping[str, Any]]
    precision: str
    device: str
    max_length: int | None = None
    stage: Mapping[str, Any] | None = None
    contexts: int | None = None
    metrics: Sequence[str] = METRICS
    windows: Mapping[str, int] | None = None
    systems: Mapping[str, str] = field(default_factory=dict)


def performance_of(weights: Path, table: Path, required: bool) -> Performance | None:
    """The performance of the *.safetensors in `weights` by the report that `table` (table.json) is part of.

    None if there is no such file, and with a line on standard error if it is not about these weights. Where the
    table is `required`, both raise UserError.
    """
    if not required and not table.is_file():
        return None
    try:
        return _read(weights, table)
    except UserError as error:
        if required:
            raise
        print(f"no table in the model card: {error}", file=sys.stderr)
        return None


def _read(weights: Path, table: Path) -> Performance:
    beside = table.parent / "details.json"
    rows, details = read_json(table, FIX), read_json(beside, FIX)
    try:
        name, files = details["inputs"]["model"]["name"], details["inputs"]["model"].get("files", {})
        evaluated = {Path(path).name: entry["sha256"] for path, entry in files.items() if path.endswith(".safetensors")}
        described, found = details["files"]["table.json"], _found(rows, details)
    except (KeyError, TypeError, AttributeError):
        raise UserError(beside, "another form of JSON", "what reranker evaluate writes", FIX) from None
    if sha256(table) != described:
        raise UserError(table, f"another table than the one of {beside}", "both of one evaluation", FIX)
    if evaluated != {path.name: sha256(path) for path in weights.glob("*.safetensors")}:
        raise UserError(table, f"a table of other weights ({name} as it was evaluated)",
                        "one of exactly the exported weights", FIX)  # fmt: skip
    return found


def _found(rows: Sequence[Mapping[str, Any]], details: Mapping[str, Any]) -> Performance:
    environment, settings, stage = details["environment"], details["settings"], None
    one = "sets" not in details
    if one and details["depth"] is not None:
        stage = {"found": details["right_within_depth"],
                 **{name: details[name] for name in ("stage", "depth", "passages", "contexts")}}  # fmt: skip
    windows = None
    if settings.get("long") == "windows":  # without, an evaluation does not tell of them
        windows = {"best": settings["window_best"], "overlap": settings["window_overlap"]}
    return Performance(
        rows, details["differences"], environment["precision"], environment["device"], settings["max_length"], stage,
        details["contexts"] if one else None, settings["metrics"], windows,
        {name: _told(name, system["told"], details["inputs"]) for name, system in details.get("systems", {}).items()},
    )  # fmt: skip


def _told(name: str, told: str, inputs: Mapping[str, Any]) -> str:
    """What the evaluation says of a system, a model directory by its last part: where it lies is nobody's business."""
    model = inputs.get(f"systems.{name}.model", {})
    above = str(Path(model["name"]).parent) if model.get("files") else "."
    return told if above == "." else told.replace(above.rstrip("/") + "/", "")
