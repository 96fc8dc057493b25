"""What DeepSpeed's engine costs: the same step with the same model function, in plain PyTorch and in `Engine`.

    python tests/benchmarks/engine_overhead.py micro_batches=1 precision=fp32 repeats=5 device=cpu work=DIR

One process, one rank, ZeRO 1, the product's own micro-batches (packed where the model can be), 32 groups in
`micro_batches` of them, made before the clock starts. Plain is the same fused AdamW with the same parameter groups, clipped; in
bf16 it is autocast over float32 weights, which is what one writes in PyTorch. Both take turns, one step each.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from reranker.checks import Arithmetic
from reranker.config.common import Device, Precision
from reranker.config.training import OptimConfig, PrecisionConfig
from reranker.data.collate import MicroBatch
from reranker.model.cross_encoder import load_model, score
from reranker.model.losses import listwise_cross_entropy
from reranker.model.unpad import pack
from reranker.train.distributed import join, leave
from reranker.train.engine import Engine, forget_groups, parameter_groups
from reranker.train.job import batches
from tests.benchmarks.record import SEED, command_line
from tests.benchmarks.training_inputs import CLIP, GROUPS, LR, WEIGHT_DECAY, product_job

Step = Callable[[Sequence[MicroBatch]], None]


def main() -> None:
    settings = command_line(sys.argv[1:])
    work, precision, device = Path(settings["work"]), settings["precision"], settings["device"]
    repeats, count = int(settings["repeats"]), int(settings["micro_batches"])
    ranks = join(Device[device], 600.0)
    job = product_job(work, device, precision, per_gpu=GROUPS // count)
    contestants = {
        "plain": plain(fresh_model(work, job), precision, ranks.device),
        "ours": ours(fresh_model(work, job), precision, ranks.device),
    }
    steps = [
        [batch.to(ranks.device) for batch in taken.micro_batches]
        for taken in itertools.islice(batches(job, job.start, ranks), repeats + 1)
    ]
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number, step in enumerate(steps):
        for name in sorted(contestants, reverse=number % 2 == 1):
            begun = time.perf_counter()
            contestants[name](step)
            if device == "cuda":
                torch.cuda.synchronize()
            found[name].append(time.perf_counter() - begun)
    print(json.dumps({name: seconds[1:] for name, seconds in found.items()} | {"packed": job.packed}))
    forget_groups()
    leave()


def fresh_model(work: Path, job: Any) -> Any:
    model, _ = load_model(str(work / "model"), seed=SEED)
    if job.packed:
        pack(model)
    return model


def loss_of(scores_GP: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    return listwise_cross_entropy(scores_GP, batch.present_GP, batch.weight_G) / GROUPS


def plain(model: Any, precision: str, device: torch.device) -> Step:
    model.to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LR, fused=True)

    def step(micro_batches: Sequence[MicroBatch]) -> None:
        for batch in micro_batches:
            low = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
            with low:
                loss = loss_of(score(model, batch), batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(model: Any, precision: str, device: torch.device) -> Step:
    engine = Engine(
        model, optim=OptimConfig(lr=LR, weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP),
        arithmetic=Arithmetic(Precision[precision], precision == "bf16" and device.type == "cpu", 1), scaling=PrecisionConfig(), offload=False, reduce_bucket_size=None,
        device=device, timeout=600.0,
    )  # fmt: skip
    engine.train()

    def step(micro_batches: Sequence[MicroBatch]) -> None:
        for batch in micro_batches:
            engine.backward(loss_of(engine.score(batch), batch))
        engine.step(LR)

    return step


if __name__ == "__main__":
    main()
