"""Tokenized groups -> one micro-batch of tensors. A padded rectangle: short pairs are filled up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reranker.data.tokenize import Pair


@dataclass(frozen=True)
class MicroBatch:
    """G groups of P passages, N = G x P pairs, padded to L tokens.

    Attributes:
        ids_NL, types_NL: token and segment ids; mask_NL: 1 where there is a token.
        present_GP: False in the places of a group that hold no passage.
        weight_G: 1, or 0 for a ghost.
        positions: of each group, its position in the epoch's order; a ghost has none.
        tokens: tokens that belong to real pairs.
    """

    ids_NL: torch.Tensor
    types_NL: torch.Tensor
    mask_NL: torch.Tensor
    present_GP: torch.Tensor
    weight_G: torch.Tensor
    positions: tuple[int, ...]
    tokens: int

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device; copies from pinned memory do not block."""
        move = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return MicroBatch(**move, positions=self.positions, tokens=self.tokens)

    def pin_memory(self) -> MicroBatch:
        pinned = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return MicroBatch(**pinned, positions=self.positions, tokens=self.tokens)

    @property
    def pairs(self) -> int:
        """Real pairs: passages present in groups that count."""
        return int((self.present_GP & (self.weight_G > 0)[:, None]).sum())


_TENSORS = ("ids_NL", "types_NL", "mask_NL", "present_GP", "weight_G")


def pad_pairs(pairs: Sequence[Pair], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids_NL, types_NL, mask_NL of pairs, each filled up on the right to the longest."""
    longest = max(len(pair.ids) for pair in pairs)
    ids_NL = torch.full((len(pairs), longest), pad_id, dtype=torch.long)
    types_NL = torch.zeros((len(pairs), longest), dtype=torch.long)
    mask_NL = torch.zeros((len(pairs), longest), dtype=torch.long)
    for row, pair in enumerate(pairs):
        ids_NL[row, : len(pair.ids)] = torch.tensor(pair.ids, dtype=torch.long)
        types_NL[row, : len(pair.types)] = torch.tensor(pair.types, dtype=torch.long)
        mask_NL[row, : len(pair.ids)] = 1
    return ids_NL, types_NL, mask_NL


def collate(groups: Sequence[Sequence[Pair]], positions: Sequence[int], passages: int, pad_id: int) -> MicroBatch:
    """The micro-batch of tokenized groups, the positive of each first.

    A group of fewer than `passages` pairs leaves places empty: its last pair stands in and is masked.
    """
    rows = [pair for group in groups for pair in (*group, *[group[-1]] * (passages - len(group)))]
    present = [[place < len(group) for place in range(passages)] for group in groups]
    ids_NL, types_NL, mask_NL = pad_pairs(rows, pad_id)
    return MicroBatch(
        ids_NL, types_NL, mask_NL, torch.tensor(present), torch.ones(len(groups)), tuple(positions),
        tokens=sum(len(pair.ids) for group in groups for pair in group),
    )  # fmt: skip


def ghost(pad_id: int) -> MicroBatch:
    """One shortest pair with weight zero: a rank without groups still takes part in the collectives."""
    ids_NL, types_NL, mask_NL = pad_pairs([Pair([pad_id], [0])], pad_id)
    # A group of two places: the head and the loss see the shape that they always see.
    ids_NL, types_NL, mask_NL = (tensor.repeat(2, 1) for tensor in (ids_NL, types_NL, mask_NL))
    return MicroBatch(ids_NL, types_NL, mask_NL, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1), (), tokens=0)
