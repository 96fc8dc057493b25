"""How much arithmetic a training step is, and how fast this machine multiplies matrices.

    python tests/benchmarks/arithmetic.py device=cpu work=DIR

A step's floating-point operations, forward and backward, of its useful tokens alone:

    6 x parameters x tokens  +  12 x layers x hidden x (sum over the pairs of tokens squared)

where `parameters` are those of the encoder's matrix products, layers x (4 hidden^2 + 2 hidden x intermediate): two
operations for each parameter and token in the forward and twice that in the backward; attention has two products of
2 x hidden x tokens^2 in each layer's forward, and again twice that behind. Embeddings, head and optimizer do not
count. Divided by the seconds of the step and by the rate of a plain matrix product of the model's own sizes on the
same machine in the same precision, this is the share of the arithmetic that the machine is capable of.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.record import command_line

DTYPES = ("float32", "bfloat16", "float16")


def step_flops(config: dict[str, Any], lengths: Iterable[int]) -> float:
    """Operations of a forward and backward over pairs of these lengths; `config` is the model's config.json.

    Those that the scores need: behind the last layer's keys and values only the first token of each pair.
    """
    hidden, before, counts = config["hidden_size"], config["num_hidden_layers"] - 1, list(lengths)
    rest = hidden**2 + 2 * hidden * config["intermediate_size"]
    of_tokens = 6 * (before * (3 * hidden**2 + rest) + 3 * hidden**2) * sum(counts) + 6 * rest * len(counts)
    return of_tokens + 12 * hidden * (before * sum(count**2 for count in counts) + sum(counts))


def product_rates(config: dict[str, Any], device: str) -> dict[str, float]:
    """GFLOP/s of tokens x hidden x intermediate for 4,096 and 512 tokens, best of 5 times a quarter second.

    Those types alone that the device multiplies itself: a product of bfloat16 takes seconds on a processor without.
    """
    import torch

    from reranker.train.distributed import multiplies_bf16

    found = {}
    for name in DTYPES:
        if device == "cpu" and (name == "float16" or (name == "bfloat16" and not multiplies_bf16())):
            continue
        for tokens in (4096, 512):
            shape = (tokens, config["hidden_size"], config["intermediate_size"])
            left = torch.randn(shape[:2], device=device, dtype=getattr(torch, name))
            right = torch.randn(shape[1:], device=device, dtype=getattr(torch, name))
            best = max(_products_per_second(left, right) for _ in range(5))
            found[f"{name} {'x'.join(map(str, shape))}"] = round(best * 2 * shape[0] * shape[1] * shape[2] / 1e9, 1)
    return found


def _products_per_second(left: Any, right: Any) -> float:
    import torch

    def wait() -> None:
        if left.device.type == "cuda":
            torch.cuda.synchronize()

    left @ right
    wait()
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < 0.25:
        for _ in range(10):
            left @ right
        wait()
        done += 10
    return done / (time.perf_counter() - begun)


if __name__ == "__main__":
    settings = command_line(sys.argv[1:])
    model = json.loads((Path(settings["work"]) / "model" / "config.json").read_text("utf-8"))
    print(json.dumps(product_rates(model, settings["device"])))
