"""The losses of a group other than listwise cross-entropy and its distillation, by name. Pure functions of tensors.

Of G groups with P places each takes the scores, what each passage is worth (1 for a positive and 0 for a negative, or a
teacher's score) and which places hold a passage, and gives a loss for each group: means within the group, so that a
group weighs the same whatever its size, and batches of any make-up have the same gradient. Places without a passage may
hold any finite number and take no part; `summed` sees to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

GroupLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(scores_GP, worth_GP, present_GP) -> loss_G."""

MU = 10.0
"""Share of NDCG-Loss2 beside LambdaRank's weights in NDCG-Loss2++, as its authors set it."""


def multi_positive(scores_GP: torch.Tensor, worth_GP: torch.Tensor, present_GP: torch.Tensor) -> torch.Tensor:
    """Mean over positives of -log softmax of the positive among itself and the negatives, never the other positives.

    The localized contrastive estimation of Gao et al. (2021) for several positives; with one it is the listwise
    cross-entropy.
    """
    positive_GP = present_GP & (worth_GP > 0)
    negative_GP = present_GP & ~positive_GP
    lowest = torch.finfo(scores_GP.dtype).min
    negatives_G1 = scores_GP.masked_fill(~negative_GP, lowest).logsumexp(1, keepdim=True)
    return _mean(functional.softplus(negatives_G1 - scores_GP), positive_GP)


def pointwise(scores_GP: torch.Tensor, worth_GP: torch.Tensor, present_GP: torch.Tensor) -> torch.Tensor:
    """Mean over passages of the binary cross-entropy of sigmoid(score) (monoBERT; Nogueira and Cho, 2019)."""
    return _mean(functional.binary_cross_entropy_with_logits(scores_GP, worth_GP, reduction="none"), present_GP)


def ranknet(scores_GP: torch.Tensor, worth_GP: torch.Tensor, present_GP: torch.Tensor) -> torch.Tensor:
    """Mean over pairs, the first worth more, of log(1 + exp(-(its score - the other's))) (Burges et al., 2005)."""
    ordered_GPP = _ordered(worth_GP, present_GP)
    return _mean(functional.softplus(-_differences(scores_GP)), ordered_GPP, (1, 2))


def lambda_loss(scores_GP: torch.Tensor, worth_GP: torch.Tensor, present_GP: torch.Tensor) -> torch.Tensor:
    """RankNet's pairs, each weighted by what swapping its ranks costs in nDCG: NDCG-Loss2++ (Wang et al., 2018).

    Logarithms to base 2, gains 2^worth - 1, and ranks by the scores as they are, equal ones by place.
    """
    places = scores_GP.shape[1]
    order_GP = scores_GP.masked_fill(~present_GP, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank_GP = order_GP.argsort(dim=1) + 1
    gain_GP = (torch.exp2(worth_GP) - 1).masked_fill(~present_GP, 0)
    discounts = torch.log2(1 + torch.arange(1, places + 1, device=scores_GP.device, dtype=scores_GP.dtype))
    ideal_G1 = (gain_GP.sort(dim=1, descending=True).values / discounts).sum(1, keepdim=True)
    gains_GPP = _differences(gain_GP / ideal_G1.clamp(min=1e-10)).abs()
    swap_GPP = _differences(1 / discounts[rank_GP - 1]).abs()
    apart_GPP = _differences(rank_GP).abs()
    inverse = 1 / torch.log2(1 + torch.arange(1, places + 2, device=scores_GP.device, dtype=scores_GP.dtype))
    near_GPP = inverse[(apart_GPP - 1).clamp(min=0)] - inverse[apart_GPP]
    weight_GPP = (MU * near_GPP + swap_GPP) * gains_GPP
    loss_GPP = weight_GPP * functional.softplus(-_differences(scores_GP)) / math.log(2)
    return _mean(loss_GPP, _ordered(worth_GP, present_GP), (1, 2))


def listmle(scores_GP: torch.Tensor, worth_GP: torch.Tensor, present_GP: torch.Tensor) -> torch.Tensor:
    """-log of the Plackett-Luce likelihood of the order by worth, equal ones by place (Xia et al., 2008)."""
    log_GP, present_GP = _plackett_luce(scores_GP, worth_GP, present_GP)
    return -torch.where(present_GP, log_GP, torch.zeros_like(log_GP)).sum(1)


def plistmle(scores_GP: torch.Tensor, worth_GP: torch.Tensor, present_GP: torch.Tensor) -> torch.Tensor:
    """ListMLE whose rank r of n weighs 2^(n - r) - 1, the weights summing to 1 (Lan et al., 2014)."""
    log_GP, present_GP = _plackett_luce(scores_GP, worth_GP, present_GP)
    ranks_P = torch.arange(1, log_GP.shape[1] + 1, device=log_GP.device, dtype=log_GP.dtype)
    # Divided by 2^n, which no float holds for a long list.
    weight_GP = torch.exp2(-ranks_P) - torch.exp2(-present_GP.sum(1, keepdim=True).to(log_GP.dtype))
    weight_GP = weight_GP.masked_fill(~present_GP, 0)
    weight_GP = weight_GP / weight_GP.sum(1, keepdim=True).clamp(min=torch.finfo(log_GP.dtype).tiny)
    return -torch.where(present_GP, weight_GP * log_GP, torch.zeros_like(log_GP)).sum(1)


def mse(scores_GP: torch.Tensor, worth_GP: torch.Tensor, present_GP: torch.Tensor) -> torch.Tensor:
    """Mean over passages of (score - teacher's score)^2: regression, as Cossock and Zhang (2006) of grades."""
    return _mean((scores_GP - worth_GP).square(), present_GP)


def margin_mse(scores_GP: torch.Tensor, worth_GP: torch.Tensor, present_GP: torch.Tensor) -> torch.Tensor:
    """Mean over the other passages of the squared difference of margins to the first (Hofstätter et al., 2020).

    The first passage is a positive; a group without its score adds nothing.
    """
    margins_GP = (scores_GP[:, :1] - scores_GP) - (worth_GP[:, :1] - worth_GP)
    others_GP = present_GP & present_GP[:, :1]
    others_GP = torch.cat([torch.zeros_like(others_GP[:, :1]), others_GP[:, 1:]], dim=1)
    return _mean(margins_GP.square(), others_GP)


BY_LABEL: dict[str, GroupLoss] = {
    "multi_positive": multi_positive,
    "pointwise": pointwise,
    "ranknet": ranknet,
    "lambdaloss": lambda_loss,
    "listmle": listmle,
    "plistmle": plistmle,
}
"""Losses that look at which passage is the positive."""
BY_TEACHER: dict[str, GroupLoss] = {"mse": mse, "margin_mse": margin_mse}
"""Losses that look at a teacher's scores."""


def summed(
    loss: GroupLoss, scores_GP: torch.Tensor, worth_GP: torch.Tensor, present_GP: torch.Tensor, weight_G: torch.Tensor
) -> torch.Tensor:
    """The sum over groups of a loss, in float32 (float64 stays). A ghost adds nothing, whatever its scores are."""
    scores_GP = scores_GP if scores_GP.dtype == torch.float64 else scores_GP.float()
    present_GP = present_GP & (weight_G > 0)[:, None]
    # Selected before any arithmetic: zero times infinity is not zero, and NaN would reach the gradient.
    scores_GP = torch.where(present_GP, scores_GP, torch.zeros_like(scores_GP))
    worth_GP = torch.where(present_GP, worth_GP.to(scores_GP.dtype), torch.zeros_like(scores_GP))
    loss_G = loss(scores_GP, worth_GP, present_GP)
    return (loss_G * weight_G.to(loss_G.dtype)).sum()


def _mean(values: torch.Tensor, of: torch.Tensor, dims: int | tuple[int, ...] = 1) -> torch.Tensor:
    """The mean over those of `of`; 0 where there is none."""
    return torch.where(of, values, torch.zeros_like(values)).sum(dims) / of.sum(dims).clamp(min=1)


def _differences(values_GP: torch.Tensor) -> torch.Tensor:
    return values_GP[:, :, None] - values_GP[:, None, :]


def _ordered(worth_GP: torch.Tensor, present_GP: torch.Tensor) -> torch.Tensor:
    """Pairs of passages, the first worth more than the second."""
    return (_differences(worth_GP) > 0) & present_GP[:, :, None] & present_GP[:, None, :]


def _plackett_luce(
    scores_GP: torch.Tensor, worth_GP: torch.Tensor, present_GP: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log of each passage's softmax among those from its rank on, which ranks are taken), by rank."""
    order_GP = worth_GP.masked_fill(~present_GP, -torch.inf).argsort(dim=1, descending=True, stable=True)
    scores_GP, present_GP = scores_GP.gather(1, order_GP), present_GP.gather(1, order_GP)
    lowest = torch.finfo(scores_GP.dtype).min
    rest_GP = scores_GP.masked_fill(~present_GP, lowest).flip(1).logcumsumexp(1).flip(1)
    return scores_GP - rest_GP, present_GP
