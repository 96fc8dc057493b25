"""The listwise loss: equal to its definition, and untouched by ghosts and empty places."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.model.losses import Objective, listwise_cross_entropy, listwise_distillation

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


@settings(max_examples=80)
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


@settings(max_examples=40)
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


# --- distillation ---------------------------------------------------------------------------------------------


def divergence(student: list[float], teacher: list[float]) -> float:
    """KL(softmax(teacher) || softmax(student)) in Python's floats."""

    def logs(row: list[float]) -> list[float]:
        largest = max(row)
        total = largest + math.log(sum(math.exp(score - largest) for score in row))
        return [score - total for score in row]

    return sum(math.exp(t) * (t - s) for s, t in zip(logs(student), logs(teacher), strict=True))


rows_of_four = st.lists(scores, min_size=4, max_size=4)


@settings(max_examples=80)
@given(st.lists(st.tuples(rows_of_four, rows_of_four), min_size=1, max_size=4), st.sampled_from([0.5, 1.0, 2.0]))
def test_distillation_is_its_definition(rows: list[tuple[list[float], list[float]]], temperature: float) -> None:
    student_GP, teacher_GP = (torch.tensor([row[k] for row in rows], dtype=torch.float64) for k in (0, 1))
    loss = listwise_distillation(student_GP, teacher_GP, *everything(student_GP), temperature)
    expected = sum(divergence(student, [score / temperature for score in teacher]) for student, teacher in rows)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_distillation_pulls_the_students_softmax_to_the_teachers() -> None:
    student_GP = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    teacher_GP = torch.tensor([[3.0, 0.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    listwise_distillation(student_GP, teacher_GP, *everything(student_GP)).backward()
    expected = student_GP.detach().softmax(1) - teacher_GP.softmax(1)
    torch.testing.assert_close(student_GP.grad, expected, rtol=1e-12, atol=1e-12)


def test_distillation_has_the_gradient_of_flagembeddings() -> None:
    generator = torch.Generator().manual_seed(3)
    student_GP = torch.randn(4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher_GP = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    # Its encoder-only reranker: -mean(sum(log_softmax(scores) * teacher_targets)), over groups.
    theirs = -(student_GP.log_softmax(1) * teacher_GP.softmax(1)).sum(1).mean()
    (expected,) = torch.autograd.grad(theirs, student_GP)
    (found,) = torch.autograd.grad(
        listwise_distillation(student_GP, teacher_GP, *everything(student_GP)) / 4, student_GP
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_distillation_leaves_out_passages_that_the_teacher_did_not_score() -> None:
    student_GP = torch.tensor([[1.0, 2.0, -1.0, 7.0]], requires_grad=True)
    teacher_GP = torch.tensor([[3.0, 0.0, 1.0, math.nan]])
    loss = listwise_distillation(student_GP, teacher_GP, *everything(student_GP))
    loss.backward()
    assert loss.item() == pytest.approx(divergence([1.0, 2.0, -1.0], [3.0, 0.0, 1.0]), rel=1e-5)
    assert student_GP.grad is not None
    assert student_GP.grad[0, 3] == 0


@pytest.mark.parametrize("known", [0, 1])
def test_distillation_of_a_group_of_less_than_two_known_passages_is_nothing(known: int) -> None:
    student_GP = torch.tensor([[1.0, 2.0, -1.0]], requires_grad=True)
    teacher_GP = torch.full((1, 3), math.nan)
    teacher_GP[0, :known] = 1.0
    loss = listwise_distillation(student_GP, teacher_GP, *everything(student_GP))
    loss.backward()
    assert loss.item() == 0
    assert student_GP.grad is not None
    assert student_GP.grad.abs().max() == 0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_ghost_adds_nothing_to_any_part_of_an_objective_whatever_its_scores(bad: float) -> None:
    real_GP = torch.tensor([[1.0, 0.5], [bad, bad]], requires_grad=True)
    teacher_GP = torch.tensor([[2.0, 1.0], [math.nan, math.nan]])
    present_GP, weight_G = torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, 0.0])
    objective = Objective(labels=0.5, distillation=2.0)
    positive_GP = torch.tensor([[True, False]]).expand(2, 2)
    loss = objective(real_GP, positive_GP, teacher_GP, present_GP, weight_G)
    loss.backward()
    alone = objective(real_GP[:1].detach(), positive_GP[:1], teacher_GP[:1], present_GP[:1], weight_G[:1])
    assert loss.item() == pytest.approx(alone.item())
    assert real_GP.grad is not None
    assert real_GP.grad[1].abs().max() == 0
    assert real_GP.grad.isfinite().all()


def test_an_objective_is_the_weighted_sum_of_its_parts() -> None:
    generator = torch.Generator().manual_seed(1)
    scores_GP, teacher_GP = (torch.randn(3, 4, generator=generator) for _ in range(2))
    rest = everything(scores_GP)
    first_GP = (torch.arange(4) == 0).expand(3, 4)
    both = Objective(labels=0.3, distillation=0.7, temperature=2.0)(scores_GP, first_GP, teacher_GP, *rest)
    parts = 0.3 * listwise_cross_entropy(scores_GP, *rest)
    parts = parts + 0.7 * listwise_distillation(scores_GP, teacher_GP, *rest, 2.0)
    assert both.item() == pytest.approx(parts.item(), rel=1e-6)
    assert Objective()(scores_GP, first_GP, teacher_GP, *rest).item() == listwise_cross_entropy(scores_GP, *rest).item()
