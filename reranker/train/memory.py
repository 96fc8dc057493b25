"""Freed memory stays with a process that trains on a CPU.

The C library hands large blocks back to the system, which clears every page of the next one: some 100,000 pages of
4 KiB for 4,096 tokens of the demo's model, forward and backward. Here they are kept for the next micro-batch, whose
blocks are about as large. The most that the process has at a time stays what it was: each block is freed as before.
Blocks above 32 MiB still come and go: glibc has no larger threshold.

Huge pages (torch's THP_MEM_ALLOC_ENABLE) cost fewer faults still, but the heap grew by half within 60 micro-batches.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of mallopt(3) in glibc."""
_LARGEST = 32 * 2**20
"""Bytes: glibc takes no larger threshold."""


def keep_freed_memory() -> None:
    """Tell the C library. Others than glibc have no such setting, and what the user has set stays."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    own = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if mallopt is not None and not own:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, -1)
