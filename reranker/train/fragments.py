"""A rank's share of a parameter's state under any ZeRO stage, out of DeepSpeed and back into it.

A `Fragment` is a flat slice of one parameter's fp32 master or of one of its moments. Stage 0, where every rank
holds all: an equal slice for each. Stages 1 and 2: what the parameter's fragment address says. Stage 3: the rank's
padded share. What goes back in under any other stage and number of ranks is read slice by slice, so that no rank
ever holds more of the state than its own share and one parameter. DeepSpeed 0.19.8's own setters miss states of the
second parameter group and tensors that do not divide by the ranks, hence the detail here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

MASTER, EXP_AVG, EXP_AVG_SQ = KINDS = ("master", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Elements [offset, offset + len(values)) of a flattened parameter of this `shape`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    values: torch.Tensor


Read = Callable[[str, int, int], torch.Tensor]
"""(kind, offset, count) -> that slice of the flattened parameter, in float32."""


def read_parameter(
    name: str, parameter: nn.Parameter, plain_state: dict[str, torch.Tensor] | None, rank: int, world: int
) -> Iterator[Fragment]:
    """Copies of this rank's fragments of a parameter. `plain_state` is torch's optimizer state, at stage 0 only."""
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    for kind in KINDS:
        piece = _piece(parameter, kind, plain_state, rank, world)
        if piece is not None and len(piece[1]):
            offset, values = piece
            yield Fragment(name, kind, shape, offset, values.detach().to("cpu", torch.float32, copy=True))


def write_parameter(
    parameter: nn.Parameter, read: Read, plain_state: dict[str, torch.Tensor] | None, rank: int, world: int
) -> None:
    """Set this rank's share of a parameter's master and moments."""
    if plain_state is not None:
        targets = {MASTER: parameter.data, EXP_AVG: plain_state[EXP_AVG], EXP_AVG_SQ: plain_state[EXP_AVG_SQ]}
        for kind, target in targets.items():
            target.copy_(read(kind, 0, target.numel()).view(target.shape))
    elif hasattr(parameter, "ds_id"):
        _write_stage_3(parameter, read, rank, world)
    else:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return
        address = mapping.lp_fragment_address
        for kind in KINDS:
            target = mapping.get_hp_fragment(None if kind == MASTER else kind)
            target.data.copy_(read(kind, address.start, address.numel))


def _piece(
    parameter: nn.Parameter, kind: str, plain_state: dict[str, torch.Tensor] | None, rank: int, world: int
) -> tuple[int, torch.Tensor] | None:
    """(offset, values) of this rank's share, or None if it has none."""
    if plain_state is not None:
        whole = (parameter.data if kind == MASTER else plain_state[kind]).flatten()
        share = -(-len(whole) // world)
        return share * rank, whole[share * rank : share * (rank + 1)]
    if hasattr(parameter, "ds_id"):
        share = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        optimizer: Any = parameter._z3_optimizer  # type: ignore[attr-defined]
        values = optimizer.get_local_fp32_param(parameter, None if kind == MASTER else kind).flatten()
        offset = share * rank
        # The last rank's share is padded to the length of the others.
        return offset, values[: max(0, parameter.ds_numel - offset)]  # type: ignore[attr-defined]
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    return mapping.lp_fragment_address.start, mapping.get_hp_fragment(None if kind == MASTER else kind)


def _write_stage_3(parameter: Any, read: Read, rank: int, world: int) -> None:
    share, total = parameter.ds_tensor.numel(), parameter.ds_numel
    offset = min(share * rank, total)

    def part(kind: str) -> torch.Tensor:
        values = read(kind, offset, min(share, total - offset))
        return functional.pad(values, (0, share - len(values))).to(parameter.ds_tensor.device)

    optimizer, master = parameter._z3_optimizer, part(MASTER)
    optimizer.set_local_hp_param(master, parameter)
    for kind in (EXP_AVG, EXP_AVG_SQ):
        optimizer.set_local_hp_param(part(kind), parameter, kind)
    parameter.ds_tensor.data.copy_(master.to(parameter.ds_tensor.dtype))
    if parameter.data.shape == parameter.ds_shape:
        # Small parameters stay whole on every rank.
        parameter.data.copy_(read(MASTER, 0, total).view(parameter.ds_shape))
