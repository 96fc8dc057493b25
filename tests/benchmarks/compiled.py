"""What `torch.compile` would do for a training's forward and backward: the same micro-batches with it and without.

    python tests/benchmarks/compiled.py precision=fp32 tokens=4096 repeats=5 device=cpu work=DIR [ways=parts,whole]

One process, no engine, the product's own micro-batches of at most `tokens` tokens, packed where the model can be. These
ways take turns, a step each:

    eager  as training does it
    parts  of each layer what is between the products and attention: bias and GELU, residual and LayerNorm
    whole  the whole forward, with breaks where attention reads the lengths of the pairs

`first` is the first step of each, compilation included. Shapes change from one micro-batch to the next, as in training,
so they are symbolic. The loss and the norm of the gradient are compared, and must agree in float32. With `whole` this did not end within twelve minutes on two cores, so
`training.py` asks for `parts` alone. It needs a C++ compiler on a CPU, Triton on a GPU.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn.utils import get_total_norm

from reranker.config.common import BatchPolicy
from reranker.data.collate import MicroBatch
from reranker.model.cross_encoder import score
from reranker.train.distributed import Ranks
from reranker.train.job import batches, count_lengths
from tests.benchmarks.engine_overhead import fresh_model, loss_of
from tests.benchmarks.record import command_line
from tests.benchmarks.training_inputs import product_job

TOLERANCE = 1e-4
"""Of a step's loss, and of its gradient's norm as a share of it."""


def main() -> None:
    settings = {"ways": "parts,whole", **command_line(sys.argv[1:])}
    work, precision, device = Path(settings["work"]), settings["precision"], torch.device(settings["device"])
    repeats = int(settings["repeats"])
    job = product_job(work, device.type, precision, policy=BatchPolicy.tokens, tokens=int(settings["tokens"]))
    count_lengths(job)
    models = {
        name: compiled(fresh_model(work, job).to(device).train(), name)
        for name in ("eager", *settings["ways"].split(","))
    }
    steps = [
        [batch.to(device) for batch in taken.micro_batches]
        for taken in itertools.islice(batches(job, job.start, Ranks(0, 1, device, None)), repeats + 1)
    ]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    losses: dict[str, list[float]] = {name: [] for name in models}
    norms: dict[str, list[float]] = {name: [] for name in models}
    for number, step in enumerate(steps):
        for name in sorted(models, reverse=number % 2 == 1):
            begun = time.perf_counter()
            losses[name].append(train(models[name], step, precision, device))
            seconds[name].append(time.perf_counter() - begun)
            gradients = [one.grad for one in models[name].parameters() if one.grad is not None]
            norms[name].append(float(get_total_norm(gradients)))
    differences = {
        "loss": {name: max(abs(a - b) for a, b in zip(losses["eager"], found, strict=True)) for name, found in losses.items()},
        "gradient_norm": {name: max(abs(b / a - 1) for a, b in zip(norms["eager"], found, strict=True)) for name, found in norms.items()},
    }  # fmt: skip
    agree = all(value <= TOLERANCE for found in differences.values() for value in found.values())
    if precision == "fp32" and not agree:
        raise SystemExit(f"float32, expected differences of {TOLERANCE} at most: {differences}")
    print(json.dumps({
        "seconds": {name: found[1:] for name, found in seconds.items()},
        "first": {name: found[0] for name, found in seconds.items()}, "packed": job.packed,
        "pairs": [sum(int(batch.present_GP.sum()) for batch in step) for step in steps[1:]],
        **{f"largest_difference_of_a_{of}": found for of, found in differences.items()},
    }))  # fmt: skip


def compiled(model: Any, how: str) -> Any:
    if how == "whole":
        model.compile(dynamic=True)
    if how == "parts":
        for layer in model.base_model.encoder.layer:
            for part in (layer.attention.output, layer.intermediate, layer.output):
                part.compile(dynamic=True)
    return model


def train(model: Any, step: Sequence[MicroBatch], precision: str, device: torch.device) -> float:
    """Forward and backward of a step's micro-batches; the step's loss."""
    model.zero_grad(set_to_none=True)
    losses = []
    for batch in step:
        low = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
        with low:
            loss = loss_of(score(model, batch), batch)
        loss.backward()
        losses.append(loss.detach())
    return float(torch.stack(losses).sum())  # which waits for the device


if __name__ == "__main__":
    main()
