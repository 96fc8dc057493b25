"""What makes the unit tests quick without their noticing."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """No waiting for the disk, and hardly a search for garbage among the libraries.

    What `fsync` is for, the power that fails, is nothing that a test of this directory sees, and it waits for the
    disk some 4,000 times. torch and transformers are a million objects, which Python's collector would go through
    again and again: what is there when a file's tests begin stays.
    """
    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(20_000, 20, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
    gc.set_threshold(*thresholds)
