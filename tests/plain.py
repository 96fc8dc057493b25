"""What others than our code say of a model directory, for tests to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch


def plain_scores(directory: Path, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """scores_N of transformers and nothing else: the tokenizer's own model_max_length is the limit."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    queries, passages = ([pair[place] for pair in pairs] for place in (0, 1))
    with torch.no_grad():
        return model(**tokenizer(queries, passages, padding=True, truncation=True, return_tensors="pt")).logits[:, 0]
