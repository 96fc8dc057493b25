"""Tokenized groups -> one micro-batch of tensors. A padded rectangle: short pairs are filled up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reranker.data.tokenize import Pair


@dataclass(frozen=True)
class MicroBatch:
    """G groups of P passages, N = G x P pairs, padded to L tokens.

    Attributes:
        ids_NL, types_NL: token and segment ids; mask_NL: 1 where there is a token.
        present_GP: False in the places of a group that hold no passage.
        weight_G: 1, or 0 for a ghost.
        teacher_GP: the teacher's score of each passage, NaN where it gave none.
        positions: of each group that counts, its position in the epoch's order; a ghost has none.
        tokens: tokens that belong to pairs of groups that count.
        bad: of each group that could not be read and has weight zero, why; such groups come last.
    """

    ids_NL: torch.Tensor
    types_NL: torch.Tensor
    mask_NL: torch.Tensor
    present_GP: torch.Tensor
    weight_G: torch.Tensor
    teacher_GP: torch.Tensor
    positions: tuple[int, ...]
    tokens: int
    bad: tuple[str, ...] = ()

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device; copies from pinned memory do not block."""
        move = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return dataclasses.replace(self, **move)

    def pin_memory(self) -> MicroBatch:
        pinned = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return dataclasses.replace(self, **pinned)

    def __reduce__(self) -> tuple[Any, ...]:
        # A tensor that comes from a worker holds a descriptor until it is used, and a step has many: arrays travel
        # as bytes.
        return _from_arrays, (
            {name: getattr(self, name).numpy() for name in _TENSORS},
            self.positions,
            self.tokens,
            self.bad,
        )

    @property
    def pairs(self) -> int:
        """Real pairs: passages present in groups that count."""
        return int((self.present_GP & (self.weight_G > 0)[:, None]).sum())


_TENSORS = ("ids_NL", "types_NL", "mask_NL", "present_GP", "weight_G", "teacher_GP")


def _from_arrays(arrays: dict[str, Any], positions: tuple[int, ...], tokens: int, bad: tuple[str, ...]) -> MicroBatch:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return MicroBatch(**tensors, positions=positions, tokens=tokens, bad=bad)


def pad_pairs(pairs: Sequence[Pair], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids_NL, types_NL, mask_NL of pairs, each filled up on the right to the longest."""
    lengths = np.array([len(pair.ids) for pair in pairs])
    longest = int(lengths.max())
    # Filled as arrays: a tensor for each row takes longer than its tokens took to be found.
    ids_NL = np.full((len(pairs), longest), pad_id, dtype=np.int64)
    types_NL = np.zeros((len(pairs), longest), dtype=np.int64)
    mask_NL = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    for row, pair in enumerate(pairs):
        ids_NL[row, : len(pair.ids)] = pair.ids
        types_NL[row, : len(pair.types)] = pair.types
    return torch.from_numpy(ids_NL), torch.from_numpy(types_NL), torch.from_numpy(mask_NL)


def collate(
    groups: Sequence[Sequence[Pair]],
    positions: Sequence[int],
    passages: int,
    pad_id: int,
    bad: Sequence[str] = (),
    teacher: Sequence[Sequence[float]] | None = None,
) -> MicroBatch:
    """The micro-batch of tokenized groups, the positive of each first, with a teacher's scores of their passages.

    A group of fewer than `passages` pairs leaves places empty: its last pair stands in and is masked. For each
    group of `bad` there are shortest pairs of weight zero: the batch keeps its shape and they teach nothing.
    """
    nothing = [[Pair([pad_id], [0])] * passages for _ in bad]
    rows = [pair for group in (*groups, *nothing) for pair in (*group, *[group[-1]] * (passages - len(group)))]
    present = [[place < len(group) for place in range(passages)] for group in (*groups, *nothing)]
    ids_NL, types_NL, mask_NL = pad_pairs(rows, pad_id)
    weight_G = torch.tensor([1.0] * len(groups) + [0.0] * len(bad))
    teacher_GP = torch.full((len(present), passages), math.nan)
    for row, scores in enumerate(teacher or ()):
        teacher_GP[row, : len(scores)] = torch.tensor(scores)
    return MicroBatch(
        ids_NL, types_NL, mask_NL, torch.tensor(present), weight_G, teacher_GP, tuple(positions),
        tokens=sum(len(pair.ids) for group in groups for pair in group), bad=tuple(bad),
    )  # fmt: skip


def ghost(pad_id: int, bad: Sequence[str] = ()) -> MicroBatch:
    """Shortest pairs of weight zero: a rank without groups still takes part in the collectives.

    One group of two places: the head and the loss see the shape that they always see.
    """
    return dataclasses.replace(collate([], (), 2, pad_id, bad or ("a ghost",)), bad=tuple(bad))
