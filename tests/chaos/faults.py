"""Faults put into real ranks: at the n-th time that a rank comes to a place in the product, something happens to it.

A rank is started with `function=hurt` and a list of faults; it is the real command from there on. A fault acts on the
process (SIGKILL, SIGTERM, a stall), on what the system answers (a disk that is full) or on a number (a loss that is
not finite); nothing of what is tested is replaced.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import importlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.distributed.ranks import Job, start

FOREVER = 10**6  # seconds


@dataclass(frozen=True)
class Fault:
    """What happens to `rank` when it comes to `place` for the `nth` time (from 1); it leaves a file `mark` then.

    One that is held stands there until the test lets it go on: nothing depends on how fast the test looks.
    """

    place: str
    what: str
    nth: int
    rank: int = 0
    mark: str | None = None


def _any(*_: Any, **__: Any) -> bool:
    return True


def _names_checkpoint(source: Any, target: Any) -> bool:
    return str(source).endswith(".staging") and Path(target).name.startswith("step-")


def _removes_checkpoint(path: Any, *_: Any, **__: Any) -> bool:
    return str(path).endswith(".removed")


def _of_fragments(descriptor: int) -> bool:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith("fragments-")


def _is_manifest(path: Any, *_: Any) -> bool:
    return Path(path).parent.name.endswith(".staging") and Path(path).name == "manifest.json"


PLACES: dict[str, tuple[str, str, Callable[..., bool], bool]] = {
    # place: (module, what is called there, of which calls, before it or behind it)
    "data": ("reranker.train.loop", "take", _any, True),
    "worker": ("reranker.data.dataset", "DataSet.passages", _any, True),
    "forward": ("reranker.train.engine", "Engine.score_pairs", _any, True),
    "backward": ("reranker.train.engine", "Engine.backward", _any, True),
    "step": ("reranker.train.engine", "Engine.step", _any, True),
    "stepped": ("reranker.train.engine", "Engine.step", _any, False),
    "evaluate": ("reranker.train.events", "RunEvents.evaluate", _any, True),
    "writing": ("reranker.train.checkpoint", "write_fragments", _any, True),
    "flushing": ("os", "fsync", _of_fragments, True),
    "written": ("reranker.train.checkpoint", "write_fragments", _any, False),
    "listing": ("reranker.train.checkpoint", "write_json", _is_manifest, True),
    "naming": ("os", "replace", _names_checkpoint, True),
    "named": ("os", "replace", _names_checkpoint, False),
    "pruning": ("shutil", "rmtree", _removes_checkpoint, True),
    "pruned": ("shutil", "rmtree", _removes_checkpoint, False),
}


def start_hurt(world: int, argv: Sequence[str], faults: Sequence[Fault], shown: Path | None = None) -> Job:
    """Start `reranker <argv>` as `world` ranks to which the faults happen.

    Each rank appends to `shown` what every step shows it: rank, epoch, step, positions, a digest of the tokens.
    """
    told = json.dumps([dataclasses.asdict(fault) for fault in faults])
    return start(world, [told, str(shown or ""), *argv], function=hurt)


def hurt(argv: list[str]) -> int:
    """The life of a rank."""
    from reranker.cli import main

    for told in json.loads(argv[0]):
        fault = Fault(**told)
        if fault.rank == int(os.environ["RANK"]):
            _put(fault)
    if argv[1]:
        _record(Path(argv[1]))
    return main(argv[2:])


def _record(path: Path) -> None:
    from reranker.train import loop

    run = loop.forward_and_backward

    def recorded(engine: Any, plan: Any, number: int, taken: Any, *more: Any) -> Any:
        digest = hashlib.sha256()
        for batch in taken.micro_batches:
            digest.update(batch.packed.ids_T.numpy().tobytes() + batch.packed.cu_seqlens.numpy().tobytes())
        positions = [position for batch in taken.micro_batches for position in batch.positions]
        line = [int(os.environ["RANK"]), taken.step.epoch, taken.step.step, positions, digest.hexdigest()]
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        return run(engine, plan, number, taken, *more)

    loop.forward_and_backward = recorded


def _put(fault: Fault) -> None:
    module, path, applies, before = PLACES[fault.place]
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for attribute in outer:
        owner = getattr(owner, attribute)
    original = getattr(owner, name)
    calls = 0

    @functools.wraps(original)
    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        due = applies(*arguments, **named)
        calls += due
        due = due and calls == fault.nth
        if due and before:
            arguments = _act(fault, arguments)
        result = original(*arguments, **named)
        if due and not before:
            _act(fault, ())
        return result

    setattr(owner, name, called)


def stall_here() -> None:
    """Where a stalled rank stands: its name is in the stacks."""
    time.sleep(FOREVER)


def hold_here(mark: str) -> None:
    """Where a rank stands until `release`."""
    while not _released(mark).exists():
        time.sleep(0.01)


def release(mark: Path | str) -> None:
    """Let the rank go on that has left this mark."""
    _released(mark).touch()


def _released(mark: Path | str) -> Path:
    return Path(f"{mark}.released")


def _act(fault: Fault, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if fault.mark:
        Path(fault.mark).touch()
    if fault.what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.what in ("SIGTERM", "SIGUSR1"):
        os.kill(os.getpid(), getattr(signal, fault.what))
    elif fault.what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.what == "stall":
        stall_here()
    elif fault.what == "hold":
        assert fault.mark is not None
        hold_here(fault.mark)
    elif fault.what == "raise":
        raise RuntimeError("a defect of ours")
    elif fault.what == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif fault.what in ("nan", "inf"):  # of the loss that is about to go backward
        engine, loss = arguments
        return engine, loss * float(fault.what)
    else:
        raise AssertionError(fault.what)
    return arguments
