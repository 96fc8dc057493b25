"""Scores of groups -> one number to minimise. Pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from reranker.data.collate import MicroBatch
from reranker.model.objectives import BY_LABEL, BY_TEACHER, summed

LISTWISE, KL = "listwise", "kl"
NEARLY = 1e-6
"""Of their distances, what scores keep that are as good as equal."""


def listwise_cross_entropy(scores_GP: torch.Tensor, present_GP: torch.Tensor, weight_G: torch.Tensor) -> torch.Tensor:
    """Sum over groups of -log softmax(scores)[positive], in float32 (float64 stays).

    The positive is each group's first passage and its only one, as in FlagEmbedding's encoder-only reranker (its
    mean over groups is this sum divided by their number) and, for one positive, ListNet (Cao et al., 2007).

    Args:
        scores_GP: a score for each passage of each group, any float type.
        present_GP: bool; places that hold no passage are False and take no part.
        weight_G: weight of each group; a group of weight zero (a ghost) adds nothing, whatever its scores:
            it is selected out before the loss, as zero times infinity is not zero.

    Returns: a scalar.
    """
    scores_GP = scores_GP if scores_GP.dtype == torch.float64 else scores_GP.float()
    real_G = weight_G > 0
    scores_GP = torch.where(real_G[:, None], scores_GP, torch.zeros_like(scores_GP))
    scores_GP = scores_GP.masked_fill(~present_GP, torch.finfo(scores_GP.dtype).min)
    target_G = torch.zeros(len(scores_GP), dtype=torch.long, device=scores_GP.device)
    loss_G = functional.cross_entropy(scores_GP, target_G, reduction="none")
    return (loss_G * weight_G.to(loss_G.dtype)).sum()


def listwise_distillation(
    scores_GP: torch.Tensor,
    teacher_GP: torch.Tensor,
    present_GP: torch.Tensor,
    weight_G: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Sum over groups of KL(softmax(teacher / T) || softmax(scores)), in float32 (float64 stays).

    The student learns the teacher's distribution over each group's passages (Hinton et al., 2015; over the passages
    of a query as in RankDistil, Reddi et al., 2021). FlagEmbedding's distillation differs by the teacher's entropy
    alone, which has no gradient. The student's scores are not divided: they are what is ranked by.

    Args:
        scores_GP: a score for each passage of each group, any float type.
        teacher_GP: the teacher's scores; NaN where it gave none. Such a passage takes no part, and a group with
            less than two others adds nothing.
        present_GP, weight_G: as in `listwise_cross_entropy`.
        temperature: T, above 0: smaller is sharper.

    Returns: a scalar.
    """
    scores_GP = scores_GP if scores_GP.dtype == torch.float64 else scores_GP.float()
    known_GP = present_GP & ~teacher_GP.isnan() & (weight_G > 0)[:, None]
    known_GP = known_GP & (known_GP.sum(1) > 1)[:, None]
    least = torch.finfo(scores_GP.dtype).min
    # Selected before any arithmetic: zero times infinity is not zero, and NaN would reach the gradient.
    student_GP = torch.where(known_GP, scores_GP, torch.full_like(scores_GP, least)).log_softmax(1)
    teacher_GP = torch.where(known_GP, teacher_GP.to(scores_GP.dtype) / temperature, torch.full_like(scores_GP, least))
    log_teacher_GP = teacher_GP.log_softmax(1)
    kl_GP = torch.where(known_GP, log_teacher_GP.exp() * (log_teacher_GP - student_GP), torch.zeros_like(scores_GP))
    return (kl_GP.sum(1) * weight_G.to(kl_GP.dtype)).sum()


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses over the groups of a micro-batch.

    Attributes:
        labels: weight of the loss that knows the positives.
        distillation: weight of the loss from a teacher's scores, which `temperature` divides.
        by_label: "listwise", or one of `objectives.BY_LABEL`.
        by_teacher: "kl", or one of `objectives.BY_TEACHER`.
        more: further losses of both kinds with their weights.
        score_temperature: what divides the scores in losses that know the positives.
    """

    labels: float = 1.0
    distillation: float = 0.0
    temperature: float = 1.0
    by_label: str = LISTWISE
    by_teacher: str = KL
    more: tuple[tuple[str, float], ...] = ()
    score_temperature: float = 1.0

    @property
    def softmax_of_labels(self) -> bool:
        """Whether it is a softmax that knows the positives, and nothing beside it."""
        return self.by_label in (LISTWISE, "multi_positive") and not self.distillation and not self.more

    @property
    def learns_from_teacher(self) -> bool:
        return self.distillation > 0 or any(name == KL or name in BY_TEACHER for name, _ in self.more)

    def of_equal_scores(self, scores_GP: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """`of`, were the scores of each group as good as equal: at their mean, in the order that they have.

        The mean counts in losses of a score by itself (pointwise, mse), the order in those that weigh by rank
        (lambdaloss). In float64: float32 would lose the order.
        """
        present_GP, scores_GP = batch.present_GP, scores_GP.double()
        scores_GP = torch.where(present_GP, scores_GP, torch.zeros_like(scores_GP))
        mean_G1 = scores_GP.sum(1, keepdim=True) / present_GP.sum(1, keepdim=True).clamp(min=1)
        return self.of(mean_G1 + NEARLY * (scores_GP - mean_G1), batch)

    def of(self, scores_GP: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """The sum over the groups of a micro-batch on the scores' device."""
        return self(scores_GP, batch.positive_GP, batch.teacher_GP, batch.present_GP, batch.weight_G)

    def __call__(
        self, scores_GP: torch.Tensor, positive_GP: torch.Tensor, teacher_GP: torch.Tensor, present_GP: torch.Tensor,
        weight_G: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """The sum over groups, of a micro-batch's tensors as `MicroBatch` says; a scalar in float32 (float64 stays)."""
        scores_GP = scores_GP if scores_GP.dtype == torch.float64 else scores_GP.float()
        loss = scores_GP.new_zeros((), dtype=torch.float32)
        for name, weight in ((self.by_label, self.labels), (self.by_teacher, self.distillation), *self.more):
            if weight:
                loss = loss + weight * self._one(name, scores_GP, positive_GP, teacher_GP, present_GP, weight_G)
        return loss

    def _one(
        self, name: str, scores_GP: torch.Tensor, positive_GP: torch.Tensor, teacher_GP: torch.Tensor,
        present_GP: torch.Tensor, weight_G: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        if name == LISTWISE:
            return listwise_cross_entropy(scores_GP / self.score_temperature, present_GP, weight_G)
        if name == KL:
            return listwise_distillation(scores_GP, teacher_GP, present_GP, weight_G, self.temperature)
        if name in BY_TEACHER:
            known_GP = present_GP & ~teacher_GP.isnan()
            return summed(BY_TEACHER[name], scores_GP, teacher_GP / self.temperature, known_GP, weight_G)
        return summed(BY_LABEL[name], scores_GP / self.score_temperature, positive_GP, present_GP, weight_G)
