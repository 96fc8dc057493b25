"""The demo's teacher: what its base model, used as the embedder that it was trained to be, says of passages.

In: queries with their passages, and the converted base model. Out: for each passage the cosine between its embedding
and its query's, divided by the 0.01 of E5's own training (Wang et al., 2024: "Multilingual E5 Text Embeddings"), so
that their softmax is the distribution that E5 learned. Embeddings are means over tokens, behind the prefixes that
E5 reads. A text is embedded once, however many groups show it. The numbers are rounded, so that machines agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reranker.groups import Group
from reranker.progress import progress_bar

TEMPERATURE = 0.01
MAX_LENGTH = 128
_BATCH = 32


def with_scores(groups: Sequence[Group], base: Path) -> list[Group]:
    """The groups with the teacher's scores of their passages."""
    embedder = _Embedder(base)
    passages = sorted({text for group in groups for text in (*group.pos, *group.neg)})
    place = {text: number for number, text in enumerate(passages)}
    with progress_bar(desc="teacher", unit=" texts", total=len(groups) + len(passages)) as bar:
        queries_GH = embedder.embed([f"query: {group.query}" for group in groups], bar)
        passages_PH = embedder.embed([f"passage: {text}" for text in passages], bar)
    scored = []
    for group, query_H in zip(groups, queries_GH, strict=True):
        scores = passages_PH[[place[text] for text in (*group.pos, *group.neg)]] @ query_H / TEMPERATURE
        rounded = [round(float(score), 2) for score in scores]
        count = len(group.pos)
        scored.append(dataclasses.replace(group, pos_scores=tuple(rounded[:count]), neg_scores=tuple(rounded[count:])))
    return scored


class _Embedder:
    def __init__(self, base: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(base)
        # The encoder of the reranker itself: loaded as anything else, transformers would tell of a head not used.
        self._encoder = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32).roberta.eval()

    def embed(self, texts: Sequence[str], bar: Any) -> np.ndarray:
        """A unit vector for each text."""
        found = np.zeros((len(texts), self._encoder.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda number: (len(texts[number]), number))
        for first in range(0, len(order), _BATCH):
            chosen = order[first : first + _BATCH]
            batch = self._tokenizer(
                [texts[number] for number in chosen], padding=True, truncation=True, max_length=MAX_LENGTH,
                return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                hidden_NLH = self._encoder(**batch).last_hidden_state
            mask_NL1 = batch["attention_mask"][:, :, None]
            mean_NH = (hidden_NLH * mask_NL1).sum(1) / mask_NL1.sum(1)
            found[chosen] = torch.nn.functional.normalize(mean_NH, dim=1).numpy()
            bar.update(len(chosen))
        return found
