"""Tokenized groups -> one micro-batch of tensors: all pairs in one row, from which a padded rectangle can be made."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reranker.data.tokenize import Pair


@dataclass(frozen=True)
class PackedPairs:
    """The T tokens of N pairs in one row, pair behind pair.

    Attributes:
        ids_T, types_T: token and segment ids.
        cu_seqlens: where each pair begins and the last one ends, N + 1 numbers from 0 to T (int32).
        longest: tokens of the longest pair.
        pad_id: what a rectangle of them is filled up with.
    """

    ids_T: torch.Tensor
    types_T: torch.Tensor
    cu_seqlens: torch.Tensor
    longest: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def tokens(self) -> int:
        return len(self.ids_T)

    def to(self, device: torch.device) -> PackedPairs:
        move = {name: getattr(self, name).to(device, non_blocking=True) for name in _OF_PAIRS}
        return dataclasses.replace(self, **move)

    def padded(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ids_NL, types_NL and mask_NL (1 where there is a token), L being `longest`: filled up on the right."""
        lengths_N = self.cu_seqlens.diff()
        mask_NL = torch.arange(self.longest, device=self.ids_T.device) < lengths_N[:, None]
        # masked_scatter, not indexing: that would ask the device how many places there are.
        ids_NL = torch.full(mask_NL.shape, self.pad_id, device=self.ids_T.device).masked_scatter(mask_NL, self.ids_T)
        types_NL = torch.zeros_like(ids_NL).masked_scatter(mask_NL, self.types_T)
        return ids_NL, types_NL, mask_NL.long()


@dataclass(frozen=True)
class MicroBatch:
    """G groups of P passages, N = G x P pairs.

    Attributes:
        packed: the pairs, group by group, the positives of each first.
        present_GP: False in the places of a group that hold no passage.
        positive_GP: which passages answer their query.
        weight_G: 1, or 0 for a ghost.
        teacher_GP: the teacher's score of each passage, NaN where it gave none.
        positions: of each group that counts, its position in the epoch's order; a ghost has none.
        tokens: tokens that belong to pairs of groups that count.
        bad: of each group that could not be read and has weight zero, why; such groups come last.
    """

    packed: PackedPairs
    present_GP: torch.Tensor
    positive_GP: torch.Tensor
    weight_G: torch.Tensor
    teacher_GP: torch.Tensor
    positions: tuple[int, ...]
    tokens: int
    bad: tuple[str, ...] = ()

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device; copies from pinned memory do not block."""
        return self._with({name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()})

    def pin_memory(self) -> MicroBatch:
        return self._with({name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def __reduce__(self) -> tuple[Any, ...]:
        # A tensor that comes from a worker holds a descriptor until it is used, and a step has many: arrays travel
        # as bytes.
        arrays = {name: tensor.numpy() for name, tensor in self._tensors().items()}
        return _from_arrays, (arrays, self.packed.longest, self.packed.pad_id, self.positions, self.tokens, self.bad)

    @property
    def pairs(self) -> int:
        """Real pairs: passages present in groups that count."""
        return int((self.present_GP & (self.weight_G > 0)[:, None]).sum())

    def _tensors(self) -> dict[str, Any]:
        of_pairs = {name: getattr(self.packed, name) for name in _OF_PAIRS}
        return of_pairs | {name: getattr(self, name) for name in _OF_GROUPS}

    def _with(self, tensors: dict[str, Any]) -> MicroBatch:
        packed = dataclasses.replace(self.packed, **{name: tensors[name] for name in _OF_PAIRS})
        return dataclasses.replace(self, packed=packed, **{name: tensors[name] for name in _OF_GROUPS})


_OF_PAIRS = ("ids_T", "types_T", "cu_seqlens")
_OF_GROUPS = ("present_GP", "positive_GP", "weight_G", "teacher_GP")


def _from_arrays(
    arrays: dict[str, Any], longest: int, pad_id: int, positions: tuple[int, ...], tokens: int, bad: tuple[str, ...]
) -> MicroBatch:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    packed = PackedPairs(**{name: tensors[name] for name in _OF_PAIRS}, longest=longest, pad_id=pad_id)
    groups = {name: tensors[name] for name in _OF_GROUPS}
    return MicroBatch(packed, **groups, positions=positions, tokens=tokens, bad=bad)


def pack_pairs(pairs: Sequence[Pair], pad_id: int) -> PackedPairs:
    """Pairs in one row. Arrays are made first: a tensor for each pair takes longer than its tokens took to be found."""
    lengths = [len(pair.ids) for pair in pairs]
    ids = np.fromiter(itertools.chain.from_iterable(pair.ids for pair in pairs), np.int64, sum(lengths))
    types = np.fromiter(itertools.chain.from_iterable(pair.types for pair in pairs), np.int64, sum(lengths))
    cu_seqlens = np.cumsum([0, *lengths], dtype=np.int32)
    return PackedPairs(
        torch.from_numpy(ids), torch.from_numpy(types), torch.from_numpy(cu_seqlens), max(lengths), pad_id
    )


def collate(
    groups: Sequence[Sequence[Pair]],
    positions: Sequence[int],
    passages: int,
    pad_id: int,
    bad: Sequence[str] = (),
    teacher: Sequence[Sequence[float]] | None = None,
    positives: Sequence[int] | None = None,
) -> MicroBatch:
    """The micro-batch of tokenized groups, the positives of each first (one, if not said how many).

    `teacher` has the scores of each group's passages.

    A group of fewer than `passages` pairs leaves places empty: a shortest pair stands in and is masked. For each
    group of `bad` there are shortest pairs of weight zero: the batch keeps its shape and they teach nothing.
    """
    nothing = Pair([pad_id], [0])
    every = [*groups, *[[nothing] * passages for _ in bad]]
    rows = [pair for group in every for pair in (*group, *[nothing] * (passages - len(group)))]
    present = [[place < len(group) for place in range(passages)] for group in every]
    weight_G = torch.tensor([1.0] * len(groups) + [0.0] * len(bad))
    counts_G1 = torch.tensor([*(positives or [1] * len(groups)), *[1] * len(bad)])[:, None]
    teacher_GP = torch.full((len(present), passages), math.nan)
    for row, scores in enumerate(teacher or ()):
        teacher_GP[row, : len(scores)] = torch.tensor(scores)
    return MicroBatch(
        pack_pairs(rows, pad_id), torch.tensor(present), torch.arange(passages) < counts_G1, weight_G, teacher_GP,
        tuple(positions),
        tokens=sum(len(pair.ids) for group in groups for pair in group), bad=tuple(bad),
    )  # fmt: skip


def ghost(pad_id: int, bad: Sequence[str] = ()) -> MicroBatch:
    """Shortest pairs of weight zero: a rank without groups still takes part in the collectives.

    One group of two places: the head and the loss see the shape that they always see.
    """
    return dataclasses.replace(collate([], (), 2, pad_id, bad or ("a ghost",)), bad=tuple(bad))
