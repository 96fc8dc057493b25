"""A micro-batch in chunks has the gradient of the whole, and never more of it in memory than a chunk."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.data.collate import MicroBatch, PackedPairs, collate, ghost, pack_pairs
from reranker.data.tokenize import Pair
from reranker.model import chunks
from reranker.model.cross_encoder import load_model, score_pairs
from reranker.model.losses import Objective
from reranker.model.unpad import pack
from tests.tiny import tiny_model

OBJECTIVE = Objective(0.7, 0.5, by_label="multi_positive", more=(("lambdaloss", 0.3),))


def pair(length: int, seed: int = 0) -> Pair:
    draw = torch.Generator().manual_seed(1000 * seed + length)
    return Pair(torch.randint(5, 200, (length,), generator=draw).tolist(), [0] * length)


def some_batch() -> MicroBatch:
    """Three groups of up to five passages, the second with two positives, and one that could not be read."""
    lengths = [[12, 30, 7, 25, 3], [9, 9, 40, 4], [17, 5, 22, 8, 31]]
    groups = [
        [pair(length, 10 * row + place) for place, length in enumerate(group)] for row, group in enumerate(lengths)
    ]
    teacher = [[float(place % 3) for place in range(len(group))] for group in lengths]
    return collate(groups, [0, 1, 2], 5, 1, ["a bad one"], teacher, [1, 2, 1])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def model_of(directory: Path, packed: bool, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Any:
    model, _ = load_model(str(directory), dropout=dropout, dtype=dtype)
    if packed:
        pack(model)
    return model.train()


def run(
    model: Any, batch: MicroBatch, tokens: int | None, packed: bool, passes: int | None = None, score: Any = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(scores_GP, loss, the gradient of every parameter)."""
    model.zero_grad()
    cut = chunks.split(batch.packed, tokens, packed)
    scores_GP, loss = chunks.forward_and_backward(
        batch, cut, passes or len(cut), objective=OBJECTIVE, score=score or (lambda pairs: score_pairs(model, pairs)),
        backward=torch.Tensor.backward, share=0.25, seed=7,
    )  # fmt: skip
    return scores_GP, loss, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_equal_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = max(gradient.norm().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-12 * scale, name


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), tokens=st.integers(1, 200), packed=st.booleans())
def test_chunks_are_the_pairs_in_their_order_and_within_the_limit(
    lengths: list[int], tokens: int, packed: bool
) -> None:
    whole = pack_pairs([pair(length) for length in lengths], pad_id=1)
    cut = chunks.split(whole, tokens, packed)
    assert torch.cat([chunk.ids_T for chunk in cut]).equal(whole.ids_T)
    assert torch.cat([chunk.cu_seqlens.diff() for chunk in cut]).tolist() == lengths
    for chunk in cut:
        assert len(chunk) == 1 or chunks.cost(chunk, packed) <= tokens
        assert chunk.longest == max(chunk.cu_seqlens.diff().tolist())
        assert len(chunk.ids_T) == len(chunk.types_T) == chunk.cu_seqlens[-1]
    for chunk, following in itertools.pairwise(cut):  # a chunk ends only where the next pair has no room
        lengths_ = [*chunk.cu_seqlens.diff().tolist(), int(following.cu_seqlens[1])]
        assert (sum(lengths_) if packed else len(lengths_) * max(lengths_)) > tokens


def test_without_a_limit_nothing_is_cut() -> None:
    whole = some_batch().packed
    assert chunks.split(whole, None, packed=True) == [whole]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tokens", [1, 40, 64, 100, 100_000])
def test_the_gradient_in_chunks_is_that_of_the_whole(directory: Path, packed: bool, tokens: int) -> None:
    model, batch = model_of(directory, packed), some_batch()
    scores_GP, loss, expected = run(model, batch, None, packed)
    in_chunks_GP, loss_in_chunks, found = run(model, batch, tokens, packed)
    torch.testing.assert_close(in_chunks_GP, scores_GP, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss_in_chunks, loss, rtol=1e-12, atol=1e-12)
    assert_equal_gradients(found, expected)


def test_more_passes_than_chunks_add_nothing_and_run_the_model_as_often(directory: Path) -> None:
    model, batch = model_of(directory, packed=True), some_batch()
    _, loss, expected = run(model, batch, 64, True)
    calls = []

    def score(pairs: PackedPairs) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return score_pairs(model, pairs)

    _, with_more, found = run(model, batch, 64, True, passes=9, score=score)
    assert calls == [False] * 9 + [True] * 9
    assert with_more == loss
    assert_equal_gradients(found, expected)


def test_the_gradient_by_a_score_of_16_bits_is_not_rounded_to_16_bits() -> None:
    """A loss scale comes behind it: what 16 bits cannot hold before would be lost."""
    weight = torch.full((1,), 0.5, dtype=torch.float16, requires_grad=True)
    batch, seen = collate([[pair(4), pair(5)]], [0], 2, 1), []

    def score(pairs: PackedPairs) -> torch.Tensor:
        return weight * pairs.cu_seqlens.diff()

    def backward(loss: torch.Tensor) -> None:
        seen.append(loss)

    cut = chunks.split(batch.packed, 5, packed=True)
    chunks.forward_and_backward(batch, cut, len(cut), objective=Objective(), score=score, backward=backward,
                                share=1e-9, seed=0)  # fmt: skip
    assert len(seen) == 2
    assert all(loss.dtype == torch.float32 and loss.item() != 0 for loss in seen)


@pytest.mark.parametrize("packed", [True, False])
def test_no_forward_pass_is_larger_than_a_chunk(directory: Path, packed: bool) -> None:
    model, seen = model_of(directory, packed), []

    def score(pairs: PackedPairs) -> torch.Tensor:
        seen.append(chunks.cost(pairs, packed))
        return score_pairs(model, pairs)

    run(model, some_batch(), 64, packed, score=score)
    assert max(seen) <= 64 < chunks.cost(some_batch().packed, packed)


@pytest.mark.parametrize("packed", [True, False])  # attention has dropout where it is padded
def test_dropout_draws_alike_in_both_passes_of_a_chunk(directory: Path, packed: bool) -> None:
    model, given_N = model_of(directory, packed, dropout=0.3), []

    def score(pairs: PackedPairs) -> torch.Tensor:
        scores_N = score_pairs(model, pairs)
        given_N.append(scores_N.detach())
        return scores_N

    scores_GP, _, _ = run(model, some_batch(), 64, packed, score=score)
    first, second = given_N[: len(given_N) // 2], given_N[len(given_N) // 2 :]
    assert torch.cat(first).equal(torch.cat(second))
    assert torch.cat(first).equal(scores_GP.flatten())


def test_each_chunk_draws_dropout_of_its_own(directory: Path) -> None:
    alike = collate([[pair(9)] * 4], [0], 4, 1)
    scores_GP, _, _ = run(model_of(directory, packed=True, dropout=0.3), alike, 9, True)
    assert len(set(scores_GP.flatten().tolist())) == 4


def test_a_rank_of_one_chunk_draws_the_same_dropout_whatever_the_others_have(directory: Path) -> None:
    model, batch = model_of(directory, packed=True, dropout=0.3), some_batch()
    alone_GP, _, expected = run(model, batch, None, True)
    beside_GP, _, found = run(model, batch, None, True, passes=3)
    assert beside_GP.equal(alone_GP)
    assert_equal_gradients(found, expected)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_scores_of_a_ghost_that_are_not_finite_reach_no_gradient(bad: float) -> None:
    weight = torch.ones(1, requires_grad=True)
    batch = collate([[pair(4), pair(5)]], [0], 2, 1, ["a bad one"])

    def score(pairs: PackedPairs) -> torch.Tensor:
        lengths_N = pairs.cu_seqlens.diff()
        return weight * torch.where(lengths_N == 1, 1.0, lengths_N.float()) + torch.where(lengths_N == 1, bad, 0.0)

    cut = chunks.split(batch.packed, 5, packed=True)
    assert len(cut) > 1
    _, loss = chunks.forward_and_backward(batch, cut, len(cut) + 1, objective=Objective(), score=score,
                                          backward=torch.Tensor.backward, share=1.0, seed=0)  # fmt: skip
    assert loss.item() == pytest.approx(math.log(1 + math.e))
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_a_rank_without_groups_takes_part(directory: Path) -> None:
    model = model_of(directory, packed=True)
    _, loss, gradients = run(model, ghost(pad_id=1), 8, True, passes=4)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients.values())
