"""A request to stop, from outside: SIGTERM or SIGUSR1 to any one rank.

The first signal is noted; the ranks agree on it between two steps, save together and end with code 0, and a file
`requeue` in the run directory says that the training is to be started again (`loop.run`, `main.train`); a sweep begins
no further one. The second signal ends the process at once. SLURM sends these before a time limit or a preemption, and
so do other schedulers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from reranker.files import write_json
from reranker.train.run_directory import MARKER

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME = 3.0
"""Seconds in which another signal is the same request: launchers hand on what the whole group was sent already."""


class Stopped(int):
    """The exit code of a training that was asked to stop, on every rank: a sweep begins no further one."""


class Stop:
    """Whether this rank was asked to stop, and by what."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler, between two instructions of the main thread."""
        self.signal = self.signal or signal.Signals(number)

    def watch(self, pipe: int) -> None:
        """Say that the first signal was heard, and end at once on the second, whatever the main thread waits for.

        A handler of Python's own has to wait until a collective is over. The interpreter writes the number of each
        signal into the pipe as it comes; those of others, and of workers, are left alone.
        """
        first = None
        while numbers := os.read(pipe, 1):
            if numbers[0] not in SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
                line = f"{signal.Signals(numbers[0]).name}: stopping behind this step; once more ends at once\n"
                with contextlib.suppress(OSError):  # whoever read it may have got the signal as well
                    os.write(2, line.encode())
            elif time.monotonic() - first >= SAME:
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(128 + numbers[0])


def hold() -> None:
    """Keep requests to stop until `stop_requests` takes them.

    A rank imports for seconds before it can take one. By then a scheduler's signal would have ended it, and its job
    would pass for a failed one.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Take SIGTERM and SIGUSR1 for requests to stop, for the length of the block, on the main thread.

    Those that `hold` has kept are taken first.
    """
    stop = Stop()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=stop.watch, args=(reading,), name="signals", daemon=True)
    thread.start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)
        thread.join(1.0)  # at once, unless a worker that is left holds the other end open
        if not thread.is_alive():
            os.close(reading)


def mark_requeue(run_dir: Path, step: int, asked: str | None) -> None:
    """Say that the run was stopped, by the signal of this name, and goes on when it is started again."""
    write_json(run_dir / MARKER, {"step": step, "signal": asked})


def clear_requeue(run_dir: Path) -> None:
    (run_dir / MARKER).unlink(missing_ok=True)
