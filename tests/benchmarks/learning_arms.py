"""The arms of the learning benchmark: what is trained, and beside which other arm it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Arm:
    """What is trained: the settings in which it differs from the recipe.

    Attributes:
        of: the arm that it has one lever more or less than, as the table groups them.
        data: "shards", the demo's own, or "ordered", what FlagEmbedding reads.
    """

    name: str
    options: tuple[str, ...]
    of: str = ""
    data: str = "shards"


LABELS_ONLY = ("loss.labels=1.0", "loss.distillation=0.0")
REFERENCE, PRESET, PEER, BASE = "reference", "preset", "FlagEmbedding", "base"
ARMS = (
    Arm(PRESET, ()),
    Arm(REFERENCE, (*LABELS_ONLY, "data.negatives.warmup=0.0"), data="ordered"),
    Arm(PEER, ()),
    Arm(BASE, ()),
    Arm("preset, no random warm-up", ("data.negatives.warmup=0.0",), PRESET),
    # Random negatives have no teacher's scores: without labels a warm-up of them would teach nothing.
    Arm(
        "preset, no random warm-up, no labels",
        ("data.negatives.warmup=0.0", "loss.labels=0.0"),
        "preset, no random warm-up",
    ),
    Arm("reference, no random warm-up", (*LABELS_ONLY, "data.negatives.warmup=0.0"), REFERENCE),
    Arm("preset, another seed", ("train.seed=43",), PRESET),
    Arm("preset, temperature 0.05", ("loss.temperature=0.05",), PRESET),
    Arm("preset, lambdaloss", ("loss.by_label=lambdaloss",), PRESET),
    Arm("preset, negatives by score", ("data.negatives.score_temperature=0.05",), PRESET),
    Arm("preset, groups of 8", ("data.group_size=8",), PRESET),
    Arm("preset, random decay", ("data.negatives.decay=0.4",), PRESET),
    Arm("reference, ranknet", (*LABELS_ONLY, "loss.by_label=ranknet"), REFERENCE),
    Arm("reference, own texts", LABELS_ONLY, REFERENCE),
    Arm("preset, temperature 0.01", ("loss.temperature=0.01",), PRESET),
)


def report_of(work: Path, arm: str) -> Path:
    return work / "reports" / slug(arm)


def slug(name: str) -> str:
    """A name as that of a directory."""
    return name.lower().replace(",", "").replace(" ", "-")
