"""What is in a micro-batch, for tests to compare."""

from __future__ import annotations

from reranker.data.collate import PackedPairs


def pair_ids(pairs: PackedPairs) -> list[list[int]]:
    """The token ids of each pair."""
    return [ids.tolist() for ids in pairs.ids_T.split(pairs.cu_seqlens.diff().tolist())]
