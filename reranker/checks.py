"""What follows from settings, and what contradicts itself in them: the checks that need no file and no device.

In: typed settings of `config`. Out: derived values. Raises `UserError` for values that cannot be, or not
together. Nothing here imports torch, so that a wrong key is told at once.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from reranker.config.common import MOST_OPEN, BatchPolicy, CacheConfig, LabelLoss, Precision, TeacherLoss
from reranker.config.tracking import TrackingConfig
from reranker.config.training import LossConfig, PrecisionConfig, TrainConfig
from reranker.errors import UserError, closest, shorten
from reranker.selection import check_selection

ACCEPTABLE = (
    "data.shards", "train.seed", "data.shuffle_block", "batch.groups", "tokenizer", "model", "model.name",
    "model.revision", "data.group_size", "data.positives", "data.short_groups", "data.truncation", "data.max_length",
    "data.query_max_length", "data.passage_max_length", "data.query_prefix", "data.passage_prefix",
    "data.negatives", "loss.labels", "loss.distillation", "loss.temperature", "loss.by_label",
    "loss.by_teacher", "loss.more", "loss.score_temperature",
)  # fmt: skip
"""What a resume compares with its checkpoint and refuses unless train.accept names it; the first three decide which
group stands at which position."""


def loss_weights(loss: LossConfig) -> tuple[float, float]:
    """(weight of all losses that know the positive, of all that know a teacher's scores). Raises UserError."""
    more = {} if loss.more is None else loss.more
    if not isinstance(more, dict):
        raise UserError("loss.more", shorten(str(more)), "losses with their weights", "say loss.more={ranknet: 0.5}")
    every = [*LabelLoss.__members__, *TeacherLoss.__members__]
    for name, weight in more.items():
        if name not in every:
            near = closest(str(name), every)
            raise UserError("loss.more", str(name), f"one of {', '.join(every)}",
                            f"did you mean {near}?" if near else "change the name")  # fmt: skip
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise UserError(f"loss.more.{name}", str(weight), "a number, 0 or more", "change the value")
    return (
        loss.labels + sum(weight for name, weight in more.items() if name in LabelLoss.__members__),
        loss.distillation + sum(weight for name, weight in more.items() if name in TeacherLoss.__members__),
    )


OF_ONE_POSITIVE = (LabelLoss.listwise, LabelLoss.listmle, LabelLoss.plistmle)
"""Losses that want one positive: their target is one passage, or an order, in which equal passages are not equal."""


def _check_several_positives(positives: int, loss: LossConfig) -> None:
    expected = "a loss that knows several positives"
    if loss.labels and loss.by_label in OF_ONE_POSITIVE:
        raise UserError("loss.by_label", f"{loss.by_label.value} with data.positives={positives}", expected,
                        "say loss.by_label=multi_positive, for example")  # fmt: skip
    for one in OF_ONE_POSITIVE:
        if (loss.more or {}).get(one.value):
            raise UserError("loss.more", f"{one.value} with data.positives={positives}", expected,
                            f"leave {one.value} out of loss.more")  # fmt: skip


def accumulation(groups: int, per_gpu: int, world: int) -> int:
    """Micro-batches of each rank in one optimizer step. Raises UserError where the batch does not divide."""
    if groups % (per_gpu * world):
        fits = [size for size in range(1, groups + 1) if groups % (size * world) == 0]
        fix = f"set batch.per_gpu to one of {fits}" if fits else f"set batch.groups to a multiple of {per_gpu * world}"
        raise UserError(
            "batch",
            f"groups={groups}, per_gpu={per_gpu}, ranks={world}",
            f"{groups} to be a multiple of {per_gpu} x {world}",
            fix,
        )
    return groups // (per_gpu * world)


def cache_directory(cache: CacheConfig) -> Path:
    """Where copies of remote shards are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache.directory or os.path.join(home, "ko-reranker"))


def check_at_least(values: Iterable[tuple[str, float, float]]) -> None:
    """Raise UserError for the first (key, value, least) whose value is below."""
    for key, value, least in values:
        if not least <= value < math.inf:  # a NaN is refused as well
            raise UserError(key, str(value), f"{least:g} or more", "change the value")


def check_train(config: TrainConfig) -> None:
    """Refuse values that contradict each other or cannot be. Raises UserError."""
    data, batch, train, optim = config.data, config.batch, config.train, config.optim
    at_least: list[tuple[str, float, float]] = [
        ("data.group_size", data.group_size, 2),
        ("data.positives", data.positives, 1),
        ("data.max_length", data.max_length, 8),
        ("data.workers", data.workers, 0),
        ("data.prefetch", data.prefetch, 1),
        ("data.shuffle_block", data.shuffle_block, 1),
        ("batch.groups", batch.groups, 1),
        ("batch.per_gpu", batch.per_gpu, 1),
        ("data.bad_limit", data.bad_limit, 0),
        ("data.retries", data.retries, 0),
        ("data.cache.gib", data.cache.gib, 0),
        ("train.epochs", train.epochs, 1),
        ("train.keep_last", train.keep_last, 1),
        ("train.keep_best", train.keep_best, 1),
        ("train.hang", train.hang, 0),
        ("guards.window", config.guards.window, 2),
        ("guards.spike", config.guards.spike, 1),
        ("train.log_every", train.log_every, 1),
        ("loss.labels", config.loss.labels, 0),
        ("loss.distillation", config.loss.distillation, 0),
        ("optim.lr", optim.lr, 0),
        ("optim.weight_decay", optim.weight_decay, 0),
        ("optim.max_grad_norm", optim.max_grad_norm, 0),
        ("optim.eps", optim.eps, 0),
        ("train.timeout", train.timeout, 1),
        ("tracking.examples", config.tracking.examples, 0),
        ("tracking.alert_wait", config.tracking.alert_wait, 0),
        ("tracking.upload_timeout", config.tracking.upload_timeout, 1),
        ("tracking.timeout", config.tracking.timeout, 1),
        ("precision.initial_scale_power", config.precision.initial_scale_power, 0),
        ("precision.loss_scale_window", config.precision.loss_scale_window, 1),
        ("precision.hysteresis", config.precision.hysteresis, 1),
        ("precision.min_loss_scale", config.precision.min_loss_scale, 0),
    ]
    optional = {
        "data.query_max_length": data.query_max_length,
        "data.passage_max_length": data.passage_max_length,
        "data.negatives.hardest": data.negatives.hardest,
        "train.max_steps": train.max_steps,
        "train.eval_every": train.eval_every,
        "train.save_every": train.save_every,
        "train.keep_every": train.keep_every,
        "deepspeed.reduce_bucket_size": config.deepspeed.reduce_bucket_size,
    }
    at_least += [(key, value, 1) for key, value in optional.items() if value is not None]
    check_at_least(at_least)
    if data.shuffle_block > MOST_OPEN:
        raise UserError("data.shuffle_block", str(data.shuffle_block), f"at most {MOST_OPEN}, as many as are held open",
                        "lower it or pack larger shards")  # fmt: skip
    shares = {
        "data.negatives.warmup": data.negatives.warmup,
        "data.negatives.decay": data.negatives.decay,
        "data.negatives.random": data.negatives.random,
        "optim.warmup": optim.warmup,
        "model.dropout": config.model.dropout or 0.0,
    }
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(key, str(value), "a share between 0 and 1", "change the value")
    if data.negatives.warmup + data.negatives.decay > 1:
        found = f"{data.negatives.decay} behind data.negatives.warmup={data.negatives.warmup}"
        raise UserError("data.negatives.decay", found, "1 in sum at most, the whole training", "lower one of them")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        shown = "[" + ",".join(f"{beta:g}" for beta in optim.betas) + "]"
        raise UserError("optim.betas", shown, "two numbers of at least 0 and below 1", "say optim.betas=[0.9,0.999]")
    if config.deepspeed.stage not in (None, 0, 1, 2, 3):
        raise UserError("deepspeed.stage", str(config.deepspeed.stage), "0, 1, 2, 3 or null",
                        "say deepspeed=zero2, for example")  # fmt: skip
    if data.query_max_length is not None and data.query_max_length > data.max_length - 5:
        expected = f"at most data.max_length - 5 = {data.max_length - 5}, to leave room for the passage"
        raise UserError("data.query_max_length", str(data.query_max_length), expected,
                        "lower it or raise data.max_length")  # fmt: skip
    if data.origin is not None and (lines := len(data.origin.strip().splitlines())) != 1:
        raise UserError("data.origin", f"{lines} lines" if lines else "an empty text", "one line for the model card",
                        "write one, or say data.origin=null")  # fmt: skip
    if data.positives >= data.group_size:
        raise UserError("data.positives", str(data.positives), f"less than data.group_size = {data.group_size}, as a "
                        "positive is told from negatives", "lower it or raise data.group_size")  # fmt: skip
    by_label, by_teacher = loss_weights(config.loss)
    if data.positives > 1:
        _check_several_positives(data.positives, config.loss)
    least = data.group_size - data.positives
    only_random = any(round(data.negatives.random * n) == n for n in range(least, data.group_size))
    if not by_label and (data.negatives.warmup or data.negatives.decay or only_random):
        raise UserError("loss.labels", "0 where all negatives are random", "a weight above 0: no teacher scored them",
                        "set data.negatives.warmup and decay to 0, and a smaller data.negatives.random")  # fmt: skip
    if not by_label and not by_teacher:
        raise UserError("loss.labels", "0, as loss.distillation", "a weight above 0 for one of them", "change one")
    temperatures = {
        "loss.temperature": config.loss.temperature,
        "loss.score_temperature": config.loss.score_temperature,
        "data.negatives.score_temperature": data.negatives.score_temperature,
    }
    for key, temperature in temperatures.items():
        if temperature is not None and not 0 < temperature < math.inf:
            raise UserError(key, str(temperature), "a number above 0", "change the value")
    most = data.group_size * data.max_length
    if batch.tokens != "auto" and (not isinstance(batch.tokens, int) or isinstance(batch.tokens, bool)):
        raise UserError("batch.tokens", shorten(batch.tokens), "a number or auto", "say batch.tokens=8192, for example")
    if batch.policy is not BatchPolicy.tokens and batch.tokens == "auto":
        raise UserError("batch.tokens", f"auto with batch.policy={batch.policy.value}, which counts groups",
                        "batch.policy=tokens", "say batch.policy=tokens")  # fmt: skip
    if batch.policy is BatchPolicy.tokens and batch.tokens != "auto" and batch.tokens < most:
        raise UserError(
            "batch.tokens",
            str(batch.tokens),
            f"at least data.group_size x data.max_length = {most}, the longest group",
            "raise it or lower one of the two",
        )
    if batch.chunk_tokens is not None and batch.chunk_tokens < data.max_length:
        raise UserError("batch.chunk_tokens", str(batch.chunk_tokens), f"at least data.max_length = {data.max_length}, "
                        "the longest pair", "raise it or lower data.max_length")  # fmt: skip
    if batch.chunk_tokens is not None and batch.policy is BatchPolicy.tokens and batch.tokens == "auto":
        found = f"auto with batch.chunk_tokens={batch.chunk_tokens}"
        raise UserError("batch.tokens", found, "a number: it is chunks that the memory must hold",
                        f"say batch.tokens={max(most, 4 * batch.chunk_tokens)}, for example")  # fmt: skip
    if config.deepspeed.offload and config.deepspeed.stage == 0:
        raise UserError("deepspeed.offload", "true at ZeRO stage 0", "stage 1, 2 or 3",
                        "say deepspeed=zero1, or deepspeed.offload=false")  # fmt: skip
    if config.guards.skip_spikes and train.log_every > 1:
        found = f"true with train.log_every={train.log_every}"
        raise UserError("guards.skip_spikes", found, "a record of every step, as steps are compared",
                        "say train.log_every=1, or guards.skip_spikes=false")  # fmt: skip
    if unknown := [key for key in train.accept if key not in ACCEPTABLE]:
        near = closest(unknown[0], ACCEPTABLE)
        raise UserError("train.accept", unknown[0], f"one of {', '.join(ACCEPTABLE)}",
                        f"did you mean {near}?" if near else "change the value")  # fmt: skip
    check_tracking(config.tracking)
    check_selection(config)


def check_tracking(tracking: TrackingConfig) -> None:
    """Refuse what Weights & Biases would, hours later and in its own words. Raises UserError."""
    if tracking.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tracking.tensorboard", "true without the package tensorboard", "that package",
                        'pip install "ko-reranker[tensorboard]"')  # fmt: skip
    for tag in tracking.tags:
        if not 1 <= len(tag) <= 64:
            raise UserError("tracking.tags", f"a tag of {len(tag)} characters", "1 to 64", "shorten it")
    if len(tracking.project) > 128 or {*tracking.project} & {*"/\\#?%:\r\n"} or not tracking.project:
        found = shorten(tracking.project)
        raise UserError("tracking.project", found, "1 to 128 characters, none of / \\ # ? % :", "choose another name")


class Arithmetic(NamedTuple):
    """What a training computes in.

    Attributes:
        precision: never auto.
        autocast: weights and sums are float32's, products alone are of the precision (`torch.autocast`).
        stage: of ZeRO.
    """

    precision: Precision
    autocast: bool
    stage: int

    @property
    def told(self) -> str:
        return told_precision(self.precision.value, self.autocast)


def told_precision(precision: str, autocast: bool) -> str:
    """What a user is told of the precision of a training."""
    return f"{precision} (autocast)" if autocast else precision


def resolve_precision(
    config: PrecisionConfig, device: str, stage: int | None, bf16_processor: bool = False, alone: bool = False
) -> tuple[Arithmetic, list[str]]:
    """(what a training computes in, what to tell the user).

    `bf16_processor`: every rank's processor has matrix products in bf16, which then are what auto means on a CPU.
    bf16 is autocast on a CPU: little is gained there by weights in 16 bits, and a residual stream in bfloat16 hides
    from a fresh head what little tells passages apart. On a GPU they halve what is moved and sent.
    `alone`: one rank trains, and keeps all in its device's memory. It has nobody to share with, and in float32 no use
    for the copies of weights and gradients that ZeRO works on: with no stage asked for it has stage 0, others have 1.
    A CPU has no fp16 in DeepSpeed; at stage 0 its 16-bit paths train wrongly (an AdamW step with zero gradients at
    start, a loss that is never scaled), so weights of 16 bits at stage 0 become stage 1, whose arithmetic is the same.
    Raises UserError for fp16 asked for on a CPU, for autocast of what is not bf16, and for TF32 of what is not fp32.
    """
    told, precision = [], config.name
    if precision is Precision.auto:
        precision = Precision.fp16 if device == "cuda" else Precision.bf16 if bf16_processor else Precision.fp32
        if device == "cpu":
            why = ", whose products this processor has" if bf16_processor else ""
            told.append(f"precision=auto: no GPU found, training in {precision.value}{why}")
    if precision is Precision.fp16 and device == "cpu" and not config.fp16_on_cpu:
        raise UserError("precision", "fp16 on a CPU", "fp32, bf16 or auto, as DeepSpeed has no fp16 there",
                        "say precision=fp32")  # fmt: skip
    if config.autocast and precision is not Precision.bf16:
        raise UserError("precision.autocast", f"true in {precision.value}", "bf16, whose range is float32's",
                        "say precision=bf16, or leave it away")  # fmt: skip
    if config.tf32 and precision is not Precision.fp32:
        raise UserError("precision.tf32", f"true in {precision.value}", "fp32, whose products it makes rougher",
                        "say precision=fp32, or leave it away")  # fmt: skip
    autocast = precision is Precision.bf16 and (device == "cpu" if config.autocast is None else config.autocast)
    if stage is None:
        stage = 0 if alone and (precision is Precision.fp32 or autocast) else 1
    if stage == 0 and precision is not Precision.fp32 and not autocast:
        told.append(f"deepspeed=zero0 trains wrongly in {precision.value}: ZeRO stage 1 is used instead")
        stage = 1
    return Arithmetic(precision, autocast, stage), told
