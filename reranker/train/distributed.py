"""The ranks of a job: who we are, what we compute with, and how all agree on an outcome.

In: the environment that `deepspeed`, `torchrun`, SLURM wrappers or SageMaker set (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT); a plain process is a world of one. Out: `Ranks`. A mistake found on one rank is
raised on all of them, so that no rank waits for one that has left.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from reranker.config.common import Device
from reranker.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all: rank of world, its device, and a gloo group for small agreements."""

    rank: int
    world: int
    device: torch.device
    control: Any

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def first_of_node(self) -> bool:
        """Whether this is the first rank of its machine."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on every rank."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of all ranks in each place; all give equally many. A collective call."""
        found = torch.tensor(numbers)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.control)
        return found.tolist()

    def agree(self, action: Callable[[], T], raised: bool = False) -> tuple[T, bool]:
        """Run `action` on every rank; (its result, whether `raised` is true on any rank).

        If `action` raises UserError on any rank, all raise the first one. Whatever else it raises ends this rank at
        once, and with it the job. Costs one reduction of two bytes where all is well.
        """
        mistake, result = None, None
        try:
            result = action()
        except UserError as error:
            mistake = error
        flags = torch.tensor([mistake is not None, raised], dtype=torch.uint8)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        any_mistake, any_raised = flags.tolist()
        if any_mistake:
            first = next(error for error in self.gather(mistake) if error is not None)
            first.agreed = True  # every rank holds it: rank 0 says it for all
            raise first
        return result, bool(any_raised)  # type: ignore[return-value]

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; if any raises UserError, all raise the first one."""
        return self.agree(action)[0]

    def from_first(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0; every rank gets its result, or raises its UserError.

        What is read from a shared file system is read once: another rank may see an older state of it.
        """
        result = self.together(lambda: action() if self.first else None)
        return self.gather(result)[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        dist.barrier(group=self.control)

    def apart(self, timeout: float) -> Ranks:
        """The same ranks with a gloo group of their own, for a thread beside the training. A collective call."""
        group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout))
        return dataclasses.replace(self, control=group)


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for bfloat16's products; without them these take longer than float32's."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))  # the last: ARM


def set_arithmetic(deterministic: bool, tf32: bool) -> None:
    """How torch computes from now on in this process, whatever a training before had."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    torch.use_deterministic_algorithms(deterministic)
    # Not `fp32_precision`: with that set, whoever asks for `allow_tf32`, as torch.compile does, is refused.
    torch.backends.cuda.matmul.allow_tf32 = tf32


def join(device: Device, timeout: float) -> Ranks:
    """Meet the other ranks. Collectives end with an error after `timeout` seconds.

    Raises: UserError for a GPU asked for where there is none, or an environment that is incomplete.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in names if name in os.environ]
    if not {"RANK", "WORLD_SIZE"} & set(present):
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    elif len(present) < len(names):
        missing = next(name for name in names if name not in os.environ)
        raise UserError("environment", f"{present[0]} without {missing}", f"{', '.join(names)} together",
                        "start with deepspeed or torchrun, or set them all")  # fmt: skip
    if os.environ["WORLD_SIZE"] == "1":
        os.environ.setdefault("LOCAL_RANK", "0")
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK"):
        if not os.environ.get(name, "0").isdigit():
            raise UserError("environment", f"{name}={os.environ[name]}", "a number", "start with deepspeed or torchrun")
    chosen = choose_device(device, os.environ.get("LOCAL_RANK"))
    # Read by deepspeed, which would choose GPU 0 for every rank without it.
    os.environ.setdefault("LOCAL_RANK", "0")
    limit = datetime.timedelta(seconds=timeout)
    if not dist.is_initialized():
        store, rank, world = _meeting_place(limit)
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    control = dist.new_group(backend="gloo", timeout=limit)
    return Ranks(dist.get_rank(), dist.get_world_size(), chosen, control)


def _meeting_place(limit: datetime.timedelta) -> tuple[Store, int, int]:
    """(store, rank, world size) of the environment, the store with names of its own for each time that ranks meet.

    The trainings of a sweep meet again and again. A rank that is the first to come again would find the addresses that
    the others had before, or a store that is about to be closed: it stays open, as long as the process lives.
    """
    place = tuple(os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if place not in _met:
        _met[place] = (next(rendezvous("env://", timeout=limit)), itertools.count())
    (store, rank, world), times = _met[place]
    store.set_timeout(limit)
    return PrefixStore(f"meeting_{next(times)}", store), rank, world


_met: dict[tuple[str, ...], tuple[tuple[Store, int, int], Iterator[int]]] = {}


def choose_device(device: Device, local_rank: str | None) -> torch.device:
    """The device of the rank with this number on its machine. Raises UserError."""
    gpus = torch.cuda.device_count()
    if device is Device.cuda and gpus == 0:
        raise UserError("train.device", "cuda where torch finds no GPU", "auto or cpu",
                        "install torch's CUDA build, or say train.device=cpu")  # fmt: skip
    if device is Device.cpu or gpus == 0:
        return torch.device("cpu")
    if local_rank is None:
        # All ranks of a machine would share its first GPU.
        raise UserError("environment", "several ranks without LOCAL_RANK", "each rank's number on its machine",
                        "start with deepspeed or torchrun, or set it")  # fmt: skip
    local = int(local_rank)
    if local >= gpus:
        raise UserError("launcher", f"local rank {local} on a machine with {gpus} GPUs", "a rank for each GPU at most",
                        "start fewer ranks")  # fmt: skip
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
