"""batch.tokens=auto: the largest micro-batch that a rank's memory holds, found before the first step.

A forward and backward of made-up pairs is measured, in growing sizes, as training runs them; its loss is zero, so that
nothing is learned from it. The optimizer's states exist by then. Ranks measure together and agree on the least: under
ZeRO 2 and 3 a backward is a collective call, and a micro-batch that only some ranks can hold would end them all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from reranker.data.collate import MicroBatch, collate, ghost
from reranker.data.tokenize import Pair
from reranker.errors import UserError
from reranker.train.distributed import Ranks, device_name
from reranker.train.job import Job

if TYPE_CHECKING:  # deepspeed takes seconds to import: the engine is made when everything else is in order
    from reranker.train.engine import Engine

MARGIN = 0.9
"""Share of the memory that may be taken: fragments and communication buffers need the rest."""
CPU_TOKENS = 4096
"""On a CPU larger micro-batches gain nothing: the memory of a machine is not what limits them."""
SHORT = 32
"""Tokens of a pair for which attention's backward, which rounds each pair up, takes the most memory a token."""
_FAR_TOO_MUCH = 2**62


def measured_tokens(job: Job, engine: Any, ranks: Ranks, saved: dict[str, Any] | None) -> dict[str, Any]:
    """batch.tokens=auto: {"tokens", "under": what they depend on}; a collective call.

    A resume under the same conditions takes the number that its checkpoint has, so that it plans alike.
    """
    model, data = job.config.model, job.config.data
    under = {
        "devices": sorted(ranks.gather(device_name(ranks.device))), "stage": job.stage,
        "precision": job.arithmetic.told, "offload": job.config.deepspeed.offload,
        "bucket": job.config.deepspeed.reduce_bucket_size, "packed": job.packed, "model": model.name,
        "dropout": model.dropout, "gradient_checkpointing": model.gradient_checkpointing,
        "group_size": data.group_size, "max_length": data.max_length, "groups": job.config.batch.groups,
    }  # fmt: skip
    if saved is not None and saved["under"] == under:
        measured, how = saved, "as measured before"
    else:
        tokens = find_tokens(engine, ranks, data.group_size, data.max_length, job.most_tokens, job.packed)
        measured, how = {"tokens": tokens, "under": under}, "measured"
    if ranks.first:
        print(f"batch.tokens=auto: {measured['tokens']:,} tokens, {how}", file=sys.stderr)
    return measured


def find_tokens(engine: Engine, ranks: Ranks, passages: int, max_length: int, most: int, packed: bool) -> int:
    """Tokens of a micro-batch, alike on every rank; a collective call.

    Args:
        passages, max_length: of a group; one whole group is the least that a micro-batch can be.
        most: what no step can fill.

    Raises UserError, on every rank alike, where not even one group fits.
    """
    least = passages * max_length
    if ranks.device.type != "cuda":
        return max(least, min(most, CPU_TOKENS))
    engine.train()  # dropout and gradient checkpointing take their memory then alone
    engine.make_states()
    free, _ = torch.cuda.mem_get_info(ranks.device)
    limit = min(ranks.gather(int(MARGIN * (free + torch.cuda.memory_reserved(ranks.device)))))

    def measure(tokens: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(ranks.device)
        # Without tokens: what is taken before, the gradients among it.
        batch = made_up(tokens, passages, max_length, packed) if tokens else ghost(pad_id=0)
        try:
            engine.backward(0.0 * engine.score(batch.to(ranks.device)).float().sum())
            need = torch.cuda.max_memory_reserved(ranks.device)
        except torch.OutOfMemoryError:
            if engine.stage > 1:
                raise  # in the middle of a collective: the others cannot be told
            need = _FAR_TOO_MUCH
        return max(ranks.gather(need))

    found = largest(measure, least, most, limit)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(ranks.device)  # the training's own peak is to be recorded
    if found is None:
        error = UserError("batch.tokens", f"auto where not one group of {least:,} tokens fits", "a group that does",
                          "lower data.group_size or data.max_length, or say model.gradient_checkpointing=true, "
                          "deepspeed=zero3_offload, or batch.chunk_tokens with a number for batch.tokens")  # fmt: skip
        error.agreed = True
        raise error
    return found


def largest(measure: Callable[[int], int], least: int, most: int, limit: int) -> int | None:
    """The largest multiple of `least`, at most `most`, whose need is within `limit` bytes; None if `least` is not.

    `measure(tokens)` gives the bytes that so many tokens need. They grow in a line: its slope is measured, and no
    size is tried that the line does not allow, nor more than four times the last one, nor, before the line has
    foretold a need to two hundredths, more than half of the way.
    """
    before, need, tokens = measure(0), measure(least), least
    if need > limit:
        return None
    slope, proved = max((need - before) / least, 1e-9), False
    while True:
        room = int((limit - need) / slope)
        following = min(tokens + (room if proved else (room + least) // 2), most, 4 * tokens) // least * least
        if following <= tokens:
            return tokens
        foretold = need + slope * (following - tokens)
        after = measure(following)
        if after > limit:
            return tokens
        proved = abs(after - foretold) <= 0.02 * foretold
        slope = max((after - need) / (following - tokens), 1e-9)
        tokens, need = following, after


def made_up(tokens: int, passages: int, max_length: int, packed: bool) -> MicroBatch:
    """About as many tokens as asked for, in groups of those pairs that cost the most memory.

    Packed: the shortest. Padded: the longest, one of them shorter by a token, as without any padding attention would
    not be masked.
    """
    length = min(SHORT, max_length) if packed else max_length
    groups = [[Pair([0] * length, [0] * length)] * passages for _ in range(max(1, tokens // (passages * length)))]
    if not packed:
        groups[0] = [Pair([0] * (length - 1), [0] * (length - 1)), *groups[0][1:]]
    return collate(groups, range(len(groups)), passages, pad_id=0)
