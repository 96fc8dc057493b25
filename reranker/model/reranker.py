"""A trained reranker at work: query and passages -> raw scores, probabilities, an order.

In: the directory or hub name of a one-score sequence classifier; texts. Out: logits in float32, in the order
of the passages. The pairs are made and cut by the contract in the model's config.json, as in training; on request a
passage that is too long for a pair is scored window by window instead of being cut (`data/windows.py`).
Batching changes nothing but rounding. A score that is not finite is an error, never a rank.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reranker.config.common import Precision
from reranker.data.collate import pack_pairs
from reranker.data.tokenize import Contract, Pair, PairTokenizer
from reranker.data.windows import windows_of
from reranker.errors import UserError, shorten
from reranker.model.cross_encoder import autocast, load_model, load_tokenizer, positions, score_pairs
from reranker.model.unpad import is_packed, pack, resolve_packing
from reranker.model.windows import PORTION, Layout, Long, sizes_of

DTYPES = {Precision.fp16: torch.float16, Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}
CHARACTERS = 1 << 25
"""Of the passages of a portion, where they are not cut: several times what so many whole passages of one pair have."""


@dataclass(frozen=True)
class Ranked:
    """One passage in its place.

    Attributes:
        index: its place in the list that was given.
        passage: its text.
        score: the raw score.
        probability: the score exp-normalised over the query's passages.
    """

    index: int
    passage: str
    score: float
    probability: float


class Reranker:
    """A cross-encoder that scores passages for a query.

    Args:
        path: directory or hub name.
        device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:1".
        precision: "auto" (fp16 on a GPU, fp32 on a CPU), "fp32", "fp16" or "bf16": all weights have it.
        max_length: tokens of a pair at most; None: what the model was trained with.
        batch_tokens: tokens of a forward batch at most, padding included where there is any; one pair always fits.
        packing: "auto" (no padding where the model can do without), "packed" or "padded".
        untrained_head: accept a checkpoint without a score head, and draw one.
        key: what errors call the model.
        long: what becomes of a passage that is too long for a pair: "truncate" cuts it as training did, "windows"
            scores windows of it, each with the query, that cover all of it; its score is that of the best one.
        window_overlap: tokens that neighbouring windows share, half of a window at most.
        window_best: the score is the mean of the so many best windows.

    Raises UserError for a model that cannot be loaded or has no trained head, and for settings that
    the device or the model cannot meet.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        max_length: int | None = None,
        batch_tokens: int = 4096,
        packing: str = "auto",
        untrained_head: bool = False,
        key: str = "model",
        long: str = "truncate",
        window_overlap: int = 64,
        window_best: int = 1,
    ) -> None:
        if batch_tokens < 1:
            raise UserError("batch_tokens", str(batch_tokens), "1 or more", "change the value")
        self.long = Long(long, window_overlap, window_best)
        self.path, self.batch_tokens = str(path), batch_tokens
        self.device, self.precision = device_and_precision(device, precision)
        model, self.fresh_head = load_model(self.path, dtype=DTYPES[self.precision], key=key)
        if self.fresh_head and not untrained_head:
            raise UserError(key, f"{path}, an encoder without a score head", "a trained reranker",
                            "train it first, or name an exported model")  # fmt: skip
        self.model = model.to(self.device).eval()
        packed, _ = resolve_packing(packing, model.config, self.device, DTYPES[self.precision], key="packing")
        if packed:
            pack(self.model)
        self.contract = contract_of(model.config, max_length)
        self.tokenizer = PairTokenizer(load_tokenizer(self.path, key=key), self.contract)

    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        """The raw score (logit) of each passage."""
        if isinstance(passages, str):
            # A string is a sequence too: each of its characters would get a score.
            raise UserError("passages", f"a string {shorten(passages)}", "a list of strings", "write [passage]")
        return [float(score) for score in self.score_pairs([(query, passage) for passage in passages])]

    def rerank(self, query: str, passages: Sequence[str]) -> list[Ranked]:
        """The passages, best first; among equals the earlier one."""
        scores = self.score(query, passages)
        ranked = zip(range(len(passages)), passages, scores, normalize(scores), strict=True)
        return sorted((Ranked(*entry) for entry in ranked), key=lambda entry: (-entry.score, entry.index))

    def score_pairs(
        self, pairs: Sequence[tuple[str, str]], progress: bool | Callable[[int], object] = False
    ) -> np.ndarray:
        """scores_N (float32) of N (query, passage) pairs, in their order.

        `progress` shows a bar on standard error, or is called with the number of pairs of each finished
        batch. Raises UserError for a score that is not finite.
        """
        scores_N = np.empty(len(pairs), dtype=np.float32)
        with _progress(progress, len(pairs)) as advance:
            for start, end in self.portions(pairs):
                windows = self.windows(pairs[start:end])
                layout = Layout(sizes_of(windows))
                values_W = np.empty(len(layout.lengths), dtype=np.float32)
                for batch in self.batches(layout.lengths):
                    values_W[batch] = self.forward(layout.pick(windows, batch))
                    advance(layout.begun(batch))
                scores_N[start:end] = layout.scores(values_W, self.long.best)
        refuse_lost(self.path, scores_N, pairs)
        return scores_N

    def portions(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, int]]:
        """(first, behind the last) of the pairs that are tokenized and sorted by length together."""
        start = characters = 0
        for place, (_, passage) in enumerate(pairs):
            characters += len(passage)
            full = place - start == PORTION or (self.long.windows and characters > CHARACTERS)
            if full and place > start:
                yield start, place
                start, characters = place, len(passage)
        if start < len(pairs):
            yield start, len(pairs)

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of pairs of these lengths in the batches that they are scored in."""
        return batches_by_tokens(lengths, self.batch_tokens, is_packed(self.model.config))

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """The tokens of each pair."""
        return encode_pairs(self.tokenizer, pairs)

    def windows(self, pairs: Sequence[tuple[str, str]]) -> list[Sequence[Pair]]:
        """What is scored of each pair: the pair itself or, with long="windows", as many as its passage takes."""
        if not self.long.windows:
            return [(pair,) for pair in self.encode(pairs)]
        return [
            of_passage
            for query, same in itertools.groupby(pairs, key=lambda pair: pair[0])
            for of_passage in windows_of(self.tokenizer, query, [text for _, text in same], self.long.overlap)
        ]

    @torch.inference_mode()
    def forward(self, batch: Sequence[Pair]) -> np.ndarray:
        """scores_N (float32) of one batch."""
        pairs = pack_pairs(batch, self.tokenizer.pad_id).to(self.device)
        scores_N: np.ndarray = score_pairs(self.model, pairs).float().cpu().numpy()
        return scores_N


def encode_pairs(tokenizer: PairTokenizer, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """The tokens of each pair."""
    # Neighbours mostly share their query: it is tokenized once for all of them.
    return [
        encoded
        for query, same in itertools.groupby(pairs, key=lambda pair: pair[0])
        for encoded in tokenizer.encode(query, [passage for _, passage in same])
    ]


def refuse_lost(path: str, scores_N: np.ndarray, pairs: Sequence[tuple[str, str]]) -> None:
    """Raise UserError, about the model `path`, for a score that is not finite."""
    bad = np.flatnonzero(~np.isfinite(scores_N))
    if len(bad):
        raise UserError(path, f"{len(bad)} scores that are not finite, the first for {shorten(pairs[bad[0]])}",
                        "numbers", "score with precision=fp32, and check the weights if they stay")  # fmt: skip


def normalize(scores: Sequence[float] | np.ndarray) -> list[float]:
    """The scores of one query's passages as probabilities that sum to 1: exp(s) / sum of exp (softmax)."""
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        return []
    powers = np.exp(values - values.max())  # the largest is exp(0): nothing overflows
    return [float(share) for share in powers / powers.sum()]


def batches_by_tokens(lengths: Sequence[int], limit: int, packed: bool) -> list[list[int]]:
    """Indices of pairs in batches of at most `limit` tokens, padding included unless packed; longest first.

    A pair longer than the limit is a batch of its own. Longest first: what does not fit in memory
    fails at once and not at the end.
    """
    batches: list[list[int]] = []
    taken = longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        after = taken + lengths[index] if packed else (len(batches[-1]) + 1) * longest if batches else 0
        if not batches or after > limit:
            batches.append([])
            taken, longest = 0, lengths[index]
        batches[-1].append(index)
        taken += lengths[index]
    return batches


def as_in_training(model: Any, precision: Precision, by_autocast: bool, device: torch.device) -> Any:
    """A model in float32, from now on on this device and computing as a training does (`checks.Arithmetic`)."""
    model.to(device)
    if by_autocast:
        autocast(model, device, DTYPES[precision])
        return model
    for parameter in model.parameters():  # not the buffers: DeepSpeed leaves rotary frequencies in float32
        parameter.data = parameter.data.to(DTYPES[precision])
    return model


def device_and_precision(device: str, precision: str) -> tuple[torch.device, Precision]:
    """What is meant by the settings of these names on this machine; the precision is never auto.

    Raises UserError for what the machine cannot do.
    """
    found = _device(device)
    if precision not in Precision.__members__:
        raise UserError("precision", precision, "one of " + ", ".join(Precision.__members__), "change the value")
    meant = Precision[precision]
    if meant is Precision.auto:
        meant = Precision.fp16 if found.type == "cuda" else Precision.fp32
    if meant is Precision.fp16 and found.type == "cpu":
        raise UserError("precision", "fp16 on a CPU", "fp32, bf16 or auto", "say precision=fp32")
    return found, meant


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("device", f"{name}, but no GPU that torch can use", "cpu or auto", "say device=auto")
    return torch.device(name)


def contract_of(config: Any, max_length: int | None = None, key: str = "max_length") -> Contract:
    """The model's own contract, or one of `max_length`, no longer than the model has positions for."""
    limit = positions(config)
    if max_length is not None and not 8 <= max_length <= (limit or max_length):
        most = f" and at most {limit}, the model's positions" if limit else ""
        raise UserError(key, str(max_length), f"8 or more{most}", "change the value")
    contract = Contract.of_model(config, max_length)
    return Contract.of_model(config, limit) if limit and contract.max_length > limit else contract


@contextlib.contextmanager
def _progress(progress: bool | Callable[[int], object], total: int) -> Iterator[Callable[[int], object]]:
    if callable(progress):
        yield progress
    elif progress:
        from reranker.progress import progress_bar

        with progress_bar(total=total, unit=" pairs", desc="scoring") as bar:
            yield bar.update
    else:
        yield lambda done: None
