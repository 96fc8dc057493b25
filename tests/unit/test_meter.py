"""A record tells of the micro-batches that were counted, packed or padded."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from reranker.config.common import Device
from reranker.data.collate import MicroBatch, collate, ghost
from reranker.data.tokenize import Pair
from reranker.model.chunks import split
from reranker.model.losses import Objective
from reranker.train.distributed import Ranks, join, leave
from reranker.train.engine import StepOutcome
from reranker.train.flops import ModelFlops
from reranker.train.meter import Meter, utilisation

FLOPS = ModelFlops(per_token=100.0, per_square=10.0, per_pair=1.0)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    yield join(Device.cpu, 60.0)
    leave()


def batch(*groups: list[int]) -> MicroBatch:
    pairs = [[Pair([7] * length, [0] * length) for length in group] for group in groups]
    return collate(pairs, range(len(groups)), max(map(len, groups)), pad_id=1)


@pytest.mark.parametrize(("packed", "computed"), [(True, 5 + 9 + 3 + 12 + 7 + 2), (False, 2 * 9 + 4 * 12 + 2)])
def test_a_record_adds_up(packed: bool, computed: int, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reranker.train.meter.time.perf_counter", lambda: 14.0)
    meter = Meter(torch.device("cpu"), packed, FLOPS, started=10.0, waited=1.0, steps=2, groups=3)
    # The ghost of two pairs of one token is computed and counts for nothing else.
    first, second, nothing = batch([5, 9]), batch([3, 12], [7]), ghost(pad_id=1)
    meter.count(first, first, [first.packed], torch.tensor([[1.0, 3.0]]), torch.tensor(0.5))
    # The second group has one passage; what stands in its empty place counts for nothing.
    meter.count(second, second, [second.packed], torch.tensor([[0.0, -4.0], [2.0, math.nan]]), torch.tensor(1.0))
    meter.count(nothing, nothing, [nothing.packed], torch.tensor([[math.inf, 1.0]]), torch.tensor(0.0))
    record = meter.record(ranks, StepOutcome(torch.tensor(0.25), False, 8.0), rate=1e-5, epoch=0.5)
    # A place without a passage holds a pair of one token, computed as well.
    computed += 1 if packed else 0
    tokens, squares = 5 + 9 + 3 + 12 + 7, 25 + 81 + 9 + 144 + 49 + 1 + 1 + 1
    assert record["train/loss"] == pytest.approx(1.5 / 3)
    assert record["train/score_spread"] == pytest.approx((1.0 + 2.0 + 0.0) / 3)
    assert record["train/chance_loss"] == pytest.approx(2 * math.log(2) / 3)
    assert (record["train/grad_norm"], record["train/loss_scale"], record["train/learning_rate"]) == (0.25, 8.0, 1e-5)
    assert record["speed/pairs_per_second"] == 5 / 4
    assert record["speed/tokens_per_second"] == tokens / 4
    assert record["data/useful_token_share"] == pytest.approx(tokens / computed)
    assert record["data/wait_share"] == 0.25
    assert record["data/bad_groups"] == 0
    assert record["system/step_seconds"] == 2.0
    assert record["speed/model_tflops"] == pytest.approx((100 * tokens + 10 * squares + 5) / 4 / 1e12)
    assert "speed/mfu" not in record
    assert 0.01 < record["system/peak_memory_gib"] < 1000


def test_mfu_is_the_share_of_the_peak_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    name = ["NVIDIA H100 80GB HBM3"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name[0])
    assert utilisation(989e12, 2, torch.device("cuda")) == pytest.approx(0.5)
    assert utilisation(989e12, 2, torch.device("cpu")) is None
    name[0] = "Some GPU"
    assert utilisation(989e12, 2, torch.device("cuda")) is None


def test_several_positives_lower_the_loss_of_a_guess(ranks: Ranks) -> None:
    meter = Meter(torch.device("cpu"), True, None, steps=1, groups=2)
    pairs = [[Pair([7], [0])] * 5, [Pair([7], [0])] * 4]
    both = collate(pairs, [0, 1], 5, 1, positives=[3, 1])
    meter.count(both, both, [both.packed], torch.zeros(2, 5), torch.tensor(1.0))
    record = meter.record(ranks, StepOutcome(torch.tensor(0.1), False, 1.0), rate=0.0, epoch=0.1)
    # A positive among two negatives, and one among three.
    assert record["train/chance_loss"] == pytest.approx((math.log(3) + math.log(4)) / 2)


def test_what_is_computed_is_that_of_the_chunks(ranks: Ranks) -> None:
    meter = Meter(torch.device("cpu"), False, None, steps=1, groups=1)
    one = batch([4, 6, 12])
    cut = split(one.packed, 12, packed=False)
    meter.count(one, one, cut, torch.zeros(1, 3), torch.tensor(1.0))
    record = meter.record(ranks, StepOutcome(torch.tensor(0.1), False, 1.0), rate=0.0, epoch=0.1)
    assert record["data/useful_token_share"] == pytest.approx(22 / (2 * 6 + 12))


def test_with_a_teacher_a_record_has_the_loss_of_equal_scores_and_the_spread_of_what_the_teacher_wants(
    ranks: Ranks,
) -> None:
    objective = Objective(labels=0.5, distillation=2.0, temperature=4.0)
    meter = Meter(torch.device("cpu"), True, None, objective, steps=1, groups=3)
    pairs = [[Pair([7], [0])] * 3, [Pair([7], [0])] * 2, [Pair([7], [0])] * 2]
    # The third group has one score of the teacher's: nothing that it could say of their distance.
    one = collate(pairs, [0, 1, 2], 3, 1, teacher=[[8.0, 0.0, math.nan], [4.0, -4.0], [1.0, math.nan]])
    scores_GP = torch.tensor([[5.0, 2.0, 1.0], [3.0, 3.5, math.nan], [-2.0, 9.0, math.nan]])
    nothing = ghost(pad_id=1)
    meter.count(one, one, [one.packed], scores_GP, objective.of(scores_GP, one))
    meter.count(nothing, nothing, [nothing.packed], torch.tensor([[math.inf, 1.0]]), torch.tensor(0.0))
    record = meter.record(ranks, StepOutcome(torch.tensor(0.1), False, 1.0), rate=0.0, epoch=0.1)
    high = 1 / (1 + math.exp(-2))  # the teacher's share of the first, in both groups: 8 / 4 - 0 and 4 / 4 - -4 / 4
    divergence = math.log(2) + high * math.log(high) + (1 - high) * math.log(1 - high)
    equal = 0.5 * (math.log(3) + 2 * math.log(2)) + 2.0 * 2 * divergence
    assert record["train/equal_loss"] == pytest.approx(equal / 3, rel=1e-5)
    assert record["train/teacher_spread"] == pytest.approx((1.0 + 1.0 + 0.0) / 3)


def test_beside_a_teacher_alone_a_record_has_no_spread_of_one(ranks: Ranks) -> None:
    one = batch([5, 9])
    for objective, names in (
        (None, set()),
        (Objective(by_label="pointwise"), {"train/equal_loss"}),
        (Objective(more=(("mse", 1.0),)), {"train/equal_loss", "train/teacher_spread"}),
    ):
        meter = Meter(torch.device("cpu"), True, None, objective, steps=1, groups=1)
        meter.count(one, one, [one.packed], torch.tensor([[1.0, 0.0]]), torch.tensor(0.3))
        record = meter.record(ranks, StepOutcome(torch.tensor(0.1), False, 1.0), rate=0.0, epoch=0.1)
        assert {"train/equal_loss", "train/teacher_spread"} & set(record) == names


def test_a_skipped_step_has_no_norm_and_an_unknown_model_no_flops(ranks: Ranks) -> None:
    meter = Meter(torch.device("cpu"), True, None, steps=1, groups=1)
    one = batch([5, 9])
    meter.count(one, one, [one.packed], torch.tensor([[math.inf, 0.0]]), torch.tensor(math.inf))
    record = meter.record(ranks, StepOutcome(None, True, 4.0), rate=0.0, epoch=0.1)
    assert record["train/grad_norm"] is None
    assert math.isinf(record["train/loss"])
    assert "speed/model_tflops" not in record
