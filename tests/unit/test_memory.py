"""A process that trains on a CPU keeps the memory that it frees."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import random, resource, sys
import torch
from reranker.train.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
draw = random.Random(0)
for step in range(30):  # micro-batches of some thousand tokens, 384 and 1,536 wide: what a layer keeps, and what it frees
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tokens = draw.randrange(2000, 4096)
    kept = [torch.ones(tokens, draw.choice((384, 1536))) for _ in range(40)]
    freed = [torch.ones(tokens, 1536) for _ in range(5)]
    del kept, freed
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_blocks_are_not_cleared_anew() -> None:
    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert 10 * faults("kept") < faults("left")
