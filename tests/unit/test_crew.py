"""Scores that several ranks find together are those of one process, to the last bit, each found once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reranker.errors import UserError
from reranker.evaluate.crew import Alone, deal
from reranker.evaluate.report import alike
from reranker.evaluate.systems import score_together
from reranker.model import reranker as scoring
from reranker.model.reranker import Reranker
from reranker.model.windows import Whole
from tests.tiny import tiny_model

PAIRS = [
    (f"질문 {query}", f"글 {query} {place} " * (1 + (query * place) % 9))
    for query in range(11)
    for place in range(1 + query % 5)
]


class Thread:
    """A rank that is a thread; one that gathers once too often is found out by the timeout."""

    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world, self.first = rank, len(slots), rank == 0
        self._slots, self._barrier = slots, barrier

    def gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def together(self, action: Callable[[], Any]) -> Any:
        return action()

    def from_first(self, action: Callable[[], Any]) -> Any:
        return self.gather(action() if self.first else None)[0]


def on_ranks(world: int, job: Callable[[Thread], Any]) -> list[Any]:
    slots: list[Any] = [None] * world
    barrier, results = threading.Barrier(world, timeout=60), [None] * world

    def one(rank: int) -> None:
        results[rank] = job(Thread(rank, slots, barrier))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture(scope="module")
def rerankers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reranker]:
    model = tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return {
        "truncate": Reranker(model, device="cpu", batch_tokens=96),
        "windows": Reranker(model, device="cpu", batch_tokens=96, max_length=24, long="windows", window_overlap=4,
                            window_best=2),
    }  # fmt: skip


@pytest.mark.parametrize("long", ["truncate", "windows"])
@pytest.mark.parametrize("portion", [7, 8192])
def test_every_pair_is_scored_once_and_to_the_same_bits_on_any_number_of_ranks(
    rerankers: dict[str, Reranker], monkeypatch: pytest.MonkeyPatch, portion: int, long: str
) -> None:
    monkeypatch.setattr(scoring, "PORTION", portion)
    reranker = rerankers[long]
    assert any(len(of_pair) > 2 for of_pair in reranker.windows(PAIRS)) == (long == "windows")
    expected = reranker.score_pairs(PAIRS)
    assert len(np.unique(expected)) > len(PAIRS) // 2
    scored: list[int] = []
    alone = score_together(reranker, PAIRS, Alone(), scored.append)
    assert (alone == expected).all()
    assert sum(scored) == len(PAIRS)
    for world in (2, 3, 40):  # more ranks than there are batches
        calls: list[list[int]] = [[] for _ in range(world)]
        found = on_ranks(world, lambda crew: score_together(reranker, PAIRS, crew, calls[crew.rank].append))  # noqa: B023
        assert all((scores == expected).all() for scores in found)
        assert sum(count // world for of_rank in calls for count in of_rank) == len(PAIRS)


def test_a_mistake_of_one_rank_is_raised_by_all(rerankers: dict[str, Reranker]) -> None:
    reranker = rerankers["truncate"]

    class Refusing(Whole):
        path = "a model"
        batches = staticmethod(reranker.batches)

        def encode(self, pairs: Any) -> Any:
            return reranker.encode(pairs)

        def forward(self, batch: Any) -> Any:
            if threading.current_thread().name == "rank 1":
                raise UserError(self.path, "pairs", "others", "change them")
            return reranker.forward(batch)

    def job(crew: Thread) -> str:
        threading.current_thread().name = f"rank {crew.rank}"
        with pytest.raises(UserError) as caught:
            score_together(Refusing(), PAIRS, crew, lambda done: None)
        return str(caught.value)

    assert on_ranks(3, job) == ["a model: found pairs, expected others; change them"] * 3


def test_ranks_share_batches_evenly_and_none_is_left_over() -> None:
    batches = [[number] for number in range(23)]
    for world in (1, 2, 3, 5, 40):
        shares = [deal(batches, rank, world) for rank in range(world)]
        assert sorted(batch for share in shares for batch in share) == batches
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks_of_other_versions_are_told_apart_by_all_of_them() -> None:
    def job(crew: Thread) -> str:
        own = {"torch": "2.13.0", "transformers": "5.0" if crew.rank == 1 else "5.1"}
        with pytest.raises(UserError) as caught:
            alike(crew, own)
        return str(caught.value)

    first, second, third = on_ranks(3, job)
    assert (
        first
        == third.replace("on rank 2", "on rank 0")
        == (
            "environment: found transformers 5.0 on rank 1 and 5.1 on rank 0, expected the same on all ranks; install the same "
            "versions on all nodes, and choose device and precision"
        )
    )
    assert "transformers 5.1 on rank 0 and 5.0 on rank 1" in second
    assert on_ranks(3, lambda crew: alike(crew, {"torch": "2.13.0"})) == [{"torch": "2.13.0"}] * 3
