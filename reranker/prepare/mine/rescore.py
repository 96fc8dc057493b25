"""A reranker's score of every positive and candidate of the pools, each pair once.

In: pools. Out: for each block the scores (logits) of its (query, place) pairs, on the disk. What is there already is
kept: another filter or number adds the pairs that it brings. On GPUs one process each takes every n-th block.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.prepare.mine.cache import Blocks
from reranker.prepare.mine.pool import Plan, Pool, pools
from reranker.prepare.mine.store import open_store
from reranker.processes import in_order
from reranker.progress import progress_bar


@dataclass(frozen=True)
class Rescoring:
    """What a process needs to rescore; `directory` is that of this model's scores."""

    model: str
    directory: Path
    max_length: int | None
    batch_tokens: int
    devices: tuple[str, ...]


def rescore(rescoring: Rescoring, plan: Plan, blocks: range) -> None:
    """Score what is not scored yet of `blocks`. Raises UserError for a model that does not load."""
    devices = len(rescoring.devices)
    calls = [(rescoring, plan, share, blocks[share::devices]) for share in range(devices)]
    with in_order(_rescore_share, calls, len(calls)) as shares:
        for _ in shares:
            pass


def scores_of(rescoring: Rescoring, number: int) -> dict[tuple[int, int], float]:
    """{(the query's index in the block, place): score} of what is scored."""
    blocks = Blocks(rescoring.directory)
    if not blocks.done(number):
        return {}
    found = blocks.get(number)
    keys = zip(found["queries"].tolist(), found["places"].tolist(), strict=True)
    return dict(zip(keys, found["scores"].tolist(), strict=True))


def _rescore_share(call: tuple[Rescoring, Plan, int, range]) -> None:
    import numpy as np

    rescoring, plan, share, mine = call
    store, reranker = open_store(plan.store), None
    blocks = Blocks(rescoring.directory)
    for number in progress_bar(mine, desc="rescoring", unit=" blocks", disable=share > 0):
        of_block = pools(plan, number)
        known = scores_of(rescoring, number)
        missing = [key for key in _pairs(plan, of_block) if key not in known]
        if not missing:
            continue
        reranker = reranker or _load(rescoring, rescoring.devices[share])
        texts = [(_query(of_block[query]), store.text(place)) for query, place in missing]
        known |= zip(missing, reranker.score_pairs(texts).tolist(), strict=True)
        blocks.put(
            number,
            queries=np.array([query for query, _ in known], np.int32),
            places=np.array([place for _, place in known], np.int32),
            scores=np.array(list(known.values()), np.float32),
        )


def _pairs(plan: Plan, of_block: list[Pool]) -> list[tuple[int, int]]:
    found = []
    for query, pool in enumerate(of_block):
        existing = pool.request.neg if plan.keep_existing else ()
        places = (*pool.request.pos, *existing, *(candidate.place for candidate in pool.kept))
        found += [(query, place) for place in dict.fromkeys(places)]
    return found


def _query(pool: Pool) -> str:
    """As the model reads it in training."""
    request = pool.request
    return f"{request.prompt} {request.query}" if request.prompt else request.query


def _load(rescoring: Rescoring, device: str) -> Any:
    from reranker.model.reranker import Reranker

    return Reranker(
        rescoring.model, device=device, max_length=rescoring.max_length, batch_tokens=rescoring.batch_tokens,
        key="rescore.model",
    )  # fmt: skip
