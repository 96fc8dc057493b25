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


def test_a_distillation_has_no_chance_to_compare_with() -> None:
    assert told([record(5.0)] * 30, labels=None) == []


def test_equal_scores_are_told_as_such() -> None:
    ((number, line),) = told([record(CHANCE, 1e-5)] * 30)
    assert told([record(CHANCE, 1e-5)] * 30, labels=None) == [(number, line)]
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
    whole = told(records)
    for cut in (3, 12, 50, 130):
        first = Health(10, 8.0)
        lines = [(number, line) for number, one in enumerate(records[:cut]) for _, line in first.see(one)]
        second = Health(10, 8.0)
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
