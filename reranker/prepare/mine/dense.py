"""Any sentence-transformers encoder over a store: embeddings on the disk, and exact search block by block.

In: a store and a model. Out: unit vectors (float32) of all texts and queries in blocks written whole, and for each
query its best places by cosine, rounded to `DECIMALS`, equal ones by place. Nothing is approximated: every query
meets every candidate. Memory holds the vectors of a block of passages and of queries and the scores between them. On
GPUs one process each encodes every n-th block. Of several tasks each needs all passages and begins with a share of its
own; what the others have not done by then it does as well, their last blocks first: none waits for one that is lost.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.files import atomic_open, make_directory
from reranker.prepare.mine.cache import QUERIES, Blocks
from reranker.prepare.mine.store import Store, open_store
from reranker.prepare.part import Part
from reranker.processes import in_order
from reranker.progress import progress_bar, without_hub_bars

TEXTS = 4096
"""Texts of a block on the disk."""
SEARCHED = 16 * QUERIES
"""Queries that one pass over the passages answers at most."""
FOUND = 1 << 22
"""Places that one pass finds at most, be it for fewer queries; a pass answers one block of queries at least."""
DECIMALS = 5
"""Of a cosine in the search. The same product can differ in the seventh decimal with the size of the blocks that are
multiplied; rounded it seldom does: only where it lies at the edge between two values. The size is thus part of the
search's cache key."""


_WEIGHT = re.compile(r"^(\S+) +\| +(?:\x1b\[[0-9;]*m)?(?:UNEXPECTED|MISSING)", re.MULTILINE)
_HEADS = ("classifier.", "score.", "pooler.", "lm_head.", "cls.")


@dataclass(frozen=True)
class Encoder:
    """What a process needs to encode.

    Attributes:
        model: directory or hub name.
        max_length: tokens of a text at most; None: the model's own.
        devices: torch's names; one process for each.
    """

    model: str
    query_prefix: str
    passage_prefix: str
    max_length: int | None
    batch_tokens: int
    devices: tuple[str, ...]

    def load(self, device: str) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError("dense.model", f"no sentence-transformers ({error})", "the package that loads it",
                            'pip install "ko-reranker[mining]"') from None  # fmt: skip
        try:
            with without_hub_bars(), _quiet_about_heads():
                model = SentenceTransformer(self.model, device=device)
        except (OSError, ValueError) as error:
            raise UserError("dense.model", f"{self.model}, which does not load ({error})", "an encoder",
                            "check the path or the name") from None  # fmt: skip
        if self.max_length is not None:
            model.max_seq_length = min(self.max_length, model.max_seq_length or self.max_length)
        return model


@contextlib.contextmanager
def _quiet_about_heads() -> Iterator[None]:
    """Without the report of weights that do not fit, where it names none but those of heads: an encoder has none."""

    def tells_more(record: logging.LogRecord) -> bool:
        named = _WEIGHT.findall(record.getMessage())
        return not named or any(not name.startswith(_HEADS) for name in named)

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(tells_more)
    try:
        yield
    finally:
        logger.removeFilter(tells_more)


def devices_of(name: str) -> tuple[str, ...]:
    """The devices that a setting means: every GPU, or the CPU. Raises UserError."""
    import torch

    from reranker.model.reranker import device_and_precision

    if device_and_precision(name, "fp32")[0].type == "cpu":
        return ("cpu",)
    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))


def encode(encoder: Encoder, store: Path, directory: Path, blocks: range, part: Part | None = None) -> None:
    """Write passages/block-*.npy, and queries/block-*.npy of `blocks`, those that are not there yet.

    `part`: the task that this is of several; its share of the passages comes first.
    """
    make_directory(directory / "passages")
    make_directory(directory / "queries")
    passages = range(-(-len(open_store(store)) // TEXTS))
    own = part.of_range(len(passages)) if part else passages
    wanted = [
        *(("passages", number) for number in own),
        *(("queries", number) for number in blocks),
        *(("passages", number) for number in reversed(passages) if number not in own),
    ]
    devices = len(encoder.devices)
    calls = [(encoder, store, directory, share, wanted[share::devices]) for share in range(devices)]
    with in_order(_encode_share, calls, len(calls)) as shares:
        for _ in shares:
            pass


def _encode_share(call: tuple[Encoder, Path, Path, int, list[tuple[str, int]]]) -> None:
    import numpy as np

    encoder, store_directory, directory, share, wanted = call
    store, model = open_store(store_directory), None
    for kind, number in progress_bar(wanted, desc="dense encoding", unit=" blocks", disable=share > 0):
        path = directory / kind / f"block-{number:06d}.npy"
        if path.exists():
            continue
        if kind == "queries":
            texts = [encoder.query_prefix + request.query for request in store.block(number)]
        else:
            last = min((number + 1) * TEXTS, len(store))
            texts = [encoder.passage_prefix + store.text(place) for place in range(number * TEXTS, last)]
        model = model or encoder.load(encoder.devices[share])
        with atomic_open(path) as stream:
            np.save(stream, embed(model, texts, encoder.batch_tokens))


def embed(model: Any, texts: Sequence[str], batch_tokens: int) -> Any:
    """embeddings_NH of length 1."""
    import numpy as np

    from reranker.model.reranker import batches_by_tokens

    most = model.max_seq_length or 1 << 20
    # Bytes over two: no tokenizer of ours to ask, and an estimate is all that a bound on memory wants.
    lengths = [min(most, len(text.encode("utf-8")) // 2 + 2) for text in texts]
    found: Any = None
    for batch in batches_by_tokens(lengths, batch_tokens, packed=False):
        rows = model.encode(
            [texts[index] for index in batch], batch_size=len(batch), normalize_embeddings=True,
            convert_to_numpy=True, show_progress_bar=False,
        )  # fmt: skip
        if found is None:
            found = np.empty((len(texts), rows.shape[1]), np.float32)
        found[batch] = rows
    if not np.isfinite(found).all():
        raise UserError("dense.model", "embeddings that are not finite", "numbers", "check the weights")
    return found


def search(
    directory: Path, store_directory: Path, found: Blocks, last: int, block: int, device: str,
    blocks: range | None = None,
) -> None:  # fmt: skip
    """Leave the best candidates of each query in `found`, as many as ranks up to `last` want, behind them -1.

    For those `blocks` of queries (None: all) that are not there yet; `block` passages are compared at a time.
    """
    import numpy as np
    import torch

    store = open_store(store_directory)
    missing = [number for number in (range(store.blocks) if blocks is None else blocks) if not found.done(number)]
    with progress_bar(desc="dense search", unit=" blocks", total=len(missing)) as bar:
        for depths in _passes(store, missing, last):
            rows = [np.load(directory / "queries" / f"block-{number:06d}.npy") for number in depths]
            queries_QH = torch.from_numpy(np.concatenate(rows)).to(device)
            depth = min(max(map(max, depths.values())), store.candidates)
            places_QK = _best(directory, queries_QH, store.candidates, depth, block)
            parts = np.split(places_QK, np.cumsum([len(row) for row in rows])[:-1])
            for (number, wanted), places in zip(depths.items(), parts, strict=True):
                # Its own depth, not its neighbours': fusion would tell the difference.
                behind = np.arange(depth) >= np.array(wanted)[:, None]
                found.put(number, places=np.where(behind, np.int32(-1), places)[:, : max(wanted)])
            bar.update(len(depths))


def _passes(store: Store, missing: Sequence[int], last: int) -> Iterator[dict[int, list[int]]]:
    """The blocks of queries that one pass over the passages answers, each with the depths of its queries."""
    taken: dict[int, list[int]] = {}
    deepest = 0
    for number in missing:
        depths = [min(request.depth(last), store.candidates) for request in store.block(number)]
        queries = (len(taken) + 1) * QUERIES
        if taken and (queries > SEARCHED or queries * max(deepest, *depths) > FOUND):
            yield taken
            taken, deepest = {}, 0
        taken[number], deepest = depths, max(deepest, *depths)
    if taken:
        yield taken


def _best(directory: Path, queries_QH: Any, candidates: int, depth: int, block: int) -> Any:
    """places_QK (int32), best first, equal scores by place."""
    import torch

    count = len(queries_QH)
    scores_QK = torch.empty((count, 0), device=queries_QH.device)
    places_QK = torch.empty((count, 0), dtype=torch.int64, device=queries_QH.device)
    for first in range(0, candidates, block):
        passages_PH = torch.from_numpy(_range(directory, first, min(first + block, candidates))).to(queries_QH.device)
        own_QP = (queries_QH @ passages_PH.T).round_(decimals=DECIMALS)
        size = own_QP.shape[1]
        # One more than wanted: where it equals the last, topk chose among equals, and the row is sorted whole.
        values, indices = own_QP.topk(min(depth + 1, size), dim=1)
        if size > depth:
            cut = values[:, depth - 1] == values[:, depth]
            values, indices = values[:, :depth], indices[:, :depth]
            indices[cut] = own_QP[cut].argsort(dim=1, descending=True, stable=True)[:, :depth]
            values[cut] = own_QP[cut].gather(1, indices[cut])
        scores_QK = torch.cat([scores_QK, values], dim=1)
        places_QK = torch.cat([places_QK, indices + first], dim=1)
        # Two stable sorts: by place, then by score.
        order = places_QK.argsort(dim=1)
        scores_QK, places_QK = scores_QK.gather(1, order), places_QK.gather(1, order)
        order = scores_QK.argsort(dim=1, descending=True, stable=True)[:, :depth]
        scores_QK, places_QK = scores_QK.gather(1, order), places_QK.gather(1, order)
    return places_QK.int().cpu().numpy()


def _range(directory: Path, first: int, last: int) -> Any:
    """Rows first to last of the passages' embeddings."""
    import numpy as np

    parts = []
    for number in range(first // TEXTS, (last - 1) // TEXTS + 1):
        rows = np.load(directory / "passages" / f"block-{number:06d}.npy", mmap_mode="r")
        parts.append(rows[max(0, first - number * TEXTS) : last - number * TEXTS])
    return np.concatenate(parts)
