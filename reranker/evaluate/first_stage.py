"""The first stage: the passages of each query that are reranked, best first.

In: a set and what is in it. Out: for each query the ids of its candidates, alike on every rank: those that it came
with, those of a run, or those that BM25 or an encoder finds. Nothing is approximated, and ties are broken against it.
BM25 and a run are rank 0's; the passages of an encoder are shared by the ranks, in blocks that do not depend on their
number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reranker.config.evaluating import Stage
from reranker.config.mining import DenseConfig
from reranker.errors import UserError
from reranker.evaluate.crew import Crew
from reranker.evaluate.forms import Material, read_run
from reranker.evaluate.metrics import ranking
from reranker.evaluate.rank import Passage, Query, retrieve
from reranker.evaluate.sets import EvaluationSet
from reranker.prepare.mine.dense import DECIMALS, TEXTS, Encoder, embed
from reranker.progress import progress_bar


def find(
    of_set: EvaluationSet, material: Material, queries: Sequence[Query], crew: Crew, device: str
) -> list[list[str]]:
    """The candidates of `queries`, as many as the deepest of the set's depths. A collective call. Raises UserError."""
    if of_set.stage is Stage.auto:
        assert material.candidates is not None
        by_qid = {query.qid: names for query, names in zip(material.queries, material.candidates, strict=True)}
        return [by_qid[query.qid] for query in queries]
    depth = max(of_set.depths)
    if of_set.stage is Stage.run:
        return crew.from_first(lambda: _of_run(of_set.files["run"], queries, material.corpus, depth))
    if of_set.stage is Stage.dense:
        return dense(queries, material.corpus, of_set.config.dense, depth, crew, device)
    return crew.from_first(lambda: retrieve(queries, material.corpus, of_set.bm25, depth, progress=True))


def _of_run(path: Path, queries: Sequence[Query], corpus: dict[str, Passage], depth: int) -> list[list[str]]:
    """A query that the run does not have has no candidates, and counts as 0."""
    run = read_run(path)
    candidates = []
    for query in queries:
        scores = run.get(query.qid, {})
        for name in scores:
            if name not in corpus:
                raise UserError(path, f"passage {name} for query {query.qid}", "the id of a passage in the corpus",
                                "add the passage to the corpus, or take the run of this corpus")  # fmt: skip
        candidates.append(ranking(list(scores), list(scores.values()), query.judged)[:depth])
    if not any(candidates):
        raise UserError(path, "a run of other queries", "some of the set's", "check the path")
    return candidates


def dense(
    queries: Sequence[Query], corpus: dict[str, Passage], settings: DenseConfig, depth: int, crew: Crew, device: str
) -> list[list[str]]:
    """By cosine, rounded as in mining; each rank encodes blocks of passages and keeps the best of them."""
    from reranker.model.reranker import device_and_precision

    assert settings.model is not None
    own = str(device_and_precision(device, "fp32")[0])
    encoder = Encoder(settings.model, settings.query_prefix, settings.passage_prefix, settings.max_length,
                      settings.batch_tokens, (own,))  # fmt: skip
    ids = list(corpus)

    def best() -> tuple[np.ndarray, np.ndarray]:
        model = encoder.load(own)
        queries_QH = embed(model, [encoder.query_prefix + query.query for query in queries], encoder.batch_tokens)
        scores_QK = np.empty((len(queries), 0), np.float32)
        places_QK = np.empty((len(queries), 0), np.int64)
        blocks = range(crew.rank * TEXTS, len(ids), crew.world * TEXTS)
        for start in progress_bar(blocks, desc="first stage", unit=" blocks", disable=not crew.first):
            texts = [encoder.passage_prefix + corpus[name].text for name in ids[start : start + TEXTS]]
            own_QP = np.round(queries_QH @ embed(model, texts, encoder.batch_tokens).T, DECIMALS)
            places_QP = np.broadcast_to(np.arange(start, start + len(texts)), own_QP.shape)
            scores_QK = np.concatenate([scores_QK, own_QP], axis=1)
            places_QK = np.concatenate([places_QK, places_QP], axis=1)
            scores_QK, places_QK = _first(scores_QK, places_QK, depth)
        return scores_QK, places_QK

    shares = crew.gather(crew.together(best))
    scores_QK, places_QK = (np.concatenate(arrays, axis=1) for arrays in zip(*shares, strict=True))
    scores_QK, places_QK = _first(scores_QK, places_QK, depth)
    return [
        ranking([ids[place] for place in places], scores, query.judged)
        for query, scores, places in zip(queries, scores_QK, places_QK, strict=True)
    ]


def _first(scores_QK: np.ndarray, places_QK: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `depth` of each row, equal scores by place."""
    order_QK = np.lexsort((places_QK, -scores_QK), axis=1)[:, :depth]
    return np.take_along_axis(scores_QK, order_QK, axis=1), np.take_along_axis(places_QK, order_QK, axis=1)
