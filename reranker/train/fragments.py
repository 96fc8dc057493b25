"""A rank's share of a parameter's state under any ZeRO stage, out of DeepSpeed and back into it.

A `Fragment` is a flat slice of one parameter's fp32 master or of one of its moments. Stage 0: rank 0 holds
all of it. Stages 1 and 2: what the parameter's fragment address says. Stage 3: the rank's padded share.
Whole tensors go back in under any other stage and number of ranks. DeepSpeed 0.19.8's own setters miss
states of the second parameter group and tensors that do not divide by the ranks, hence the detail here.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def read_parameter(
    name: str, parameter: nn.Parameter, plain_state: dict[str, torch.Tensor] | None, rank: int
) -> Iterator[Fragment]:
    """This rank's fragments of a parameter. `plain_state` is torch's optimizer state, at stage 0 only."""
    for kind in KINDS:
        piece = _piece(parameter, kind, plain_state, rank)
        if piece is not None and len(piece[1]):
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            yield Fragment(name, kind, shape, piece[0], piece[1].detach().float().cpu().clone())


def write_parameter(
    parameter: nn.Parameter,
    values: dict[str, torch.Tensor],
    plain_state: dict[str, torch.Tensor] | None,
    rank: int,
    world: int,
) -> None:
    """Set this rank's share from whole tensors, one for each of `KINDS`."""
    if plain_state is not None:
        parameter.data.copy_(values[MASTER])
        for kind in (EXP_AVG, EXP_AVG_SQ):
            plain_state[kind].copy_(values[kind])
    elif hasattr(parameter, "ds_id"):
        _write_stage_3(parameter, values, rank, world)
    else:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return
        address = mapping.lp_fragment_address
        for kind in KINDS:
            target = mapping.get_hp_fragment(None if kind == MASTER else kind)
            target.data.copy_(values[kind].flatten().narrow(0, address.start, address.numel))


def _piece(
    parameter: nn.Parameter, kind: str, plain_state: dict[str, torch.Tensor] | None, rank: int
) -> tuple[int, torch.Tensor] | None:
    """(offset, values) of this rank's share, or None if it has none."""
    if plain_state is not None:
        if rank:
            return None
        return 0, (parameter.data if kind == MASTER else plain_state[kind]).flatten()
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


def _write_stage_3(parameter: Any, values: dict[str, torch.Tensor], rank: int, world: int) -> None:
    share = parameter.ds_tensor.numel()

    def part(value: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(value.flatten(), (0, share * world - value.numel()))
        return padded.narrow(0, share * rank, share).to(parameter.ds_tensor.device)

    optimizer = parameter._z3_optimizer
    optimizer.set_local_hp_param(part(values[MASTER]), parameter)
    for kind in (EXP_AVG, EXP_AVG_SQ):
        optimizer.set_local_hp_param(part(values[kind]), parameter, kind)
    parameter.ds_tensor.data.copy_(part(values[MASTER]).to(parameter.ds_tensor.dtype))
    if parameter.data.shape == values[MASTER].shape:
        # Small parameters stay whole on every rank.
        parameter.data.copy_(values[MASTER])
