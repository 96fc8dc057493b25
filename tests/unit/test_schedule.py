"""The learning rate of every step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reranker.train.schedule import learning_rate


def test_without_warm_up_the_rate_falls_linearly_from_its_peak() -> None:
    assert [learning_rate(step, 4, 1.0, 0.0) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_warm_up_rises_to_the_peak_and_wastes_no_step() -> None:
    rates = [learning_rate(step, 10, 1.0, 0.4) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.0), (10, 0.3), (47, 0.1), (1, 0.0), (7, 0.9)])
def test_it_is_transformers_schedule_but_for_the_shifted_warm_up(steps: int, warmup: float) -> None:
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-5)
    rising = int(steps * warmup)
    theirs = get_linear_schedule_with_warmup(optimizer, rising, steps)
    for step in range(steps):
        shift = 1 if step < rising else 0
        expected = theirs.lr_lambdas[0](step + shift) * 2e-5
        assert learning_rate(step, steps, 2e-5, warmup) == pytest.approx(expected, rel=1e-12)


@given(steps=st.integers(1, 10_000), warmup=st.floats(0, 1), data=st.data())
def test_the_rate_is_above_zero_and_no_more_than_its_peak(steps: int, warmup: float, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1))
    assert 0 < learning_rate(step, steps, 5e-6, warmup) <= 5e-6
    assert learning_rate(steps, steps, 5e-6, warmup) == 0
