"""Progress bars on standard error, alike in every command.

Without a terminal a bar that redraws is a wall of text: a line every ten seconds says as much.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


def progress_bar(*arguments: Any, **settings: Any) -> Any:
    """A tqdm bar with these arguments of tqdm."""
    terminal = sys.stderr.isatty()
    return tqdm(*arguments, mininterval=0.5 if terminal else 10.0, dynamic_ncols=terminal, **settings)


@contextlib.contextmanager
def without_hub_bars() -> Iterator[None]:
    """transformers' own bars, of weights that are loaded or written, stay away."""
    from transformers.utils import logging as hub_logging

    shown = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hub_logging.enable_progress_bar()
