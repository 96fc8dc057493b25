"""The ONNX file in 8 bits: a quarter to half of the size, and how far its scores and its order are from the model's.

In: a model directory with its ONNX file, the model in float32, and groups by which the result is judged. Out:
onnx/model_quantized.onnx beside the other, under optimum's and transformers.js's name, and an `Agreement`. The weights
of the linear layers (each output by itself; a fused attention is one for query, key and value) and of the embedding
are int8; what goes into a layer is quantised while it runs (onnxruntime's dynamic quantisation). One bit of the weights
is given up: processors that lack VNNI overflow without it, and scores would depend on the machine. Where too few
passages keep their order so, the second product of each feed-forward layer stays in float32: its inputs, behind the
GELU, lie too far apart for 8 bits. Raises UserError where too few do even then.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reranker.data.collate import pack_pairs
from reranker.data.tokenize import Contract, Pair, PairTokenizer
from reranker.errors import UserError, shorten
from reranker.export.card_words import Words
from reranker.export.onnx import FILE, quietly
from reranker.groups import Group, read_groups
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
        whole: products of an 8-bit file that are in float32 all the same.
    """

    pairs: int
    largest: float
    mean: float
    deviation: float
    order: float
    best: float
    whole: int = 0

    def __str__(self) -> str:
        return Words("en")("usage.agreement", **asdict(self))


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


def read_judges(path: str) -> list[Group]:
    """The groups by which an 8-bit file is judged: the first 64 of a file. Raises UserError."""
    return list(itertools.islice(read_groups(path), GROUPS))


def write_int8(
    model: Any, tokenizer: Any, contract: Contract, directory: Path, groups: Sequence[Group], least: float
) -> Agreement:
    """Write the file beside the ONNX file of `directory`, and judge it by the passages of `groups`.

    Args:
        model: in float32, on the CPU and in eval mode.
        groups: of each the first 16 passages count.
        least: the share of two passages that must keep their order.

    Raises UserError below it, and where onnxruntime cannot quantise the model or run what came of it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    encoder = PairTokenizer(tokenizer, contract)
    encoded = [encoder.encode(group.prompted_query, [*group.pos, *group.neg][:PASSAGES]) for group in groups]
    path = directory / INT8_FILE
    with torch.inference_mode():
        expected = [np.concatenate([score_pairs(model, pack_pairs(batch, encoder.pad_id)).numpy()
                                    for batch in _batches(pairs)]) for pairs in encoded]  # fmt: skip
    for second_products in (False, True):
        with _refusals_told("a model that onnxruntime {} cannot quantise"), quietly():
            whole = _second_products(directory / FILE) if second_products else []
            if second_products and not whole:
                break  # it would be the same file again
            quantize_dynamic(directory / FILE, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
                             nodes_to_exclude=whole)  # fmt: skip
        with _refusals_told("a quantised file that onnxruntime {} cannot run"):
            session = session_of(path)
            scores = [np.concatenate([onnx_scores(session, batch, encoder.pad_id) for batch in _batches(pairs)])
                      for pairs in encoded]  # fmt: skip
        found = replace(agreement(expected, scores), whole=len(whole))
        if found.order >= least:  # never of NaN
            return found
    raise UserError("int8", f"a quantised file with {found}", f"{least:.1%} in the same order",
                    "say int8=null, or a lower int8_agreement")  # fmt: skip


def _second_products(path: Path) -> list[str]:
    """Names of the products of an ONNX file that make few numbers of many: those that end a feed-forward layer."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    products = [(node.name, shapes.get(node.input[1], ())) for node in graph.node if node.op_type == "MatMul"]
    return [name for name, shape in products if len(shape) == 2 and shape[0] > shape[1]]


@contextlib.contextmanager
def _refusals_told(found: str) -> Iterator[None]:
    """Raise a UserError, with the version in `found`, where the block fails: the errors have no class in common."""
    try:
        yield
    except Exception as error:
        raise UserError("int8", f"{found.format(version('onnxruntime'))} ({shorten(error, 160)})",
                        "a model that it can", "say int8=null") from error  # fmt: skip


def _batches(pairs: Sequence[Pair]) -> list[Sequence[Pair]]:
    return [pairs[start : start + _BATCH] for start in range(0, len(pairs), _BATCH)]
