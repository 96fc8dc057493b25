"""Scores of groups -> one number to minimise. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch.nn import functional


def listwise_cross_entropy(scores_GP: torch.Tensor, present_GP: torch.Tensor, weight_G: torch.Tensor) -> torch.Tensor:
    """Sum over groups of -log softmax(scores)[positive], in float32 (float64 stays).

    The positive is each group's first passage, as in FlagEmbedding's encoder-only reranker (its mean over
    groups is this sum divided by their number) and, for one positive, ListNet (Cao et al., 2007).

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
