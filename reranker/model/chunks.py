"""A micro-batch -> its gradient, also where its pairs do not fit into memory together: chunk by chunk (GradCache).

The loss of a group needs the scores of all its passages, and no more than those. So a micro-batch in several chunks is
scored without a graph first; then the loss and its gradient by each score are known, and every chunk runs once more,
forward and backward from that gradient. The sum is the gradient of the whole, for one forward pass more and the memory
of one chunk (Gao et al., 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from reranker.data.collate import MicroBatch, PackedPairs, ghost
from reranker.data.permutation import keyed
from reranker.model.losses import Objective

Score = Callable[[PackedPairs], torch.Tensor]
"""N pairs on the device -> scores_N."""


def split(pairs: PackedPairs, tokens: int | None, packed: bool) -> list[PackedPairs]:
    """`pairs` cut, in their order, into chunks that cost `tokens` at most, or that are a single pair; None: not at all.

    `packed`: a chunk costs its tokens; if not, its pairs, each padded to the longest.
    """
    if tokens is None or cost(pairs, packed) <= tokens:
        return [pairs]
    lengths = pairs.cu_seqlens.diff().tolist()
    borders = [0]
    for number in range(1, len(lengths)):
        inside = lengths[borders[-1] : number + 1]
        if (sum(inside) if packed else len(inside) * max(inside)) > tokens:
            borders.append(number)
    return [_slice(pairs, first, last) for first, last in zip(borders, [*borders[1:], len(lengths)], strict=True)]


def cost(pairs: PackedPairs, packed: bool) -> int:
    """Tokens that a forward pass computes."""
    return pairs.tokens if packed else len(pairs) * pairs.longest


def forward_and_backward(
    batch: MicroBatch,
    chunks: Sequence[PackedPairs],
    passes: int,
    *,
    objective: Objective,
    score: Score,
    backward: Callable[[torch.Tensor], object],
    share: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores_GP, loss) of a micro-batch, whose gradient, times `share`, goes through `backward`.

    Args:
        batch: on the device.
        chunks: its pairs, anywhere; one chunk is the plain forward and backward.
        passes: chunks of the rank that has the most: with fewer, a shortest pair takes part in the collectives of the
            others and adds nothing.
        seed: of dropout, which a chunk draws alike in both of its passes, whatever the other ranks do.
    """
    if passes == 1:
        torch.manual_seed(seed)
        scores_GP = score(batch.packed).view(batch.present_GP.shape)
        loss = objective.of(scores_GP, batch)
        backward(loss * share)
        return scores_GP.detach(), loss.detach()
    nothing = ghost(pad_id=batch.packed.pad_id).packed
    every = [chunk.to(batch.weight_G.device) for chunk in (*chunks, *[nothing] * (passes - len(chunks)))]
    found = []
    with torch.no_grad():
        for number, chunk in enumerate(every):
            _seed(seed, number)
            found.append(score(chunk))
    scores_N = torch.cat(found[: len(chunks)])
    # In float32: without the loss scale, which comes behind, 16 bits would lose small gradients.
    scores_N = (scores_N if scores_N.dtype == torch.float64 else scores_N.float()).requires_grad_()
    loss = objective.of(scores_N.view(batch.present_GP.shape), batch)
    (gradient_N,) = torch.autograd.grad(loss * share, scores_N)
    parts = gradient_N.split([len(chunk) for chunk in chunks])
    for number, chunk in enumerate(every):
        _seed(seed, number)
        again_N = score(chunk).to(scores_N.dtype)
        part_N = parts[number] if number < len(parts) else torch.zeros_like(again_N)
        backward((again_N * part_N).sum())  # whose gradient by the scores is theirs, whatever the scores are
    return scores_N.detach().view(batch.present_GP.shape), loss.detach()


def _seed(seed: int, number: int) -> None:
    """The first chunk draws as a micro-batch of one chunk does."""
    torch.manual_seed(keyed(seed, number) if number else seed)


def _slice(pairs: PackedPairs, first: int, last: int) -> PackedPairs:
    """The pairs from `first` to before `last`."""
    cu_seqlens = pairs.cu_seqlens[first : last + 1]
    start, end = int(cu_seqlens[0]), int(cu_seqlens[-1])
    return dataclasses.replace(
        pairs, ids_T=pairs.ids_T[start:end], types_T=pairs.types_T[start:end], cu_seqlens=cu_seqlens - start,
        longest=int(cu_seqlens.diff().max()),
    )  # fmt: skip
