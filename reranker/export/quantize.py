"""The ONNX file in 8 bits: a quarter of the size, and how far its scores and its order are from the model's.

In: a model directory with its ONNX file, the model in float32, and groups by which the result is judged. Out:
onnx/model_quantized.onnx beside the other, under optimum's and transformers.js's name, and an `Agreement`. The weights
of the linear layers (each output by itself) and of the embedding are int8; what goes into a layer is quantised while
it runs (onnxruntime's dynamic quantisation). One bit of the weights is given up: processors that lack VNNI overflow
without it, and scores would depend on the machine. Raises UserError where too few passages keep their order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reranker.data.collate import pack_pairs
from reranker.data.tokenize import Contract, Pair, PairTokenizer
from reranker.errors import UserError
from reranker.export.onnx import FILE, quietly
from reranker.groups import read_groups
from reranker.model.cross_encoder import score_pairs
from reranker.model.onnx import onnx_scores, session_of

INT8_FILE = "onnx/model_quantized.onnx"
GROUPS = 64
PASSAGES = 16
"""Of each group at most."""
_BATCH = 8


@dataclass(frozen=True)
class Agreement:
    """Scores of one model against those of another.

    Attributes:
        pairs: of a query and a passage.
        largest, mean: differences of their scores. deviation: the standard deviation of the scores themselves.
        order: of all two passages of one query, the share that stands in the same order.
        best: of all queries, the share whose best passage is the same.
    """

    pairs: int
    largest: float
    mean: float
    deviation: float
    order: float
    best: float

    def __str__(self) -> str:
        order = f"{self.order:.1%} of the passages of a query, two by two, in the same order"
        best = f"the same best passage for {self.best:.1%} of the queries"
        apart = f"scores {self.mean:.2g} apart in the mean and {self.largest:.2g} at most"
        return (
            f"{order}, {best}, {apart}, where their standard deviation is {self.deviation:.2g} ({self.pairs:,} pairs)"
        )


def agreement(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> Agreement:
    """Of the scores of each query's passages. A pure function; a score that is not a number agrees with nothing."""
    one, other = np.concatenate(expected), np.concatenate(found)
    difference = np.abs(one - other)
    same = total = best = 0
    for before, after in zip(expected, found, strict=True):
        for left, right in itertools.combinations(range(len(before)), 2):
            if before[left] != before[right]:
                total += 1
                same += bool((before[left] - before[right]) * (after[left] - after[right]) > 0)
        best += bool(np.isfinite(after).all() and before.argmax() == after.argmax())
    return Agreement(len(one), float(difference.max()), float(difference.mean()), float(one.std()),
                     same / total if total else 1.0, best / len(expected))  # fmt: skip


def write_int8(model: Any, tokenizer: Any, contract: Contract, directory: Path, groups: str, least: float) -> Agreement:
    """Write the file beside the ONNX file of `directory`, and judge it by the passages of `groups`.

    Args:
        model: in float32, on the CPU and in eval mode.
        groups: file of groups, of which the first 64 count, with 16 passages each at most.
        least: the share of two passages that must keep their order.

    Raises UserError below it, and for a file of groups that cannot be read.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    encoder = PairTokenizer(tokenizer, contract)
    chosen = itertools.islice(read_groups(groups), GROUPS)
    encoded = [encoder.encode(group.prompted_query, [*group.pos, *group.neg][:PASSAGES]) for group in chosen]
    path = directory / INT8_FILE
    with quietly():
        quantize_dynamic(directory / FILE, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    with torch.inference_mode():
        expected = [np.concatenate([score_pairs(model, pack_pairs(batch, encoder.pad_id)).numpy()
                                    for batch in _batches(pairs)]) for pairs in encoded]  # fmt: skip
    session = session_of(path)
    found = agreement(expected, [np.concatenate([onnx_scores(session, batch, encoder.pad_id)
                                                 for batch in _batches(pairs)]) for pairs in encoded])  # fmt: skip
    if not found.order >= least:  # written so that NaN is refused
        raise UserError("int8", f"a quantised file with {found}", f"{least:.1%} in the same order",
                        "say int8=null, or a lower int8_agreement")  # fmt: skip
    return found


def _batches(pairs: Sequence[Pair]) -> list[Sequence[Pair]]:
    return [pairs[start : start + _BATCH] for start in range(0, len(pairs), _BATCH)]
