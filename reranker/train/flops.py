"""Arithmetic of a cross-encoder: how much a micro-batch needs, how much a device could do.

Model FLOPs are what the mathematics needs for the tokens of real pairs, whatever was computed beside: padding and
recomputed activations do not count (Chowdhery et al., 2022, "PaLM", appendix B: model FLOPs utilisation).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from reranker.model.unpad import MODEL_TYPES

PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H800 PCIe": 756e12, "H200": 989e12, "H100": 989e12, "H800": 989e12,
    "GH200": 989e12, "A100": 312e12, "A800": 312e12, "B200": 2250e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12,
    "A40": 150e12, "A30": 165e12, "A10G": 70e12, "A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip
"""Dense 16-bit FLOP/s with float32 accumulation, by the makers' data sheets; the first in a device's name counts."""


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of one forward and backward.

    Attributes:
        per_token: 6 for each weight of the matrices that every token meets (2 forward, 4 backward), and what the first
            tokens' attention takes of the last layer, 12 x hidden size.
        per_square: 12 x (layers - 1) x hidden size, for each square of a pair's length: attention's two products.
        per_pair: 6 for each weight of the matrices that one token of a pair meets: those of the score head, and of the
            last layer those behind its attention, as nothing reads its other tokens.
    """

    per_token: float
    per_square: float
    per_pair: float

    def of(self, tokens: int, squares: int, pairs: int) -> float:
        """FLOPs for `tokens` tokens in `pairs` pairs, the squares of whose lengths add up to `squares`."""
        return self.per_token * tokens + self.per_square * squares + self.per_pair * pairs


def model_flops(model: nn.Module) -> ModelFlops | None:
    """Of a stock encoder of the kinds that run packed; None for another, whose attention may be another."""
    config: Any = model.config
    if config.model_type not in MODEL_TYPES:
        return None
    body: Any = model.base_model
    pooler = getattr(body, "pooler", None)  # BERT's, which sees one token of a pair as the head does
    last = body.encoder.layer[-1]
    of_first_tokens = _weights(last) - _weights(last.attention.self) + (_weights(pooler) if pooler is not None else 0)
    inside, squares = _weights(body) - of_first_tokens, 12.0 * config.hidden_size
    return ModelFlops(
        6.0 * inside + squares, squares * (config.num_hidden_layers - 1), 6.0 * (_weights(model) - inside)
    )


def peak_flops(device_name: str) -> float | None:
    """What a GPU of this name can do at best in 16 bits; None where it is not known."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)


def _weights(part: Any) -> int:
    return sum(module.weight.numel() for module in part.modules() if isinstance(module, nn.Linear))
