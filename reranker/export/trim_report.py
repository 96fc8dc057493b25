"""What trimming a vocabulary did, for people: the table on standard output and the section of the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reranker.export.card_edit import ONNX, with_size, without_section
from reranker.export.trim_corpus import Compared


@dataclass(frozen=True)
class Trimmed:
    """What was cut, and how it was checked. `before` and `after` are of `trim.Size`."""

    model: str
    languages: list[str]
    min_frequency: int
    before: Mapping[str, int]
    after: Mapping[str, int]
    corpus: Compared
    unseen: Compared | None
    pairs: int
    largest_difference: float


_ROWS = {
    "pieces": "pieces", "parameters": "parameters", "embedding": "of these the embedding",
    "weight_bytes": "bytes of the weights", "tokenizer_bytes": "bytes of tokenizer.json",
}  # fmt: skip


def table(trimmed: Trimmed) -> str:
    """Before and after, and what was checked, as Markdown."""
    lines = ["| | before | after | share |", "|---|---:|---:|---:|"]
    for key, name in _ROWS.items():
        before, after = trimmed.before[key], trimmed.after[key]
        lines.append(f"| {name} | {before:,} | {after:,} | {after / before:.1%} |")
    lines += ["", f"Corpus: {trimmed.corpus}."]
    if trimmed.unseen:
        lines.append(f"Unseen texts: {trimmed.unseen}.")
    exactly = "exactly" if trimmed.largest_difference == 0 else f"to {trimmed.largest_difference:.1g}"
    lines.append(f"The scores of {trimmed.pairs} pairs of the corpus are the original's {exactly}.")
    return "\n".join(lines)


def card(trimmed: Trimmed, original: Path, name: str) -> str:
    """The original's card, where it lies in a directory, or a short one; with a section on what was cut.

    Of an original in ONNX nothing is said any more, as that is not cut.
    """
    if original.is_file():
        text = without_section(original.read_text("utf-8", errors="replace"), ONNX).rstrip("\n")
        text = with_size(text, trimmed.before["parameters"], trimmed.after["parameters"])
    else:
        # A path of this machine is nobody's model on the hub.
        base = "" if Path(trimmed.model).exists() else f"base_model:\n- {trimmed.model}\n"
        text = f"---\nlibrary_name: transformers\n{base}---\n\n# {name}"
    languages = f" (languages: {', '.join(trimmed.languages)})" if trimmed.languages else ""
    return f"""{text}

## Trimmed vocabulary

The vocabulary of {Path(trimmed.model).name} cut to the pieces that its corpus uses{languages}. All other weights are as
they were. A text whose pieces are kept has the same tokens and the same scores; any other is cut into other pieces,
mostly smaller ones.

{table(trimmed)}
"""
