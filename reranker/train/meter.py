"""Counts of a rank between two records -> the metrics of all ranks: loss, speed, waste.

Counting asks the device for nothing. A record costs one collective and one read from the device, in which the
gradient's norm comes along.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from reranker.data.collate import MicroBatch, PackedPairs
from reranker.model.chunks import cost
from reranker.model.losses import Objective
from reranker.train.distributed import Ranks
from reranker.train.flops import ModelFlops, peak_flops

if TYPE_CHECKING:  # deepspeed takes seconds to import: the engine is made when everything else is in order
    from reranker.train.engine import StepOutcome

GIB = 2**30


@dataclass
class Meter:
    """Counts of this rank since the last record.

    Attributes:
        packed: whether the forward computes the tokens of pairs alone.
        flops: the model's arithmetic, where it is known.
        objective: the loss, where it is more than a softmax of labels: `chance` is not its loss of equal scores then.
    """

    device: torch.device
    packed: bool
    flops: ModelFlops | None
    objective: Objective | None = None
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0
    skipped: int = 0
    loss: torch.Tensor = field(init=False)
    spread: torch.Tensor = field(init=False)
    equal: torch.Tensor = field(init=False)
    teacher: torch.Tensor = field(init=False)
    chance: float = 0.0
    groups: int = 0
    pairs: int = 0
    tokens: int = 0
    squares: int = 0
    computed: int = 0
    bad: int = 0

    def __post_init__(self) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.spread, self.equal, self.teacher = (torch.zeros_like(self.loss) for _ in range(3))

    def count(
        self, batch: MicroBatch, on_device: MicroBatch, chunks: Sequence[PackedPairs], scores_GP: torch.Tensor,
        loss: torch.Tensor,
    ) -> None:  # fmt: skip
        """A micro-batch, in this machine's memory and on the device, its chunks, its scores and its loss."""
        self.loss += loss.detach()
        self.spread += score_spread(scores_GP.detach(), on_device.present_GP, on_device.weight_G)
        if self.objective is not None:
            self.equal += self.objective.of_equal_scores(scores_GP.detach(), on_device)
            if self.objective.learns_from_teacher:
                wanted_GP = on_device.teacher_GP / self.objective.temperature
                known_GP = on_device.present_GP & ~wanted_GP.isnan()
                self.teacher += score_spread(wanted_GP, known_GP, on_device.weight_G)
        beside_G = (batch.present_GP & ~batch.positive_GP).sum(1)  # what a positive is to be told from
        self.chance += float(((beside_G + 1).log() * batch.weight_G).sum())
        self.pairs += batch.pairs
        self.bad += len(batch.bad)
        self.tokens += batch.tokens
        self.squares += int(batch.packed.cu_seqlens.diff().long().square().sum())
        self.computed += sum(cost(chunk, self.packed) for chunk in chunks)

    def record(self, ranks: Ranks, outcome: StepOutcome, rate: float, epoch: float) -> dict[str, Any]:
        """The metrics of all ranks since the last record; a collective call.

        `train/chance_loss` is the cross-entropy of a guess among a positive and the negatives; `train/score_spread` the
        standard deviation of a group's scores, on average: near zero for a model that gives all the same. Beside a
        softmax of labels, `train/equal_loss` is what the loss of the same groups would be if it did, and
        `train/teacher_spread` the standard deviation of a teacher's scores in the loss; of a group without two, zero.
        `speed/mfu`, on GPUs of a known kind, is the model FLOPs of the useful tokens (`flops.ModelFlops.of`) in a
        second, divided by what the GPUs could do in 16 bits; `speed/model_tflops` is the same without the division.
        Both count everything that a step takes: waiting for data, the optimizer, communication.
        """
        counts = [self.pairs, self.tokens, self.squares, self.computed, self.bad, self.waited, self.chance]
        sums = torch.stack([self.loss, self.spread, self.equal, self.teacher])
        sums = torch.cat([sums, torch.tensor(counts, dtype=torch.float64).to(self.device)])
        dist.all_reduce(sums)
        norm = torch.as_tensor(0.0 if outcome.grad_norm is None else outcome.grad_norm, dtype=torch.float64)
        *values, norm_ = torch.cat([sums, norm.to(self.device).view(1)]).tolist()  # the device is done with the step
        seconds = time.perf_counter() - self.started
        loss, spread, equal, teacher, pairs, tokens, squares, computed, bad, waited, chance = values
        groups = max(1, self.groups - int(bad))
        metrics = {
            "epoch": round(epoch, 6),
            "train/loss": loss / groups,
            "train/chance_loss": chance / groups,
            "train/score_spread": spread / groups,
            "train/learning_rate": rate,
            "train/grad_norm": None if outcome.grad_norm is None else norm_,
            "train/loss_scale": outcome.loss_scale,
            "train/skipped": self.skipped,
            "speed/pairs_per_second": pairs / seconds,
            "speed/tokens_per_second": tokens / seconds,
            "data/useful_token_share": tokens / computed,
            "data/wait_share": waited / seconds / ranks.world,
            "data/bad_groups": int(bad),
            "system/step_seconds": seconds / self.steps,
            "system/peak_memory_gib": peak_memory(self.device) / GIB,
        }
        if self.objective is not None:
            metrics["train/equal_loss"] = equal / groups
            if self.objective.learns_from_teacher:
                metrics["train/teacher_spread"] = teacher / groups
        if self.flops is not None:
            rate_of_flops = self.flops.of(int(tokens), int(squares), int(pairs)) / seconds
            metrics["speed/model_tflops"] = rate_of_flops / 1e12
            if (share := utilisation(rate_of_flops, ranks.world, self.device)) is not None:
                metrics["speed/mfu"] = share
        return metrics


def utilisation(flops: float, world: int, device: torch.device) -> float | None:
    """Model FLOPs a second of all ranks as a share of what their GPUs could do in 16 bits; None of an unknown kind."""
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else flops / world / peak


def score_spread(scores_GP: torch.Tensor, present_GP: torch.Tensor, weight_G: torch.Tensor) -> torch.Tensor:
    """Sum over groups of the standard deviation of the scores of their passages, on the scores' device."""
    scores_GP = torch.where(present_GP, scores_GP.double(), 0.0)
    count_G = present_GP.sum(1).clamp(min=1)
    mean_G = scores_GP.sum(1) / count_G
    squares_GP = torch.where(present_GP, (scores_GP - mean_G[:, None]) ** 2, 0.0)
    spread_G = (squares_GP.sum(1) / count_G).sqrt()
    return torch.where(weight_G > 0, spread_G, torch.zeros_like(spread_G)).sum()


def peak_memory(device: torch.device) -> int:
    """Bytes that this rank has taken at most: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kib = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kib
