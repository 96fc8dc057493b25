"""The metrics that a training logs: what each is, what it is drawn over, and which of its values stands for the run.

In: nothing, or the names of evaluation sets. Out: `METRICS`, one entry for each name that a record can hold, and
`of_sets`, those of the sets; W&B's defined metrics and the panels of `reranker dashboard` are made of both. Pure, and
without imports of ours. A test trains and compares: no metric is missing here, and none is here that is never logged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

STEP = "step"
"""Optimizer steps: what everything is drawn over. Checkpoints are named by them."""
EPOCH = "epoch"
"""Passes over the data: comparable where trainings have steps of different sizes."""
OF_GUARDS = "gate/*"
"""What is named by guard sets: their metric, what is lost of it, and p."""
EXAMPLES = "eval/examples"
"""The table of dev queries and their passages, ranked."""


@dataclass(frozen=True)
class Metric:
    """A number of the records.

    Attributes:
        name: as records have it; title: what it is, with its unit.
        section: the part of a dashboard that it belongs to.
        summary: which value stands for the run, beside the last one: "min" or "max"; None: the last one alone.
        where: what makes it appear; None: it always does.
    """

    name: str
    title: str
    section: str
    summary: str | None = None
    where: str | None = None


LEARNING, QUALITY, SPEED, DATA, HEALTH = "learning", "ranking quality", "speed", "data", "health"
SECTIONS = (LEARNING, QUALITY, SPEED, DATA, HEALTH)

METRICS = (
    Metric("train/loss", "loss", LEARNING, "min"),
    Metric("train/chance_loss", "loss of a guess, ln of a group's passages", LEARNING),
    Metric("train/equal_loss", "loss, were a group's scores equal", LEARNING, where="more than a softmax of labels"),
    Metric("train/learning_rate", "learning rate", LEARNING),
    Metric("train/grad_norm", "norm of the gradient, before clipping", LEARNING),
    Metric("eval/mrr", "MRR of the dev queries", QUALITY, "max", "data.dev"),
    Metric("eval/ndcg@10", "nDCG@10 of the dev queries", QUALITY, "max", "data.dev"),
    Metric("eval/has_right_in_contexts", "share of dev queries with a right passage in the first 5", QUALITY, "max",
           "data.dev"),
    Metric("gate/passed", "1 where no guard set loses more than allowed, else 0", QUALITY, where="gate.sets"),
    Metric("speed/pairs_per_second", "pairs a second", SPEED),
    Metric("speed/tokens_per_second", "tokens a second, padding left out", SPEED),
    Metric("speed/model_tflops", "model TFLOP a second, of all ranks", SPEED, where="a model whose FLOPs are known"),
    Metric("speed/mfu", "share of what the GPUs could compute at best", SPEED, where="a GPU of a known kind"),
    Metric("system/step_seconds", "seconds of a step", SPEED),
    Metric("data/useful_token_share", "share of the computed tokens that are no padding", DATA),
    Metric("data/wait_share", "share of the time that waits for data", DATA, "max"),
    Metric("data/bad_groups", "groups that could not be read, since the last record", DATA, "max"),
    Metric("epoch", "epochs", DATA),
    Metric("train/score_spread", "standard deviation of a group's scores", HEALTH),
    Metric("train/teacher_spread", "standard deviation of a teacher's scores in a group", HEALTH, where="a teacher"),
    Metric("train/loss_scale", "fp16: loss scale", HEALTH, "min"),
    Metric("train/skipped", "steps without an update, since the last record", HEALTH, "max"),
    Metric("train/spike_position", "spikes: first position of the step in its epoch", HEALTH, where="a spike"),
    Metric("system/peak_memory_gib", "peak memory of a rank, GiB", HEALTH, "max"),
)  # fmt: skip
"""In the order in which a dashboard shows them."""


def of_sets(names: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics of evaluation sets, which are those of the dev queries under the set's name."""
    of_dev = [metric for metric in METRICS if metric.where == "data.dev"]
    return tuple(
        replace(metric, name=metric.name.replace("/", f"/{name}/"), where="data.dev_sets",
                title=metric.title.replace("dev queries", f"queries of {name}"))
        for name in names
        for metric in of_dev
    )  # fmt: skip
