"""A training that learns nothing, collapses or jumps is told of, once each; a healthy one never is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from reranker.errors import UserError
from reranker.train.engine import StepOutcome
from reranker.train.guards import Health, stop_if_lost, stop_if_many, stop_without_update

CHANCE = math.log(3)


def record(loss: float, spread: float = 1.0, chance: float = CHANCE) -> dict[str, Any]:
    return {"train/loss": loss, "train/chance_loss": chance, "train/score_spread": spread}


def taught(loss: float, spread: float, teacher: float, equal: float) -> dict[str, Any]:
    """A record of a training with a teacher."""
    return {**record(loss, spread), "train/equal_loss": equal, "train/teacher_spread": teacher}


def told(records: list[dict[str, Any]], window: int = 10, labels: float | None = 1.0) -> list[tuple[int, str]]:
    """(record, first words) of each line."""
    health = Health(window, 8.0, labels)
    return [(number, line) for number, one in enumerate(records) for _, line in health.see(one)]


def learning(steps: int) -> list[dict[str, Any]]:
    """A loss that falls from chance with some noise, scores that part."""
    return [record(CHANCE * math.exp(-n / 40) + 0.05 * math.sin(n * 1.7), 0.1 + n / 20) for n in range(steps)]


def test_a_training_that_learns_is_told_nothing() -> None:
    assert told(learning(400)) == []


def test_a_loss_that_stays_at_a_guess_is_told_once_and_not_before_the_window_is_full() -> None:
    lines = told([record(CHANCE + 0.001 * (-1) ** n) for n in range(60)])
    assert [number for number, _ in lines] == [9]
    assert lines[0][1].startswith("the loss (1.099) has stayed at that of a guess, ln of the group's passages (1.099)")
    assert "optim.lr" in lines[0][1]
    assert "data.negatives.warmup" in lines[0][1]


def test_chance_is_that_of_the_groups_that_were_shown() -> None:
    two = math.log(2)
    assert len(told([record(two, chance=two)] * 10)) == 1
    assert told([record(two, chance=CHANCE)] * 10) == []


def test_a_loss_that_is_weighted_is_compared_with_weighted_chance() -> None:
    assert len(told([record(2 * CHANCE)] * 10, labels=2.0)) == 1
    assert told([record(1.5 * CHANCE)] * 10, labels=2.0) == []


def test_a_distillation_is_not_told_of_a_loss_at_chance() -> None:
    assert told([taught(CHANCE, 1.0, 1.0, CHANCE)] * 30, labels=None) == []


def test_equal_scores_are_told_as_such() -> None:
    ((number, line),) = told([record(CHANCE, 1e-5)] * 30)
    assert told([taught(0.1, 1e-5, 1.0, 0.1)] * 30, labels=None) == [(number, line)]
    assert number == 9
    assert line.startswith("the scores of a group are all the same (standard deviation 1.0e-05)")


def test_a_collapse_is_told_when_the_spread_has_fallen_to_a_tenth() -> None:
    records = learning(100)
    collapsing = [record(0.9, 5.0 * 0.8**n) for n in range(60)]
    lines = told(records + collapsing)
    assert lines, "nothing was told"
    number, line = lines[0]
    assert 100 < number < 140
    assert "closer to each other than they were: the model is collapsing" in line


def learnt(steps: int) -> list[dict[str, Any]]:
    """A teacher that is followed well."""
    return [taught(0.2 + 0.2 * (n % 2), 5.0, 4.0, 0.6) for n in range(steps)]


def falling(to: float, steps: int = 60) -> list[float]:
    """Spreads of 5, then down to one that stays."""
    return [5.0] * 10 + [to + (5.0 - to) * 0.8**n for n in range(steps)]


def test_with_a_teacher_a_collapse_is_told_when_the_scores_tell_no_more_than_equal_ones() -> None:
    collapsing = [taught(0.6, spread, 4.0, 0.6) for spread in falling(0.01)]
    ((number, line),) = told(learnt(20) + collapsing, labels=None)
    assert 30 < number < 70
    assert "closer to each other than they were: the model is collapsing" in line
    # A loss that has jumped before, far above that of equal scores, falls to it.
    assert len(told([taught(40.0, 50.0, 4.0, 0.6)] * 20 + collapsing, labels=None)) == 1


def test_scores_that_come_as_close_as_those_of_the_teacher_have_not_collapsed() -> None:
    """A hundred times closer than they were, with a loss that is long above that of scores still closer."""
    coming = [taught(spread**2 / 2, spread, 0.05, 0.05**2 / 2) for spread in falling(0.05)]
    assert told(coming, labels=None) == []
    assert len(told(coming + [taught(0.05**2 / 2, 0.004, 0.05, 0.05**2 / 2)] * 30, labels=None)) == 1


def test_scores_that_rank_as_the_teacher_have_not_collapsed_however_far_apart_its_own_are() -> None:
    """A temperature of 0.01 asks for scores hundreds apart; a loss below that of equal scores says that they rank."""
    assert told([taught(0.9, spread, 200.0, CHANCE) for spread in falling(0.1)], labels=None) == []
    assert len(told([taught(CHANCE, spread, 200.0, CHANCE) for spread in falling(0.1)], labels=None)) == 1


def test_where_the_teacher_holds_all_for_equal_scores_may_come_as_close_as_they_like() -> None:
    assert told([taught(0.0, spread, 0.0, 0.0) for spread in falling(0.01)], labels=None) == []


def test_a_loss_of_labels_that_is_no_softmax_is_watched_without_a_teacher() -> None:
    def one(loss: float, spread: float) -> dict[str, Any]:
        return {**record(loss, spread), "train/equal_loss": 0.69}

    assert len(told([one(0.69, spread) for spread in falling(0.01)], labels=None)) == 1
    assert told([one(0.5, spread) for spread in falling(0.01)], labels=None) == []


def test_a_checkpoint_of_before_says_nothing_of_a_teacher_until_the_window_is_full_again() -> None:
    collapsed = taught(0.6, 0.01, 4.0, 0.6)
    health = Health(10, 8.0, None)
    for one in [*learnt(10), *[collapsed] * 9]:
        assert health.see(one) == []
    before = json.loads(json.dumps(health.to_dict()))
    del before["equals"], before["teachers"]
    health = Health(10, 8.0, None)
    health.restore(before)
    assert [bool(health.see(collapsed)) for _ in range(12)] == [False] * 9 + [True] + [False] * 2


def test_a_spike_is_far_above_what_came_before_and_does_not_hide_the_next() -> None:
    health = Health(10, 8.0)
    for one in learning(100):
        assert not health.is_spike(one["train/loss"])
        health.see(one)
    assert health.is_spike(2.0)
    health.see(record(2.0))
    assert health.is_spike(2.0)
    assert not health.is_spike(0.15)
    assert not health.is_spike(math.inf), "what is not finite is stopped, not skipped"


def test_a_new_level_of_the_loss_is_soon_no_spike_any_more() -> None:
    health, spikes = Health(20, 8.0), 0
    for n in range(400):
        loss = (0.25 + 0.06 * math.sin(n)) if n < 200 else (1.1 + 0.1 * math.sin(n))  # random, then hard negatives
        spikes += health.is_spike(loss)
        health.see(record(loss))
        assert spikes <= 20
    assert spikes >= 1


def test_a_watch_that_is_kept_and_restored_goes_on_as_the_one_before() -> None:
    records = [record(CHANCE)] * 12 + learning(100) + [record(0.9, 5.0 * 0.8**n) for n in range(60)]
    goes_on_as_before(records, (3, 12, 50, 130), 1.0)
    collapsing = learnt(20) + [taught(0.6, spread, 4.0, 0.6) for spread in falling(0.01)]
    goes_on_as_before(collapsing, (3, 12, 35, 45), None)
    for one in collapsing:
        del one["train/teacher_spread"]
    goes_on_as_before(collapsing, (3, 12, 35, 45), None)


def goes_on_as_before(records: list[dict[str, Any]], cuts: tuple[int, ...], labels: float | None) -> None:
    whole = told(records, labels=labels)
    assert whole
    for cut in cuts:
        first = Health(10, 8.0, labels)
        lines = [(number, line) for number, one in enumerate(records[:cut]) for _, line in first.see(one)]
        second = Health(10, 8.0, labels)
        second.restore(json.loads(json.dumps(first.to_dict())))
        lines += [(cut + number, line) for number, one in enumerate(records[cut:]) for _, line in second.see(one)]
        assert lines == whole


def test_no_spike_before_the_window_is_full() -> None:
    health = Health(10, 8.0)
    for _ in range(9):
        health.see(record(1.0))
        assert not health.is_spike(100.0)
    health.see(record(1.0))
    assert health.is_spike(100.0)


def test_what_is_not_finite_takes_no_part() -> None:
    records = learning(100)
    records[50] = record(math.nan, math.nan)
    records[60] = record(math.inf)
    assert told(records) == []


@pytest.mark.parametrize(
    ("loss", "skipped", "stops"), [(1.0, False, False), (math.nan, True, False), (math.nan, False, True), (math.inf, False, True)]
)  # fmt: skip
def test_a_loss_that_is_not_finite_stops_unless_the_step_was_skipped(loss: float, skipped: bool, stops: bool) -> None:
    if not stops:
        stop_if_lost(7, loss, skipped)
        return
    with pytest.raises(UserError, match=f"train/loss: found {loss} at step 7") as caught:
        stop_if_lost(7, loss, skipped)
    assert caught.value.agreed


def test_bad_groups_stop_above_the_limit() -> None:
    stop_if_many(3, 3)
    with pytest.raises(UserError, match=r"data\.bad_limit: found 4 groups that could not be read, expected at most 3"):
        stop_if_many(4, 3)


def test_a_step_without_update_names_precision_and_the_batch() -> None:
    with pytest.raises(UserError) as caught:
        stop_without_update(12, "bf16", StepOutcome(None, True, 1.0), "runs/x/failed/step-00000012")
    assert "say precision=fp32, then" in str(caught.value)
    with pytest.raises(UserError) as caught:
        stop_without_update(12, "fp16", StepOutcome(None, True, 0.5, at_floor=True), "d")
    assert str(caught.value).startswith(
        "precision.min_loss_scale: found overflow at step 12 at the least loss scale, 0.5, expected gradients"
    )
