"""batch.tokens=auto: the largest micro-batch that a rank's memory holds, found before the first step.

A forward and backward of made-up pairs of the longest kind is measured, in growing sizes; its loss is zero, so that
nothing is learned from it. The optimizer's states exist by then. Ranks measure together and agree on the least: under
ZeRO 2 and 3 a backward is a collective call, and a micro-batch that only some ranks can hold would end them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from reranker.data.collate import MicroBatch, collate
from reranker.data.tokenize import Pair
from reranker.train.distributed import Ranks

if TYPE_CHECKING:  # deepspeed takes seconds to import: the engine is made when everything else is in order
    from reranker.train.engine import Engine

MARGIN = 0.9
"""Share of the memory that may be taken: fragments and communication buffers need the rest."""
CPU_TOKENS = 4096
"""On a CPU larger micro-batches gain nothing: the memory of a machine is not what limits them."""


def find_tokens(engine: Engine, ranks: Ranks, passages: int, max_length: int, most: int) -> int:
    """Tokens of a micro-batch, alike on every rank; a collective call.

    Args:
        passages, max_length: of a group; one whole group is the least that a micro-batch can be.
        most: what no step can fill.
    """
    least = passages * max_length
    if ranks.device.type != "cuda":
        return max(least, min(most, CPU_TOKENS))
    engine.make_states()
    free, _ = torch.cuda.mem_get_info(ranks.device)
    limit = min(ranks.gather(int(MARGIN * (free + torch.cuda.memory_reserved(ranks.device)))))

    def measure(tokens: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(ranks.device)
        if tokens:
            batch = longest_groups(tokens // least, passages, max_length).to(ranks.device)
            engine.backward(0.0 * engine.score(batch).float().sum())
        return max(ranks.gather(torch.cuda.max_memory_reserved(ranks.device)))

    found = largest(measure, least, most, limit)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(ranks.device)  # the training's own peak is to be recorded
    return found


def largest(measure: Callable[[int], int], least: int, most: int, limit: int) -> int:
    """The largest multiple of `least`, at most `most`, whose need is within `limit` bytes; never below `least`.

    `measure(tokens)` gives the bytes that so many tokens need. They grow in a line: its slope is measured, and no
    size is tried that the line does not allow, nor more than four times the last one, in case it bends.
    """
    before, need, tokens = measure(0), measure(least), least
    slope = max((need - before) / least, 1e-9)
    while True:
        room = tokens + int(max(0, limit - need) / slope)
        following = min(room, most, 4 * tokens) // least * least
        if following <= tokens:
            return tokens
        after = measure(following)
        if after > limit:
            return tokens
        slope = max((after - need) / (following - tokens), 1e-9)
        tokens, need = following, after


def longest_groups(groups: int, passages: int, max_length: int) -> MicroBatch:
    """Groups of pairs that are all as long as a pair can be."""
    pair = Pair([0] * max_length, [0] * max_length)
    return collate([[pair] * passages] * groups, range(groups), passages, pad_id=0)
