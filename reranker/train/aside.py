"""Calls beside the training: made by a thread, one after another, in the order in which they were given.

Whatever a call costs, or waits for, the training does not. Behind a call that raises there is none but the last, which
ends things: `failed` is told of the first that raised, on the thread, and all between are left out.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

MOST = 10_000
"""Calls that may wait: with a record a second, those of some hours in which nothing answers."""


class Aside:
    """A thread of its own for calls to something slow.

    Args:
        name: the thread's.
        failed: told of the first call that raised.
        full: called, once, when a call is left out because `most` are waiting.
    """

    def __init__(
        self, name: str, failed: Callable[[Exception], None], full: Callable[[], None], most: int = MOST
    ) -> None:
        self._failed, self._full, self._told = failed, full, False
        self._calls: queue.Queue[Callable[[], Any] | None] = queue.Queue(most)
        self.over = False
        """Whether a call has failed: there will be no others but the last."""
        self._last: Callable[[], Any] = lambda: None
        # A daemon: a process that ends does not wait for a service that never answers.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, call: Callable[[], Any]) -> None:
        """Make a call some time soon. Returns at once."""
        if self.over:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._told:
                self._told = True
                self._full()

    def close(self, last: Callable[[], Any], seconds: float) -> bool:
        """Make a last call behind all others, failed or not; whether that was done, or failed, in so many seconds."""
        deadline = time.monotonic() + seconds
        self._last = last
        try:
            self._calls.put(None, timeout=seconds)
        except queue.Full:
            return False
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            if not self.over:
                self._make(call)
        self._make(self._last)

    def _make(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # whatever a service does, the training goes on
            if not self.over:
                self.over = True
                self._failed(error)
