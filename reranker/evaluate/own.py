"""The two systems that are always this framework's: the fine-tuned model, and the one that it started from.

In: the settings, what scores depend on here, and the digests of the models. Out: `System`s.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from reranker.config.models import EvaluateConfig
from reranker.evaluate.fingerprint import scored_by
from reranker.evaluate.systems import BASE, TUNED, ModelSystem, System
from reranker.model.reranker import Reranker

_KEYS = {BASE: "base", TUNED: "model"}
"""The key of the settings that names a system's model."""


def own_systems(
    config: EvaluateConfig, device: str, environment: Mapping[str, str], inputs: Mapping[str, Mapping[str, Any]]
) -> list[System]:
    """Those that the settings name, in the order of their rows. `device` is this rank's, by torch's name."""
    return [
        ModelSystem(
            name, partial(_load, config, device, key),
            {"environment": dict(environment), "files": inputs[key]["sha256"], "scored": scored_by(config)},
        )
        for name, key in _KEYS.items() if getattr(config, key) is not None
    ]  # fmt: skip


def _load(config: EvaluateConfig, device: str, key: str) -> Reranker:
    path = getattr(config, key)
    reranker = Reranker(
        path, device=device, precision=config.precision.value, max_length=config.max_length,
        batch_tokens=config.batch_tokens, packing=config.packing.value, untrained_head=key == "base", key=key,
        long=config.long.value, window_overlap=config.window_overlap, window_best=config.window_best,
    )  # fmt: skip
    if reranker.fresh_head:
        print(f"note: base={path} has no score head; its row is that of a randomly drawn one", file=sys.stderr)
    return reranker
