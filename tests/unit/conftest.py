"""What makes the unit tests quick without their noticing."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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


@pytest.fixture(scope="module")
def ranks() -> Iterator[Any]:
    """A real world of one rank."""
    from reranker.config.common import Device
    from reranker.train.distributed import join, leave

    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCHER:
            patch.setenv(name, "")  # so that it is put back afterwards
            os.environ.pop(name)
        try:
            yield join(Device.cpu, 60.0)
        finally:
            leave()
