"""Progress bars on standard error, alike in every command.

Without a terminal a bar that redraws is a wall of text: a line every ten seconds says as much.
"""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*arguments: Any, **settings: Any) -> Any:
    """A tqdm bar with these arguments of tqdm."""
    terminal = sys.stderr.isatty()
    return tqdm(*arguments, mininterval=0.5 if terminal else 10.0, dynamic_ncols=terminal, **settings)
