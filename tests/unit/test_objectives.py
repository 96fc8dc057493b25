"""Every loss: its definition in Python's floats, an independent implementation where there is one, and its gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.checks import loss_weights
from reranker.config.training import LossConfig
from reranker.data.collate import collate
from reranker.data.tokenize import Pair
from reranker.errors import UserError
from reranker.model.losses import Objective, listwise_cross_entropy, listwise_distillation
from reranker.model.objectives import BY_LABEL, BY_TEACHER, summed

EVERY = {**BY_LABEL, **BY_TEACHER}


def batch(groups: int, places: int, seed: int = 0, teacher: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Random scores_GP and worth_GP: the first passage alone is right, or a teacher's scores."""
    generator = torch.Generator().manual_seed(seed)
    scores_GP = torch.randn(groups, places, generator=generator, dtype=torch.float64) * 3
    worth_GP = torch.randn(groups, places, generator=generator, dtype=torch.float64)
    return scores_GP, worth_GP if teacher else (torch.arange(places) == 0).double().expand(groups, places)


def every(worth_GP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones_like(worth_GP, dtype=torch.bool), torch.ones(len(worth_GP), dtype=torch.float64)


def softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def multi_positive(scores: list[float], worth: list[float]) -> float:
    negatives = sum(math.exp(s) for s, w in zip(scores, worth, strict=True) if w <= 0)
    found = [-math.log(math.exp(s) / (math.exp(s) + negatives)) for s, w in zip(scores, worth, strict=True) if w > 0]
    return sum(found) / len(found) if found else 0.0


def pointwise(scores: list[float], worth: list[float]) -> float:
    return sum(w * softplus(-s) + (1 - w) * softplus(s) for s, w in zip(scores, worth, strict=True)) / len(scores)


def pairs(scores: list[float], worth: list[float], weight: Callable[[int, int], float]) -> float:
    found = [
        weight(i, j) * softplus(scores[j] - scores[i])
        for i, j in itertools.permutations(range(len(scores)), 2) if worth[i] > worth[j]
    ]  # fmt: skip
    return sum(found) / len(found) if found else 0.0


def ranknet(scores: list[float], worth: list[float]) -> float:
    return pairs(scores, worth, lambda i, j: 1.0)


def lambdaloss(scores: list[float], worth: list[float]) -> float:
    ranks = {place: rank for rank, place in enumerate(sorted(range(len(scores)), key=lambda p: -scores[p]), 1)}
    ideal = sum((2**w - 1) / math.log2(1 + rank) for rank, w in enumerate(sorted(worth, reverse=True), 1))

    def weight(i: int, j: int) -> float:
        apart, gain = abs(ranks[i] - ranks[j]), abs(2 ** worth[i] - 2 ** worth[j]) / ideal
        second = abs(1 / math.log2(1 + apart) - 1 / math.log2(2 + apart))
        swap = abs(1 / math.log2(1 + ranks[i]) - 1 / math.log2(1 + ranks[j]))
        return (10 * second + swap) * gain / math.log(2)

    return pairs(scores, worth, weight)


def plackett_luce(scores: list[float], worth: list[float], weights: list[float]) -> float:
    order = sorted(range(len(scores)), key=lambda place: -worth[place])
    total = 0.0
    for rank, place in enumerate(order):
        total -= weights[rank] * (scores[place] - math.log(sum(math.exp(scores[other]) for other in order[rank:])))
    return total


def listmle(scores: list[float], worth: list[float]) -> float:
    return plackett_luce(scores, worth, [1.0] * len(scores))


def plistmle(scores: list[float], worth: list[float]) -> float:
    weights = [2.0 ** (len(scores) - rank) - 1 for rank in range(1, len(scores) + 1)]
    return plackett_luce(scores, worth, [weight / (sum(weights) or 1.0) for weight in weights])


def mse(scores: list[float], worth: list[float]) -> float:
    return sum((s - w) ** 2 for s, w in zip(scores, worth, strict=True)) / len(scores)


def margin_mse(scores: list[float], worth: list[float]) -> float:
    found = [
        (scores[0] - s - (worth[0] - w)) ** 2 for s, w in itertools.islice(zip(scores, worth, strict=True), 1, None)
    ]
    return sum(found) / len(found) if found else 0.0


REFERENCES = {
    "multi_positive": multi_positive, "pointwise": pointwise, "ranknet": ranknet, "lambdaloss": lambdaloss,
    "listmle": listmle, "plistmle": plistmle, "mse": mse, "margin_mse": margin_mse,
}  # fmt: skip
number = st.floats(-20, 20)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=40)
@given(
    rows=st.lists(st.lists(st.tuples(number, st.booleans(), number), min_size=1, max_size=6), min_size=1, max_size=4)
)
def test_every_loss_is_its_definition_for_groups_of_any_size(
    name: str, rows: list[list[tuple[float, bool, float]]]
) -> None:
    places = max(map(len, rows)) + 1
    scores_GP = torch.full((len(rows), places), math.nan, dtype=torch.float64)
    worth_GP, present_GP = scores_GP.clone(), torch.zeros_like(scores_GP, dtype=torch.bool)
    expected = 0.0
    for number, row in enumerate(rows):
        scores = [score for score, _, _ in row]
        worth = [value if name in BY_TEACHER else float(right) for _, right, value in row]
        scores_GP[number, : len(row)] = torch.tensor(scores, dtype=torch.float64)
        worth_GP[number, : len(row)] = torch.tensor(worth, dtype=torch.float64)
        present_GP[number, : len(row)] = True
        expected += REFERENCES[name](scores, worth)
    scores_GP.requires_grad_()
    loss = summed(EVERY[name], scores_GP, worth_GP, present_GP, torch.ones(len(rows)))
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, scores_GP)
    assert gradient.isfinite().all()
    assert (gradient[~present_GP] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_is_that_of_the_loss(name: str) -> None:
    scores_GP, worth_GP = batch(4, 5, teacher=name in BY_TEACHER)
    present_GP, weight_G = every(worth_GP)
    present_GP[1, 3:] = False
    assert torch.autograd.gradcheck(
        lambda scores: summed(EVERY[name], scores, worth_GP, present_GP, weight_G), scores_GP.requires_grad_()
    )


def scored(scores_GP: torch.Tensor) -> Any:
    """A model of sentence-transformers that scores pairs by the number that stands for the passage."""
    from sentence_transformers import CrossEncoder

    class Scored(CrossEncoder):
        num_labels, device = 1, torch.device("cpu")  # type: ignore[assignment]

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def preprocess(self, pairs: Any, *_: Any, **__: Any) -> Any:
            return {"places": torch.tensor([int(passage) for _, passage in pairs])}

        def forward(self, tokens: Any, **_: Any) -> Any:
            return {"scores": scores_GP.flatten()[tokens["places"]]}

    return Scored()


@pytest.mark.parametrize("places", [2, 8, 40])
@pytest.mark.parametrize("name", ["pointwise", "ranknet", "lambdaloss", "listmle", "plistmle", "mse", "margin_mse"])
def test_every_loss_is_that_of_sentence_transformers(name: str, places: int) -> None:
    from sentence_transformers.cross_encoder import losses

    scores_GP, worth_GP = (tensor.float() for tensor in batch(3, places, seed=places, teacher=name in BY_TEACHER))
    ours = summed(EVERY[name], scores_GP, worth_GP, *every(worth_GP)) / len(scores_GP)
    model = scored(scores_GP)
    queries, passages = lists_of(scores_GP)
    lists = {
        "ranknet": losses.RankNetLoss, "lambdaloss": losses.LambdaLoss, "listmle": losses.ListMLELoss,
        "plistmle": losses.PListMLELoss,
    }  # fmt: skip
    if name in lists:
        if name == "ranknet":
            theirs = lists[name](model, reduction_log="natural")([queries, passages], list(worth_GP))
        else:
            theirs = lists[name](model)([queries, passages], list(worth_GP))
    elif name == "margin_mse":
        theirs = losses.MarginMSELoss(model)([queries, *map(list, zip(*passages, strict=True))], worth_GP)
    else:
        flat = [query for query in queries for _ in range(places)], [one for row in passages for one in row]
        loss = {"pointwise": losses.BinaryCrossEntropyLoss, "mse": losses.MSELoss}[name](model)
        theirs = loss([list(column) for column in flat], worth_GP.flatten())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("places", [4, 40])
@pytest.mark.parametrize("name", ["pointwise", "ranknet", "lambdaloss"])
def test_with_several_positives_a_loss_is_still_that_of_sentence_transformers(name: str, places: int) -> None:
    from sentence_transformers.cross_encoder import losses

    scores_GP, _ = (tensor.float() for tensor in batch(3, places, seed=places))
    worth_GP = (torch.arange(places) < torch.tensor([[1], [2], [3]])).float()
    ours = summed(EVERY[name], scores_GP, worth_GP, *every(worth_GP)) / len(scores_GP)
    model, (queries, passages) = scored(scores_GP), lists_of(scores_GP)
    if name == "pointwise":
        flat = [query for query in queries for _ in range(places)], [one for row in passages for one in row]
        theirs = losses.BinaryCrossEntropyLoss(model)([list(column) for column in flat], worth_GP.flatten())
    else:
        # Theirs is a mean over the pairs of a batch, ours over those of each group: one group at a time.
        loss = losses.LambdaLoss(model) if name == "lambdaloss" else losses.RankNetLoss(model, reduction_log="natural")
        each = zip(queries, passages, worth_GP, strict=True)
        theirs = torch.stack([loss([[query], [row]], [worth_P]) for query, row, worth_P in each]).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("places", [4, 40])
def test_the_listwise_losses_are_listnet_of_sentence_transformers(places: int) -> None:
    """Its labels go through a softmax: those far apart are one positive, a teacher's scores are its distribution."""
    from sentence_transformers.cross_encoder import losses

    scores_GP, teacher_GP = (tensor.float() for tensor in batch(3, places, seed=places, teacher=True))
    (queries, passages), listnet = lists_of(scores_GP), losses.ListNetLoss(scored(scores_GP))
    first_GP = (torch.arange(places) == 0).float().expand(3, places)
    ours = listwise_cross_entropy(scores_GP, *every(scores_GP)) / 3
    torch.testing.assert_close(ours, listnet([queries, passages], list(200 * first_GP)), rtol=1e-6, atol=1e-6)

    entropy = torch.distributions.Categorical(logits=teacher_GP / 0.5).entropy().mean()
    ours = listwise_distillation(scores_GP, teacher_GP, *every(scores_GP), temperature=0.5) / 3
    theirs = listnet([queries, passages], list(teacher_GP / 0.5)) - entropy
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)

    # Several positives: the mean over them of what each is among the negatives.
    positive_GP = (torch.arange(places) < torch.tensor([[1], [2], [3]])).float()
    ours = summed(EVERY["multi_positive"], scores_GP, positive_GP, *every(positive_GP)) / 3
    means = []
    for query, row, count in zip(queries, passages, (1, 2, 3), strict=True):
        alone = [[query] * count, [[row[place], *row[count:]] for place in range(count)]]
        means.append(listnet(alone, [200.0 * (torch.arange(1 + places - count) == 0)] * count))
    torch.testing.assert_close(ours, torch.stack(means).mean(), rtol=1e-6, atol=1e-6)


def lists_of(scores_GP: torch.Tensor) -> tuple[list[str], list[list[str]]]:
    """(queries, the passages of each) for `scored`."""
    groups, places = scores_GP.shape
    passages = [[str(group * places + place) for place in range(places)] for group in range(groups)]
    return [f"query {group}" for group in range(groups)], passages


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("score", [0.0, 7.0, math.inf, -math.inf, math.nan])
def test_a_ghost_adds_exactly_nothing_to_any_loss(name: str, score: float) -> None:
    real_GP, worth_GP = batch(1, 3, teacher=name in BY_TEACHER)
    real_GP, ghost_GP = real_GP.requires_grad_(), torch.full((1, 3), score, dtype=torch.float64, requires_grad=True)
    both = torch.cat([worth_GP, worth_GP])
    loss = summed(EVERY[name], torch.cat([real_GP, ghost_GP]), both, *every(both)[:1], torch.tensor([1.0, 0.0]))
    assert loss.item() == summed(EVERY[name], real_GP, worth_GP, *every(worth_GP)).item()
    loss.backward()
    assert ghost_GP.grad is not None
    assert ghost_GP.grad.tolist() == [[0.0] * 3]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_16_bits_are_reckoned_with_in_32_bits(name: str, dtype: torch.dtype) -> None:
    scores_GP, worth_GP = batch(2000, 3, teacher=name in BY_TEACHER)
    scores_GP = scores_GP.to(dtype)
    loss = summed(EVERY[name], scores_GP, worth_GP, *every(worth_GP))
    exact = summed(EVERY[name], scores_GP.double(), worth_GP, *every(worth_GP))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_group_weighs_the_same_in_any_batch() -> None:
    for name, loss in EVERY.items():
        scores_GP, worth_GP = batch(6, 4, teacher=name in BY_TEACHER)
        whole = summed(loss, scores_GP, worth_GP, *every(worth_GP))
        each = [summed(loss, scores_GP[[n]], worth_GP[[n]], *every(worth_GP[[n]])) for n in range(6)]
        torch.testing.assert_close(whole, sum(each), rtol=1e-12, atol=0)  # type: ignore[arg-type]


def test_with_one_positive_the_multi_positive_loss_is_the_listwise_one() -> None:
    scores_GP, worth_GP = batch(5, 4)
    ours = summed(EVERY["multi_positive"], scores_GP, worth_GP, *every(worth_GP))
    torch.testing.assert_close(ours, listwise_cross_entropy(scores_GP, *every(worth_GP)))


def test_an_objective_takes_the_positives_that_a_group_shows() -> None:
    scores_GP = torch.tensor([[0.3, -1.2, 0.8, 0.1], [2.0, 0.5, -0.4, 1.1]], dtype=torch.float64)
    positive_GP = torch.tensor([[True, True, False, False], [True, False, False, False]])
    present_GP, weight_G = every(scores_GP)
    objective = Objective(by_label="multi_positive")
    found = objective(scores_GP, positive_GP, torch.full_like(scores_GP, math.nan), present_GP, weight_G)
    rows = zip(scores_GP.tolist(), positive_GP.double().tolist(), strict=True)
    assert found.item() == pytest.approx(sum(multi_positive(*row) for row in rows), rel=1e-9)


def test_an_objective_is_the_weighted_sum_of_its_losses() -> None:
    scores_GP, labels_GP = batch(5, 4)
    teacher_GP = batch(5, 4, seed=1, teacher=True)[1]
    teacher_GP[2, 1] = math.nan  # a passage of another group
    rest = every(labels_GP)
    objective = Objective(0.5, 2.0, 4.0, "pointwise", "margin_mse", (("mse", 0.1), ("ranknet", 3.0)))
    known_GP = rest[0] & ~teacher_GP.isnan()
    expected = (
        0.5 * summed(EVERY["pointwise"], scores_GP, labels_GP, *rest)
        + 3.0 * summed(EVERY["ranknet"], scores_GP, labels_GP, *rest)
        + 2.0 * summed(EVERY["margin_mse"], scores_GP, teacher_GP / 4, known_GP, rest[1])
        + 0.1 * summed(EVERY["mse"], scores_GP, teacher_GP / 4, known_GP, rest[1])
    )
    torch.testing.assert_close(
        objective(scores_GP, labels_GP > 0, teacher_GP, *rest), expected, rtol=1e-6, atol=1e-6, check_dtype=False
    )


def test_a_temperature_of_the_scores_is_one_of_the_losses_by_label_alone() -> None:
    scores_GP, labels_GP = batch(5, 4)
    teacher_GP = batch(5, 4, seed=1, teacher=True)[1]
    rest = every(labels_GP)

    def found(by_label: str, labels: float, temperature: float, scores_GP: torch.Tensor) -> torch.Tensor:
        objective = Objective(labels, 2.0, by_label=by_label, by_teacher="mse", score_temperature=temperature)
        return objective(scores_GP, labels_GP > 0, teacher_GP, *rest)

    for name in ("listwise", *BY_LABEL):
        of_labels = found(name, 1.0, 0.05, scores_GP) - found(name, 0.0, 0.05, scores_GP)
        divided = found(name, 1.0, 1.0, scores_GP / 0.05) - found(name, 0.0, 1.0, scores_GP / 0.05)
        torch.testing.assert_close(of_labels, divided)
    torch.testing.assert_close(found("listwise", 0.0, 0.05, scores_GP), found("listwise", 0.0, 1.0, scores_GP))


def test_the_loss_of_equal_scores_is_that_of_the_definitions_at_their_mean() -> None:
    scores, teacher = [3.0, -1.0, 0.4, 1.2], [1.5, 0.0, math.nan, -0.5]
    mean, known = 0.9, [1.5, 0.0, -0.5]
    share = [math.exp(value) / sum(map(math.exp, known)) for value in known]
    expected = {
        "listwise": math.log(4),
        "multi_positive": math.log(4),
        "pointwise": (softplus(-mean) + 3 * softplus(mean)) / 4,
        "ranknet": math.log(2),
        "listmle": math.log(24),
        "kl": math.log(3) + sum(value * math.log(value) for value in share),
        "mse": sum((mean - value) ** 2 for value in known) / 3,
        "margin_mse": (1.5**2 + 2.0**2) / 2,
    }
    one = collate([[Pair([7], [0])] * 4], [0], 4, pad_id=1, teacher=[teacher])
    for name, value in expected.items():
        objective = Objective(labels=0.0, more=((name, 2.0),))
        found = objective.of_equal_scores(torch.tensor([scores]), one)
        assert found.item() == pytest.approx(2 * value, rel=1e-4), name


@pytest.mark.parametrize("name", ["listwise", "kl", *EVERY])
def test_scores_that_have_collapsed_have_the_loss_of_equal_ones_whatever_the_loss(name: str) -> None:
    """Also where ranks weigh, which scores have however close they are; float32 has them around 20 as well."""
    draw = torch.Generator().manual_seed(1)
    groups = collate([[Pair([7], [0])] * 5, [Pair([7], [0])] * 3, [Pair([7], [0])] * 4], range(3), 5, pad_id=1,
                     teacher=[[3.0, 1.0, 0.0, -1.0, -3.0], [0.5, 2.0, 1.0], [4.0, 1.0, math.nan, 0.0]])  # fmt: skip
    objective = Objective(labels=0.0, more=((name, 1.0),))
    for _ in range(20):
        apart_GP = torch.randn(3, 5, generator=draw)
        close_GP = 20 + 0.002 * apart_GP
        equal = objective.of_equal_scores(close_GP, groups).item()
        assert objective.of(close_GP, groups).item() == pytest.approx(equal, rel=0.005)
        assert objective.of(5 * apart_GP, groups).item() != pytest.approx(equal, rel=0.005)


def test_a_softmax_of_labels_alone_and_a_teacher_are_known_as_such() -> None:
    for objective, softmax, teacher in (
        (Objective(2.0), True, False),
        (Objective(by_label="multi_positive"), True, False),
        (Objective(by_label="pointwise"), False, False),
        (Objective(distillation=0.1), False, True),
        (Objective(more=(("ranknet", 1.0),)), False, False),
        (Objective(more=(("kl", 1.0),)), False, True),
        (Objective(more=(("margin_mse", 1.0),)), False, True),
    ):
        assert (objective.softmax_of_labels, objective.learns_from_teacher) == (softmax, teacher)


def test_names_and_weights_of_more_losses_are_checked() -> None:
    assert loss_weights(LossConfig(more={"ranknet": 0.5, "mse": 2.0})) == (1.5, 2.0)
    with pytest.raises(UserError, match=r"^loss\.more: found ranknett, expected one of .*; did you mean ranknet\?$"):
        loss_weights(LossConfig(more={"ranknett": 1.0}))
    with pytest.raises(
        UserError, match=r"^loss\.more\.kl: found -1\.0, expected a number, 0 or more; change the value$"
    ):
        loss_weights(LossConfig(more={"kl": -1.0}))
    with pytest.raises(
        UserError, match=r"^loss\.more: found 'ranknet', expected losses with their weights; say loss\.more"
    ):
        loss_weights(LossConfig(more="ranknet"))
