"""Other libraries' cross-encoders as systems: sentence-transformers' CrossEncoder and FlagEmbedding's FlagReranker.

In: a model and the library's own settings. Out: its scores as the library gives them. The library cuts, pads and scores
by itself; what it is called with is decided here, and does not depend on the number of ranks: pairs sorted by their
characters, in batches of `batch_size` (of FlagReranker a few batches at a time), and with the prefixes that a model of
ours says it was trained with, as its card has it. Raises UserError for a model that the library does not load, one
without a score head, and one that gives several numbers a pair.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reranker.config.common import Precision
from reranker.config.systems import Activation, CrossEncoderConfig, FlagConfig
from reranker.data.tokenize import Contract
from reranker.errors import UserError, shorten
from reranker.model.reranker import DTYPES
from reranker.model.windows import Whole
from reranker.progress import without_hub_bars

BATCHES = 8
"""Batches of a call of FlagReranker, which runs the first batch of each call twice, to see whether it fits."""


@dataclass(frozen=True)
class TextPair:
    """A query and a passage, as long as their characters: by these sentence-transformers sorts as well."""

    query: str
    passage: str

    def __len__(self) -> int:
        return len(self.query) + len(self.passage)


class _Library(Whole):
    """What both have in common."""

    path: str
    _together: int
    """Pairs of a call."""

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[TextPair]:
        """The pairs as they are."""
        return [TextPair(*pair) for pair in pairs]

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of pairs of these lengths, longest first, so many together as are scored in a call."""
        order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        return [order[start : start + self._together] for start in range(0, len(order), self._together)]


class CrossEncoderScorer(_Library):
    """sentence-transformers' CrossEncoder."""

    def __init__(self, config: CrossEncoderConfig, device: str, precision: Precision, max_length: int | None,
                 key: str) -> None:  # fmt: skip
        import torch

        with _refusals_told("sentence-transformers", config.model, device, key), without_hub_bars():
            from sentence_transformers import CrossEncoder

            self._encoder = CrossEncoder(
                config.model, device=device, max_length=max_length, model_kwargs={"dtype": DTYPES[precision]},
                activation_fn=torch.nn.Identity() if config.activation is Activation.raw else None,
                trust_remote_code=config.trust_remote_code,
            )  # fmt: skip
        self.path, self._together = config.model, config.batch_size
        # The query's stands in the files as the library's default prompt.
        self._passage_prefix = Contract.of_model(self._encoder.model.config).passage_prefix
        _refuse_unfit(self._encoder.model, self._encoder.tokenizer, self._encoder.num_labels, config.model, key)

    def forward(self, batch: Sequence[TextPair]) -> np.ndarray:
        """scores_N of one batch."""
        pairs = [(pair.query, self._passage_prefix + pair.passage) for pair in batch]
        with _failures_told("sentence-transformers", self.path):
            scores_N: np.ndarray = self._encoder.predict(pairs, batch_size=len(pairs), show_progress_bar=False)
        return scores_N


class FlagScorer(_Library):
    """FlagEmbedding's FlagReranker, of encoders."""

    def __init__(self, config: FlagConfig, device: str, precision: Precision, max_length: int | None,
                 key: str) -> None:  # fmt: skip
        length = {} if max_length is None else {"max_length": max_length}
        with _refusals_told("FlagEmbedding", config.model, device, key), without_hub_bars():
            from FlagEmbedding import FlagReranker

            self._reranker = FlagReranker(
                config.model, use_fp16=precision is Precision.fp16, devices=[device], batch_size=config.batch_size,
                query_max_length=config.query_max_length, normalize=config.normalize, trust_remote_code=False, **length,
            )  # fmt: skip
        if precision is Precision.fp32:
            self._reranker.model.float()  # transformers 5 keeps the type of the files, which may be another
        self.path, self._together = config.model, config.batch_size * BATCHES
        model = self._reranker.model
        contract = Contract.of_model(model.config)
        self._reranker.query_instruction_for_rerank = contract.query_prefix or None
        self._reranker.passage_instruction_for_rerank = contract.passage_prefix or None
        _refuse_unfit(model, self._reranker.tokenizer, model.config.num_labels, config.model, key)

    def forward(self, batch: Sequence[TextPair]) -> np.ndarray:
        """scores_N of a few batches."""
        pairs = [(pair.query, pair.passage) for pair in batch]
        # Each call would show bars of its own.
        with _failures_told("FlagEmbedding", self.path), contextlib.redirect_stderr(io.StringIO()):
            return np.array(self._reranker.compute_score(pairs))


def _refuse_unfit(model: Any, tokenizer: Any, labels: int, name: str, key: str) -> None:
    """Raise UserError for a classifier of several classes, a score head drawn just now and a tokenizer without pieces.

    transformers draws the one for an encoder, and makes the other without files, and these libraries score with them.
    """
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(f"{key}.model", f"{name} without the files of its tokenizer", "a tokenizer.json beside the "
                        "weights", "save the tokenizer there as well")  # fmt: skip
    if labels != 1:
        raise UserError(f"{key}.model", f"{name}, which gives {labels} numbers a pair", "a reranker, which gives one",
                        "name another model")  # fmt: skip
    saved = getattr(getattr(model, "config", None), "architectures", None) or []
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    if classifies and saved and not any(one.endswith("ForSequenceClassification") for one in saved):
        raise UserError(f"{key}.model", f"{name}, an encoder without a score head ({', '.join(saved)})",
                        "a trained reranker", "name another model")  # fmt: skip


@contextlib.contextmanager
def _refusals_told(library: str, name: str, device: str, key: str) -> Iterator[None]:
    """Raise a UserError where the library is not whole, or does not load the model."""
    from safetensors import SafetensorError  # no RuntimeError: weights cut short, for example

    # Both import deepspeed, which searches for an accelerator and writes of it to standard output.
    os.environ.setdefault("DS_ACCELERATOR", device.partition(":")[0])
    try:
        yield
    except ImportError as error:
        raise UserError(f"{key}.kind", f"{library}, which cannot be imported ({shorten(error, 160)})",
                        "a version that goes with the others", "see the extras of ko-reranker") from error  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        fix = "check the name and the network"
        if "trust_remote_code" in str(error):
            fix = "name another model, or let sentence-transformers run its code by trust_remote_code=true"
        raise UserError(f"{key}.model", f"{name}, which {library} does not load ({shorten(error, 160)})",
                        "a model of its kind", fix) from error  # fmt: skip


@contextlib.contextmanager
def _failures_told(library: str, name: str) -> Iterator[None]:
    """Raise a UserError where the library does not score: their errors have no class in common."""
    try:
        yield
    except Exception as error:
        raise UserError(name, f"pairs that {library} does not score ({shorten(error, 160)})", "scores",
                        "change max_length or batch_size") from error  # fmt: skip
