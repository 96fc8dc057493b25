"""Our training on more ranks: measured on this machine's, computed for as many GPUs as it does not have.

Measured: the real product under torchrun, the same 32 groups a step, on 1 and on 2 ranks of as many threads each.

Computed, on paper, from the measured seconds of a step on one rank, for n ranks like it at ZeRO 1:

    seconds(n) = seconds(1) x busiest(n)  +  sent(n) / bandwidth
    sent(n)    = (2 x 4 + weight) x parameters x (n - 1) / n                  bytes that each rank sends in a step

`busiest(n)` is the share of the step's tokens on the rank that waits for no other, from the product's own plan: 1 / n
if all had the same. In one step DeepSpeed reduces the gradients once, in float32, by an all-reduce (a ring sends
them twice), and gathers the updated weights once, `weight` bytes each. Nothing of this overlaps with the arithmetic
(overlap_comm is off), and latency is left out. Bandwidth is assumed, the nominal one of a rank in one direction: for
GPUs that of NVLink 4 in a node of 8, and of a 400 Gb/s adapter for each GPU across nodes; for machines without any,
25 Gb/s. `strong` keeps 32 groups a step, of which 64 ranks get none or one each; `weak` has 32 groups a rank.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tests.benchmarks.training_inputs import GROUPS, PASSAGES, product_job

BANDWIDTH = {"cuda": {8: 450e9, 64: 50e9}, "cpu": {8: 3.125e9, 64: 3.125e9}}
"""Bytes per second that a rank sends at most, of 8 or 64 ranks."""


def computed(
    work: Path, seconds: float, tokens: int, precision: str, device: str, world: int, steps: int
) -> dict[str, Any]:
    """The figures of `world` ranks, where one needs `seconds` for a step in micro-batches of `tokens` tokens."""
    parameters = parameter_count(work)
    sent = (2 * 4 + (4 if precision == "fp32" or device == "cpu" else 2)) * parameters * (world - 1) / world
    bandwidth = BANDWIDTH[device][world]
    share = busiest(work, tokens, precision, device, world, steps)
    strong, weak = seconds * share + sent / bandwidth, seconds + sent / bandwidth
    return {
        "kind": "computed", "world": world, "seconds_of_one_rank": seconds, "parameters": parameters,
        "sent_bytes": sent, "bandwidth_bytes_per_second": bandwidth, "busiest_share": share,
        "strong": {"seconds": strong, "pairs_per_second": GROUPS * PASSAGES / strong,
                   "efficiency": seconds / (world * strong)},
        "weak": {"seconds": weak, "pairs_per_second": world * GROUPS * PASSAGES / weak, "efficiency": seconds / weak},
    }  # fmt: skip


def busiest(work: Path, tokens: int, precision: str, device: str, world: int, steps: int) -> float:
    """Share of a step's tokens for which the other ranks wait, by the product's own plan; mean over the steps."""
    from reranker.config.common import BatchPolicy
    from reranker.train.job import count_lengths, make_step

    lengths = [sum(pairs) for pairs in json.loads((work / "lengths.json").read_text("utf-8"))]
    job = product_job(work, device, precision, world, policy=BatchPolicy.tokens, tokens=tokens)
    count_lengths(job)
    shares = []
    for step in range(steps):
        planned = make_step(job, 0, step)
        waited_for = sum(max(sum(lengths[at] for at in slot) for slot in row) for row in planned.slots)
        shares.append(waited_for / sum(lengths[at] for at in planned.positions))
    return sum(shares) / len(shares)


def parameter_count(work: Path) -> int:
    from safetensors import safe_open

    with safe_open(work / "model" / "model.safetensors", "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
