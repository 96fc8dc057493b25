"""The watchdog: a rank that hangs, fails or is lost ends the whole job within seconds, and is named.

    every rank   a thread sends a sign of life each second: rank 0's to all others, theirs to rank 0
    rank 0       judges: a rank ended without a goodbye or said that it failed; it gives no sign of life; no rank's
                 main thread gets on. The others judge whether rank 0 is lost
    every rank   on the verdict: stacks and last batch into run_dir/watchdog, its own processes killed, exit code 1

In: `beat` from the main thread of every rank, in the same order within a step. Out: nothing, as long as all is well.
A rank whose interpreter is stuck cannot run the thread: a timer in C ends it, with its stacks on standard error.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import math
import multiprocessing
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from reranker.train.distributed import Ranks
from reranker.train.links import Links
from reranker.train.signs import Sign, failing, gone, hanging

DIRECTORY = "watchdog"
PERIOD = 1.0
"""Seconds between two signs of life of a rank."""
HEAD_START = 1.0
"""Seconds from verdict to end: a launcher kills every rank when the first one ends, and all have something to write."""
PATIENCE = 2.0
"""Seconds that a message, or a process that has its last second, may need."""
BREATH = 0.05
"""Seconds between two readings, so that the signs of hundreds of ranks keep rank 0 from nothing."""
_STDERR = 2
_COLLECTIVES = os.path.dirname(dist.__file__)
_FAILED_COLLECTIVE = re.compile(
    r"connection (closed|reset|refused)|by peer|broken pipe|timed out|timeout|gloo|nccl", re.IGNORECASE
)


@dataclass(frozen=True)
class Beat:
    """What the main thread was about to do at `at`: the `count`-th thing in this step."""

    doing: str = "start"
    step: int | None = None
    count: int = 0
    at: float = dataclasses.field(default_factory=time.monotonic)
    batch: Callable[[], Any] | None = None


def follows(error: BaseException) -> bool:
    """Whether an error is what a collective raises where another rank has ended."""
    return isinstance(error, RuntimeError) and _FAILED_COLLECTIVE.search(str(error)) is not None


class Watchdog:
    """Watches the ranks from its making, a collective call, to `close`.

    Args:
        hang: seconds without a beat on any rank that are a hang, more than the slowest needs from beat to beat; inf:
            none is.
        silence: seconds without a sign of life after which a rank counts as lost.
    """

    def __init__(self, ranks: Ranks, run_dir: Path, hang: float, silence: float = 15.0) -> None:
        self._ranks, self._hang, self._silence = ranks, hang, silence
        self._file = run_dir / DIRECTORY / f"rank-{ranks.rank:05d}.txt"
        self._last = Beat()
        self._error: BaseException | None = None
        self._closing, self._due = False, 0.0
        self._line, self._judged = "", threading.Event()
        # By then the others have declared a rank lost whose thread does not run; a lone rank has all the time it needs.
        self._timer = _Timer(silence + PATIENCE + (hang if ranks.world == 1 else 0))
        ranks.barrier()
        self._timer.restart()  # a rank that ends before it is connected is waited for by this alone
        self._links = Links(ranks, silence)
        self._signs = {rank: Sign(rank) for rank in self._links.heard}
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, doing: str, step: int | None = None, batch: Callable[[], Any] | None = None) -> None:
        """The main thread is about to do this in step `step`, the same as before if not given.

        `batch` makes what tells the batch in hand, for JSON; it is called for a dump only, by another thread.
        """
        last = self._last
        step = last.step if step is None else step
        self._last = Beat(doing, step, last.count + 1 if step == last.step else 1, batch=batch or last.batch)

    def lost(self, error: BaseException) -> str | None:
        """Before an error that the other ranks do not hold ends this one.

        Returns: the line about the rank whose end the error follows from: the watchdog says it, and ends this process
        a second later. None if the error is this rank's own: the others know it by then, and end.
        """
        if self._judged.is_set():
            return self._line
        if not self._links.heard or not self._thread.is_alive():
            self.close()  # nobody is there to be told, or to wait for
            return None
        if follows(error) and self._judged.wait(self._silence + 2 * PATIENCE):
            return self._line
        self._error, self._due = error, 0.0
        self._links.wake()
        # On a machine that is slow the others would else see this process end before they hear why.
        self._judged.wait(self._silence)
        return None

    def close(self) -> None:
        """Say goodbye: from here on the end of this process is no failure. Behind a verdict it remains one."""
        if not self._judged.is_set():
            self._closing = True
            self._links.wake()
            self._thread.join(2 * PATIENCE)
            self._last = Beat()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception:
            # A defect of the watchdog is no reason to end a healthy training: it is told, and the training goes on as
            # behind close(). The others hear a goodbye, or they would take this rank for lost.
            traceback.print_exc()
            print("the watchdog has ended by this error; the training goes on without", file=sys.stderr, flush=True)
            self._leave()

    def _watch(self) -> None:
        while not self._closing:
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + PERIOD
                self._timer.restart()
                self._links.send(dataclasses.asdict(self._sign()))
            for rank, sign in self._links.receive(self._due - time.monotonic()):
                self._signs[rank] = Sign(**sign)
            if line := self._verdict():
                return self._end(line)
            time.sleep(BREATH)
        return self._leave()

    def _leave(self) -> None:
        self._timer.stop()
        self._links.close(PATIENCE)

    def _sign(self, verdict: str | None = None) -> Sign:
        last, error = self._last, self._error
        waits = _in_collective()
        failure = None if error is None else ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:500]
        idle, speaker = time.monotonic() - last.at, min(self._links.heard, default=1)
        return Sign(self._ranks.rank, last.doing, last.step, last.count, idle, waits, failure, verdict, speaker)

    def _verdict(self) -> str | None:
        """What ends the job, if anything does."""
        now = time.monotonic()
        heard = [(self._signs[rank], now - at) for rank, at in self._links.heard.items()]
        ended = [self._signs[rank] for rank in self._links.ended]
        connected = [self._sign(), *(sign for sign, _ in heard)]
        told = next((sign.verdict for sign in connected + ended if sign.verdict), None)
        # A loss before a failure, which may follow from it.
        line = told or gone(ended, heard, self._silence)
        if self._ranks.first:
            line = line or failing(connected + ended)
            # Of a rank that has said goodbye nobody knows whether it gets on.
            if line is None and len(connected) == self._ranks.world:
                line = hanging(connected, self._hang)
        return line

    def _end(self, line: str) -> None:
        """Say the verdict, dump, and end this process, unless it ends by its own error."""
        self._timer.restart()  # whatever blocks from here on: a file system, a full pipe, the way out of an error
        self._line = line
        self._links.send(dataclasses.asdict(self._sign(line if self._ranks.first else None)))
        try:
            self._say(line)
            self._dump(line)
        except Exception:
            traceback.print_exc()  # a full disk, for example: the job ends all the same
        finally:
            self._judged.set()
            if self._error is None:
                _exit()

    def _say(self, line: str) -> None:
        """Print the verdict if this rank is the one to do so."""
        rank, chief = self._ranks.rank, self._signs.get(0)
        # With rank 0 its whole machine may be gone: the first rank of every other one speaks as well.
        if chief is None or (not chief.verdict and (rank == chief.speaker or self._ranks.first_of_node)):
            begin = "\n" if os.isatty(_STDERR) else ""  # below a progress bar
            told = f"{begin}reranker: error: {line}; stacks and batches of every rank: {self._file.parent}\n"
            os.write(_STDERR, told.encode(errors="backslashreplace"))  # sys.stderr's lock may be held by who is stuck

    def _dump(self, line: str) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # Appended: a job that is started again keeps what ended it before.
        with open(self._file, "a", encoding="utf-8", errors="backslashreplace") as file:
            sign, batch, error = self._sign(), self._last.batch, self._error
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            file.write(f"rank {sign.rank}: {sign}, for {sign.idle:.0f} seconds\n\n")
            if error is not None:
                file.writelines([*traceback.format_exception(type(error), error, error.__traceback__), "\n"])
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            # The last thing: it may wait for a device that has stopped.
            file.write(f"\nlast batch: {json.dumps(batch() if batch else None, ensure_ascii=False)}\n\n")


def _in_collective() -> bool:
    """Whether the main thread stands in a collective, or one of autograd's, which run the hooks of a backward pass.

    A thread that Python has started is beside the training: a checkpoint's waits for the others at times of its own.
    """
    beside = {thread.ident for thread in threading.enumerate()} - {threading.main_thread().ident}
    frames = [frame for thread, frame in sys._current_frames().items() if thread not in beside]
    return any(frame.f_code.co_filename.startswith(_COLLECTIVES) for frame in frames)


def _exit() -> None:
    """End this process, and those that it has started, when all ranks have had the time to dump."""
    try:
        time.sleep(HEAD_START)
        for process in multiprocessing.active_children():
            process.kill()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(1)


class _Timer:
    """Ends this process with its stacks on standard error, `seconds` after the last restart, whoever holds the GIL.

    On standard error: nothing can open a file then, and one that was open all the time would be left empty.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._running, self._changing = seconds, False, threading.Lock()
        # A forked process has the timer's state without its thread, and would wait for that one forever when it ends.
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._changing.release
        )

    def restart(self) -> None:
        with self._changing:
            self._running = True
            self._start()

    def stop(self) -> None:
        with self._changing:
            self._running = False
            faulthandler.cancel_dump_traceback_later()

    def _start(self) -> None:
        if math.isfinite(self._seconds):
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=_STDERR)

    def _before_fork(self) -> None:
        self._changing.acquire()
        if self._running:
            faulthandler.cancel_dump_traceback_later()

    def _after_fork(self) -> None:
        if self._running:
            self._start()
        self._changing.release()
