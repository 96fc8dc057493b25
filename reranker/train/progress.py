"""Records of a training -> one progress bar on rank 0; other ranks stay quiet."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from reranker.progress import progress_bar


class Progress:
    """A bar over optimizer steps with loss, learning rate, pairs/s, useful-token share and tqdm's ETA.

    Whoever reads it may go (`2>&1 | tee log`, and a signal to all of them): the training stays.
    """

    def __init__(self, steps: int, done: int, enabled: bool) -> None:
        self._bar = progress_bar(
            total=steps, initial=done, desc="train", unit="step", disable=not enabled, smoothing=0.1
        )

    def show(self, step: int, metrics: dict[str, Any]) -> None:
        with unread():
            if "train/loss" in metrics:
                self._bar.set_postfix_str(
                    f"loss {metrics['train/loss']:.4f}, lr {metrics['train/learning_rate']:.1e}, "
                    f"{metrics['speed/pairs_per_second']:.1f} pairs/s, {metrics['data/useful_token_share']:.0%} useful",
                    refresh=False,
                )
                self._bar.update(step - self._bar.n)
            elif not self._bar.disable:
                words = ", ".join(f"{name.removeprefix('eval/')} {value:.4f}" for name, value in metrics.items())
                tqdm.write(f"step {step}: {words}", file=sys.stderr)

    def say(self, line: str) -> None:
        """A line above the bar."""
        with unread():
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        with unread():
            self._bar.close()


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Where nobody reads standard error any more, it goes nowhere from here on."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
