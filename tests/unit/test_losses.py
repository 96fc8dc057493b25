"""The listwise loss: equal to its definition, and untouched by ghosts and empty places."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.model.losses import listwise_cross_entropy

scores = st.floats(-50, 50)


def everything(scores_GP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """present_GP and weight_G of groups without empty places or ghosts."""
    return torch.ones_like(scores_GP, dtype=torch.bool), torch.ones(len(scores_GP))


def reference(rows: list[list[float]]) -> float:
    """Sum over groups of -log(exp(positive) / sum of exp), in Python's floats (64 bits)."""
    total = 0.0
    for row in rows:
        largest = max(row)
        total += largest + math.log(sum(math.exp(score - largest) for score in row)) - row[0]
    return total


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(scores, min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_loss_is_its_definition(rows: list[list[float]]) -> None:
    scores_GP = torch.tensor(rows, dtype=torch.float64)
    loss = listwise_cross_entropy(scores_GP, *everything(scores_GP))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(reference(rows), rel=1e-12, abs=1e-12)


def test_the_gradient_is_softmax_less_the_positive() -> None:
    scores_GP = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    listwise_cross_entropy(scores_GP, *everything(scores_GP)).backward()
    expected = scores_GP.detach().softmax(1)
    expected[:, 0] -= 1
    torch.testing.assert_close(scores_GP.grad, expected, rtol=1e-12, atol=1e-12)


def test_it_is_the_sum_over_groups_and_not_their_mean() -> None:
    scores_GP = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    each = [listwise_cross_entropy(group[None], *everything(group[None])) for group in scores_GP]
    torch.testing.assert_close(listwise_cross_entropy(scores_GP, *everything(scores_GP)), sum(each))


def test_groups_that_score_alike_cost_the_logarithm_of_their_size() -> None:
    scores_GP = torch.zeros(4, 3)
    assert listwise_cross_entropy(scores_GP, *everything(scores_GP)).item() == pytest.approx(4 * math.log(3))


@settings(max_examples=40, deadline=None)
@given(st.lists(scores, min_size=3, max_size=3), st.floats(-1000, 1000))
def test_scores_that_shift_together_change_nothing(row: list[float], shift: float) -> None:
    scores_GP = torch.tensor([row], dtype=torch.float64)
    present_GP, weight_G = everything(scores_GP)
    loss = listwise_cross_entropy(scores_GP, present_GP, weight_G)
    torch.testing.assert_close(
        listwise_cross_entropy(scores_GP + shift, present_GP, weight_G), loss, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("filler", [0.0, 30000.0, -30000.0, math.inf, -math.inf, math.nan])
def test_an_empty_place_takes_no_part_whatever_its_score(filler: float, dtype: torch.dtype) -> None:
    scores_GP = torch.tensor([[0.5, 1.5, filler], [2.0, filler, filler]], dtype=dtype, requires_grad=True)
    present_GP = torch.tensor([[True, True, False], [True, False, False]])
    loss = listwise_cross_entropy(scores_GP, present_GP, torch.ones(2))
    assert loss.item() == pytest.approx(math.log(1 + math.e), rel=1e-6)
    loss.backward()
    assert scores_GP.grad is not None
    assert (scores_GP.grad[~present_GP] == 0).all()
    assert (scores_GP.grad[1] == 0).all()
    assert scores_GP.grad[0, 1].item() == pytest.approx(1 / (1 + 1 / math.e), rel=1e-2)


@pytest.mark.parametrize("score", [0.0, 7.0, math.inf, -math.inf, math.nan])
def test_a_ghost_adds_exactly_nothing_whatever_its_scores(score: float) -> None:
    real_GP = torch.tensor([[1.0, 2.0]], requires_grad=True)
    ghost_GP = torch.tensor([[score, -score]], requires_grad=True)
    weight_G = torch.tensor([1.0, 0.0])
    loss = listwise_cross_entropy(torch.cat([real_GP, ghost_GP]), torch.ones(2, 2, dtype=torch.bool), weight_G)
    assert loss.item() == listwise_cross_entropy(real_GP, *everything(real_GP)).item()
    loss.backward()
    assert ghost_GP.grad is not None
    assert ghost_GP.grad.tolist() == [[0.0, 0.0]]


def test_a_micro_batch_of_a_ghost_alone_still_has_a_gradient() -> None:
    ghost_GP = torch.tensor([[math.inf, math.nan]], requires_grad=True)
    loss = listwise_cross_entropy(ghost_GP, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1))
    loss.backward()
    assert loss.item() == 0.0
    assert ghost_GP.grad is not None
    assert ghost_GP.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_16_bits_are_reckoned_with_in_32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # 4,000 groups: their sum has no place in float16, and bfloat16 would round it to 2 digits.
    scores_GP = (torch.randn(4000, 3, generator=generator) * 20).to(dtype)
    present_GP, weight_G = everything(scores_GP)
    loss = listwise_cross_entropy(scores_GP, present_GP, weight_G)
    assert loss.dtype == torch.float32
    exact = listwise_cross_entropy(scores_GP.double(), present_GP, weight_G)
    assert loss.item() > 65504 / 2
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_a_weight_scales_its_group() -> None:
    scores_GP = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    present_GP, weight_G = everything(scores_GP)
    one, two = (listwise_cross_entropy(scores_GP[[row]], present_GP[[row]], weight_G[[row]]) for row in (0, 1))
    torch.testing.assert_close(
        listwise_cross_entropy(scores_GP, present_GP, torch.tensor([0.5, 2.0])), one / 2 + two * 2
    )
