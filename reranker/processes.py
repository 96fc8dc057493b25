"""Calls shared out to processes, their results in the order of the calls.

In: a function that pickles, and its arguments one after another. Out: the results in that order, so that nothing
depends on the number of processes; a bounded number of calls is under way. The first call in order that fails is
the one whose error is raised. However the block ends (done, an error, Ctrl-C, a kill of this process), no process
is left behind.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from reranker.errors import UserError

Call = TypeVar("Call")
Result = TypeVar("Result")

_function: Callable[[Any], Any]
"""What this process, a worker, calls."""


@contextlib.contextmanager
def in_order(function: Callable[[Call], Result], calls: Iterable[Call], workers: int) -> Iterator[Iterator[Result]]:
    """An iterator over `function(call)` of each of `calls`, by `workers` processes; 1: by this process itself.

    `calls` are taken in this process, as their turn nears. Raises what `function` or `calls` raise; UserError for
    a number of workers below 1 and for a worker that was killed.
    """
    if workers < 1:
        raise UserError("workers", str(workers), "1 or more", "change the value")
    if workers == 1:
        yield map(function, calls)
        return
    # Not forked: a copy of this process would take along the locks that its threads hold.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with _interrupts_held():
        executor = ProcessPoolExecutor(workers, context, _start, (function,))
    try:
        yield _results(executor, iter(calls), 2 * workers)
    except BrokenProcessPool:
        raise UserError("workers", f"one of {workers} processes killed", "processes that live to the end",
                        "see whether memory ran out, or say fewer workers") from None  # fmt: skip
    except BaseException:
        # What they do is of no use any more, and may take long.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _results(executor: ProcessPoolExecutor, calls: Iterator[Any], most: int) -> Iterator[Any]:
    pending: deque[Future[Any]] = deque()
    failure: Exception | None = None
    more = True
    while more or pending:
        while more and len(pending) < most:
            try:
                call = next(calls)
            except StopIteration:
                more = False
            except Exception as error:  # raised in its turn: an earlier call may fail yet
                failure, more = error, False
            else:
                with _interrupts_held():
                    pending.append(executor.submit(_call, call))
        if pending:
            yield pending.popleft().result()
    if failure:
        raise failure


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started in the block never see Ctrl-C, which a terminal sends to all: this one ends them.

    It comes here after the block. The mask that they inherit does not keep it from this process: another thread, a
    progress bar's, may take it, and a process half started would be left to itself.
    """
    main = threading.current_thread() is threading.main_thread()
    held: list[tuple[Any, ...]] = []
    handler = signal.signal(signal.SIGINT, lambda *arguments: held.append(arguments)) if main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if main:
            signal.signal(signal.SIGINT, handler)
            if held and callable(handler):
                handler(*held[0])


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(call: Any) -> Any:
    return _function(call)
