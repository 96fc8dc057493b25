"""The arithmetic of the batch, what every key means, and the values that are refused together."""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import replace
from typing import Any

import pytest

from reranker.checks import accumulation, check_train, resolve_precision
from reranker.config import COMMANDS
from reranker.config.common import BatchPolicy, LabelLoss, Precision
from reranker.config.training import PrecisionConfig, TrainConfig
from reranker.describe import describe, field_docs
from reranker.errors import UserError


@pytest.mark.parametrize(
    ("groups", "per_gpu", "world", "steps"), [(32, 1, 1, 32), (32, 1, 4, 8), (32, 8, 4, 1), (6, 1, 3, 2)]
)
def test_accumulation_makes_up_the_effective_batch(groups: int, per_gpu: int, world: int, steps: int) -> None:
    assert accumulation(groups, per_gpu, world) == steps
    assert steps * per_gpu * world == groups


def test_a_batch_that_does_not_divide_is_refused_with_its_three_numbers() -> None:
    with pytest.raises(UserError) as caught:
        accumulation(32, 3, 4)
    assert str(caught.value) == (
        "batch: found groups=32, per_gpu=3, ranks=4, expected 32 to be a multiple of 3 x 4; "
        "set batch.per_gpu to one of [1, 2, 4, 8]"
    )


def test_a_world_that_no_micro_batch_fits_is_told_the_next_batch() -> None:
    with pytest.raises(UserError, match=r"ranks=3.*set batch\.groups to a multiple of 6$"):
        accumulation(32, 2, 3)


def _sections(schema: type) -> list[type]:
    hints = typing.get_type_hints(schema).values()
    nested = [hint for hint in hints if dataclasses.is_dataclass(hint)]
    return [schema] + [inner for hint in nested for inner in _sections(typing.cast(type, hint))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_is_documented(command: str) -> None:
    for section in _sections(COMMANDS[command][0]):
        values = {
            item.name
            for item in dataclasses.fields(section)
            if not dataclasses.is_dataclass(typing.get_type_hints(section)[item.name])
        }
        docs = field_docs(section)
        assert set(docs) >= values
        assert all(doc and doc[0] != " " and not doc.endswith(".") for doc in docs.values())


def test_keys_are_described_with_type_default_and_meaning() -> None:
    rows = {key: (kind, default) for key, kind, default, _ in describe(TrainConfig)}
    assert rows["data.group_size"] == ("int", 3)
    assert rows["data.negatives.hardest"] == ("int or null", None)
    assert rows["optim.betas"] == ("[float, float]", (0.9, 0.999))
    assert rows["tracking.tags"] == ("list of str", [])
    assert rows["data.shards"] == ("str or mapping", "???")
    assert rows["data.short_groups"][0] == "repeat|shrink|error"


def changed(key: str, value: Any) -> TrainConfig:
    config = TrainConfig()
    *sections, name = key.split(".")
    section: Any = config
    for part in sections:
        section = getattr(section, part)
    assert hasattr(section, name)
    setattr(section, name, value)
    return config


def test_the_defaults_are_accepted() -> None:
    check_train(TrainConfig())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.group_size", 1),
        ("data.positives", 0),
        ("data.positives", 3),
        ("batch.chunk_tokens", 511),
        ("data.max_length", 4),
        ("data.workers", -1),
        ("data.prefetch", 0),
        ("data.query_max_length", 0),
        ("data.query_max_length", 508),
        ("data.passage_max_length", 0),
        ("data.origin", ""),
        ("data.negatives.warmup", 1.5),
        ("data.negatives.random", -0.1),
        ("data.negatives.decay", 1.1),
        ("loss.score_temperature", 0.0),
        ("data.negatives.score_temperature", -1.0),
        ("data.negatives.hardest", 0),
        ("batch.groups", 0),
        ("batch.per_gpu", 0),
        ("optim.lr", -1e-5),
        ("optim.warmup", 2.0),
        ("optim.betas", [0.9]),
        ("optim.betas", [0.9, 1.0]),
        ("optim.max_grad_norm", -1.0),
        ("model.dropout", 1.2),
        ("deepspeed.stage", 4),
        ("train.epochs", 0),
        ("train.max_steps", 0),
        ("train.keep_last", 0),
        ("train.metric", "accuracy"),
        ("tracking.tags", ["ko", ""]),
        ("tracking.tags", ["k" * 65]),
        ("tracking.project", "team/ko"),
        ("tracking.project", ""),
        ("tracking.examples", -1),
        ("tracking.alert_wait", -1.0),
        ("tracking.upload_timeout", 0.0),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        check_train(changed(key, value))
    assert caught.value.where == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.query_max_length", 507),
        ("data.passage_max_length", 1),
        ("data.origin", "one line, as a block of YAML ends it\n"),
        ("data.workers", 0),
        ("batch.chunk_tokens", 512),
        ("optim.max_grad_norm", 0.0),
        ("model.dropout", 0.0),
    ],
)
def test_a_value_at_its_limit_is_accepted(key: str, value: Any) -> None:
    check_train(changed(key, value))


@pytest.mark.parametrize(
    ("origin", "found"),
    [
        ("", "an empty text"),
        (" \n ", "an empty text"),
        ("a\nb", "2 lines"),
        ("a\r\n\r\nb", "3 lines"),
        ("a\u2028b", "2 lines"),
    ],
)
def test_an_origin_is_one_line(origin: str, found: str) -> None:
    with pytest.raises(UserError) as caught:
        check_train(changed("data.origin", origin))
    assert str(caught.value) == (
        f"data.origin: found {found}, expected one line for the model card; write one, or say data.origin=null"
    )


def test_several_positives_want_a_loss_that_knows_several() -> None:
    config = changed("data.positives", 2)
    expected = (
        "loss.by_label: found listwise with data.positives=2, expected a loss that knows several positives; "
        "say loss.by_label=multi_positive, for example"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        check_train(config)
    config.loss.by_label = LabelLoss.multi_positive
    check_train(config)
    config.loss.more = {"ranknet": 0.5, "plistmle": 0.1}
    more = "found plistmle with data.positives=2, expected a loss that knows several positives; leave plistmle out of"
    with pytest.raises(UserError, match=rf"^loss\.more: {more} loss\.more$"):
        check_train(config)
    config.loss.more, config.loss.by_label, config.loss.labels = None, LabelLoss.listwise, 0.0
    config.loss.distillation = 1.0
    check_train(config)
    # Of three places one negative is left where two positives are shown, and half of it is none.
    config.data.negatives.random = 0.6
    with pytest.raises(UserError, match=r"^loss\.labels: found 0 where all negatives are random"):
        check_train(config)


def test_the_parts_of_a_schedule_of_negatives_fill_the_training_at_most() -> None:
    config = changed("data.negatives.decay", 0.7)
    config.data.negatives.warmup = 0.3
    check_train(config)
    config.data.negatives.warmup = 0.4
    expected = (
        "data.negatives.decay: found 0.7 behind data.negatives.warmup=0.4, expected 1 in sum at most, the whole "
        "training; lower one of them"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        check_train(config)


def test_auto_tokens_want_the_policy_that_counts_them() -> None:
    with pytest.raises(UserError) as caught:
        check_train(changed("batch.tokens", "auto"))
    assert str(caught.value) == (
        "batch.tokens: found auto with batch.policy=fixed, which counts groups, expected batch.policy=tokens; say "
        "batch.policy=tokens"
    )


def test_chunks_want_a_number_of_tokens_for_a_micro_batch() -> None:
    config = changed("batch.chunk_tokens", 2048)
    config.batch.tokens, config.batch.policy = "auto", BatchPolicy.tokens
    with pytest.raises(UserError) as caught:
        check_train(config)
    assert str(caught.value) == (
        "batch.tokens: found auto with batch.chunk_tokens=2048, expected a number: it is chunks that the memory must "
        "hold; say batch.tokens=8192, for example"
    )
    config.batch.tokens = 8192
    check_train(config)


@pytest.mark.parametrize(
    ("requested", "device", "stage", "found", "told"),
    [
        ("auto", "cuda", 2, ("fp16", False, 2), 0),
        ("auto", "cuda", 0, ("fp16", False, 1), 1),
        ("auto", "cpu", 2, ("fp32", False, 2), 1),
        ("auto", "cpu", 0, ("fp32", False, 0), 1),
        ("fp32", "cuda", 0, ("fp32", False, 0), 0),
        ("fp32", "cpu", 3, ("fp32", False, 3), 0),
        ("bf16", "cpu", 1, ("bf16", True, 1), 0),
        ("bf16", "cpu", 0, ("bf16", True, 0), 0),
        ("bf16", "cuda", 0, ("bf16", False, 1), 1),
        ("bf16", "cuda", 3, ("bf16", False, 3), 0),
        ("fp16", "cuda", 3, ("fp16", False, 3), 0),
    ],
)
def test_the_precision_follows_the_device_and_16_bit_weights_never_train_at_stage_0(
    requested: str, device: str, stage: int, found: tuple[str, bool, int], told: int
) -> None:
    arithmetic, lines = resolve_precision(PrecisionConfig(name=Precision(requested)), device, stage)
    assert arithmetic == (Precision(found[0]), *found[1:])
    assert len(lines) == told


@pytest.mark.parametrize(
    ("requested", "device", "alone", "found"),
    [
        ("fp32", "cpu", True, 0),
        ("fp32", "cuda", True, 0),
        ("bf16", "cpu", True, 0),
        ("bf16", "cuda", True, 1),
        ("fp16", "cuda", True, 1),
        ("fp32", "cpu", False, 1),
        ("fp16", "cuda", False, 1),
    ],
)
def test_one_rank_with_weights_in_float32_keeps_no_copies_for_zero(
    requested: str, device: str, alone: bool, found: int
) -> None:
    precision = PrecisionConfig(name=Precision(requested))
    arithmetic, told = resolve_precision(precision, device, None, alone=alone)
    assert (arithmetic.stage, told) == (found, [])
    assert resolve_precision(precision, device, 2, alone=alone)[0].stage == 2


def test_autocast_is_a_choice_of_bf16_alone() -> None:
    asked = {choice: PrecisionConfig(name=Precision.bf16, autocast=choice) for choice in (True, False)}
    assert resolve_precision(asked[True], "cuda", 0) == ((Precision.bf16, True, 0), [])
    assert resolve_precision(asked[False], "cpu", 2) == ((Precision.bf16, False, 2), [])
    for name in (Precision.auto, Precision.fp16, Precision.fp32):
        with pytest.raises(UserError, match=r"precision.autocast: found true in fp.., expected bf16, whose range"):
            resolve_precision(PrecisionConfig(name=name, autocast=True), "cuda", 1)


def test_auto_is_bf16_on_a_cpu_that_has_its_products() -> None:
    auto = PrecisionConfig()
    arithmetic, told = resolve_precision(auto, "cpu", 2, bf16_processor=True)
    assert arithmetic == (Precision.bf16, True, 2)
    assert told == ["precision=auto: no GPU found, training in bf16, whose products this processor has"]
    assert resolve_precision(auto, "cuda", 2, bf16_processor=True)[0].precision is Precision.fp16
    fp32 = PrecisionConfig(name=Precision.fp32)
    assert resolve_precision(fp32, "cpu", 2, bf16_processor=True)[0].precision is Precision.fp32


def test_tf32_is_of_float32_alone() -> None:
    tf32 = PrecisionConfig(tf32=True)
    assert resolve_precision(replace(tf32, name=Precision.fp32), "cuda", 2)[0].precision is Precision.fp32
    with pytest.raises(UserError, match=r"precision\.tf32: found true in fp16, expected fp32"):
        resolve_precision(tf32, "cuda", 2)


def test_fp16_on_a_cpu_is_refused_unless_it_is_forced() -> None:
    fp16 = PrecisionConfig(name=Precision.fp16)
    with pytest.raises(UserError, match="precision: found fp16 on a CPU, expected fp32, bf16 or auto"):
        resolve_precision(fp16, "cpu", 2)
    assert resolve_precision(replace(fp16, fp16_on_cpu=True), "cpu", 2) == ((Precision.fp16, False, 2), [])
