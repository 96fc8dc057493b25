from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reranker.data.collate import PackedPairs
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.dev import DevEvaluator
from reranker.model.cross_encoder import load_model, load_tokenizer, score_pairs
from tests.pairs import pair_ids
from tests.tiny import tiny_model

GROUPS = [
    {"query": f"질문 {number}", "pos": [f"옳은 글 {number}" * (1 + number % 3)],
     "neg": [f"다른 글 {number} {other}" * (1 + other) for other in range(1 + number % 4)]}
    for number in range(7)
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def evaluator(directory: Path, tmp_path: Path) -> Callable[..., DevEvaluator]:
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(group) + "\n" for group in GROUPS))
    tokenizer = PairTokenizer(load_tokenizer(str(directory)), Contract(64))
    return lambda batch_tokens=128, examples=0: DevEvaluator(path, tokenizer, batch_tokens, examples)


def _alone(values: list[Any]) -> list[list[Any]]:
    return [values]


class _Ranks:
    """Threads that exchange lists as ranks do; a rank that gathers once too often is found out by the timeout."""

    def __init__(self, world: int) -> None:
        self.world, self.slots, self.barrier = world, [[] for _ in range(world)], threading.Barrier(world, timeout=30)

    def gather(self, rank: int) -> Callable[[list[Any]], list[list[Any]]]:
        def gather(values: list[Any]) -> list[list[Any]]:
            self.slots[rank] = values
            self.barrier.wait()
            copied = [list(slot) for slot in self.slots]
            self.barrier.wait()
            return copied

        return gather

    def run(self, job: Callable[[int], Any]) -> list[Any]:
        results: list[Any] = [None] * self.world

        def one(rank: int) -> None:
            try:
                results[rank] = job(rank)
            except UserError as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_dev_queries_and_passages_stand_behind_the_prefixes_as_in_training(directory: Path, tmp_path: Path) -> None:
    prefixes = {"query_prefix": "물음: ", "passage_prefix": "글:"}
    written = [{"query": "물음: " + group["query"], "pos": ["글:" + text for text in group["pos"]],
                "neg": ["글:" + text for text in group["neg"]]} for group in GROUPS]  # fmt: skip
    shown = []
    for groups, contract in ((GROUPS, Contract(64, **prefixes)), (written, Contract(64))):
        path = tmp_path / "dev.jsonl"
        path.write_text("".join(json.dumps(group) + "\n" for group in groups))
        seen: list[list[int]] = []

        def score(pairs: PackedPairs, seen: list[list[int]] = seen) -> torch.Tensor:
            seen.extend(pair_ids(pairs))
            return torch.zeros(len(pairs))

        tokenizer = PairTokenizer(load_tokenizer(str(directory)), contract)
        DevEvaluator(path, tokenizer).evaluate(score, 0, 1, _alone, torch.device("cpu"), packed=True)
        shown.append(seen)
    assert shown[0] == shown[1]
    assert len(shown[0]) == sum(len(group["pos"]) + len(group["neg"]) for group in GROUPS)


def test_every_world_size_and_batch_size_gives_the_same_metrics(
    directory: Path, evaluator: Callable[..., DevEvaluator]
) -> None:
    model = load_model(str(directory))[0].eval()

    def score(pairs: PackedPairs) -> torch.Tensor:
        return score_pairs(model, pairs)

    cpu = torch.device("cpu")
    expected, _ = evaluator(4096).evaluate(score, 0, 1, _alone, cpu, False)
    assert set(expected) == {"mrr", "ndcg@10", "has_right_in_contexts"}
    assert 0 < expected["mrr"] < 1
    for world, batch_tokens, packed in ((2, 128, False), (3, 40, True), (9, 4096, False)):
        ranks, evaluators = _Ranks(world), [evaluator(batch_tokens) for _ in range(world)]
        found = ranks.run(lambda rank: evaluators[rank].evaluate(score, rank, world, ranks.gather(rank), cpu, packed))  # noqa: B023
        assert [metrics for metrics, _ in found] == [expected] * world


def test_every_world_size_hands_back_the_same_examples_with_the_scores_of_the_evaluation(
    directory: Path, evaluator: Callable[..., DevEvaluator]
) -> None:
    model, calls = load_model(str(directory))[0].eval(), 0

    def score(pairs: PackedPairs) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return score_pairs(model, pairs)

    cpu = torch.device("cpu")
    metrics, examples = evaluator(4096, 3).evaluate(score, 0, 1, _alone, cpu, False)
    assert len(examples) == 3
    assert calls == 1, "the examples cost no forward of their own"
    everything = {one.number: one for one in evaluator(4096, 99).evaluate(score, 0, 1, _alone, cpu, False)[1]}
    assert metrics["mrr"] == pytest.approx(sum(1 / one.right_at for one in everything.values()) / len(GROUPS))
    for one in examples:
        assert one == everything[one.number]
        group = GROUPS[one.number]
        assert one.query == group["query"]
        assert sorted(text for *_, text in one.passages) == sorted([*group["pos"], *group["neg"]])
        assert [score for _, score, *_ in one.passages] == sorted(
            (score for _, score, *_ in one.passages), reverse=True
        )
        assert [rank for rank, _, right, _ in one.passages if right] == [one.right_at]
    places = [(one.number, one.right_at) for one in examples]

    def on(world: int) -> list[Any]:
        ranks, evaluators = _Ranks(world), [evaluator(128, 3) for _ in range(world)]
        return ranks.run(lambda rank: evaluators[rank].evaluate(score, rank, world, ranks.gather(rank), cpu, True))

    for _, found in (*on(2), *on(9)):
        assert [(one.number, one.right_at) for one in found] == places


@pytest.mark.parametrize("world", [2, 3, 9])
def test_every_rank_calls_the_forward_equally_often(world: int, evaluator: Callable[..., DevEvaluator]) -> None:
    ranks, evaluators, calls = _Ranks(world), [evaluator(64) for _ in range(world)], [0] * world

    def job(rank: int) -> object:
        def score(pairs: PackedPairs) -> torch.Tensor:
            calls[rank] += 1
            return pairs.cu_seqlens.diff().float()

        return evaluators[rank].evaluate(score, rank, world, ranks.gather(rank), torch.device("cpu"), True)

    ranks.run(job)
    assert min(calls) == max(calls) > 0


def test_batches_are_the_same_on_any_number_of_ranks_and_no_rank_has_more_than_one_more(
    evaluator: Callable[..., DevEvaluator],
) -> None:
    def batches(world: int) -> list[list[list[list[int]]]]:
        ranks, evaluators = _Ranks(world), [evaluator(64) for _ in range(world)]
        seen: list[list[list[list[int]]]] = [[] for _ in range(world)]

        def job(rank: int) -> dict[str, float]:
            def score(pairs: PackedPairs) -> torch.Tensor:
                seen[rank].append(pair_ids(pairs))
                return pairs.cu_seqlens.diff().float()

            return evaluators[rank].evaluate(score, rank, world, ranks.gather(rank), torch.device("cpu"), True)

        ranks.run(job)
        return seen

    (alone,) = batches(1)
    for world in (2, 3, 5):
        shares = [[batch for batch in share if max(map(len, batch)) > 1] for share in batches(world)]  # without ghosts
        assert sorted(batch for share in shares for batch in share) == sorted(alone)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_model_that_scores_everything_alike_gets_the_worst_rank(evaluator: Callable[..., DevEvaluator]) -> None:
    found, _ = evaluator().evaluate(lambda pairs: torch.zeros(len(pairs)), 0, 1, _alone, torch.device("cpu"), True)
    assert found["mrr"] == pytest.approx(sum(1 / (1 + len(group["neg"])) for group in GROUPS) / len(GROUPS))


def test_a_prompt_goes_before_the_query_as_in_training(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text(
        json.dumps({"query": "수도는?", "pos": ["서울"], "neg": ["부산"], "prompt": "찾기:"})
    )
    tokenizer = load_tokenizer(str(directory))
    seen: list[list[int]] = []

    def score(pairs: PackedPairs) -> torch.Tensor:
        seen.extend(pair_ids(pairs))
        return torch.zeros(len(pairs))

    evaluator = DevEvaluator(tmp_path / "dev.jsonl", PairTokenizer(tokenizer, Contract(64)))
    evaluator.evaluate(score, 0, 1, _alone, torch.device("cpu"), False)
    assert sorted(seen) == sorted(tokenizer("찾기: 수도는?", passage)["input_ids"] for passage in ("서울", "부산"))


def test_a_score_that_is_not_finite_is_told_on_every_rank(evaluator: Callable[..., DevEvaluator]) -> None:
    ranks, evaluators = _Ranks(2), [evaluator(), evaluator()]

    def job(rank: int) -> object:
        value = float("nan") if rank == 0 else 1.0
        return evaluators[rank].evaluate(
            lambda pairs: torch.full((len(pairs),), value), rank, 2, ranks.gather(rank), torch.device("cpu"), True
        )  # fmt: skip

    found = ranks.run(job)
    assert [type(error) for error in found] == [UserError, UserError]
    assert str(found[0]) == str(found[1])
    # Those of which rank 0 has a pair in one of its batches.
    assert "scores that are not finite for 6 queries, the first being number 1" in str(found[1])


def test_the_file_is_read_once_and_checked(evaluator: Callable[..., DevEvaluator], tmp_path: Path) -> None:
    assert evaluator().queries == len(GROUPS)
    (tmp_path / "dev.jsonl").write_text('{"query": "q", "pos": "text", "neg": ["n"]}\n')
    with pytest.raises(UserError, match=r'dev.jsonl:1: found "pos" a string'):
        evaluator()
