"""The largest micro-batch that fits is found without ever trying one that may not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reranker.checks import Arithmetic
from reranker.config.common import Precision
from reranker.config.training import TrainConfig
from reranker.train.capacity import MARGIN, find_tokens, largest, made_up, measured_tokens
from reranker.train.distributed import Ranks


@given(
    least=st.integers(10, 5000), fixed=st.integers(0, 10**9), per_token=st.integers(1, 10**6),
    fit=st.integers(1, 3000), cap=st.integers(1, 3000),
)  # fmt: skip
def test_the_largest_that_fits_is_found_and_nothing_larger_is_tried(
    least: int, fixed: int, per_token: int, fit: int, cap: int
) -> None:
    limit = fixed + per_token * (fit * least + least // 2)
    tried: list[int] = []

    def measure(tokens: int) -> int:
        tried.append(tokens)
        return fixed + per_token * tokens  # without tokens: what is there before

    assert largest(measure, least, cap * least, limit) == min(fit, cap) * least
    assert max(tried) <= fit * least
    assert tried == sorted(set(tried))
    assert len(tried) < 12


def test_where_not_one_group_fits_nothing_larger_is_tried() -> None:
    tried: list[int] = []
    assert largest(lambda tokens: tried.append(tokens) or 10**12, 100, 10_000, 10**9) is None
    assert tried == [0, 100]


def test_a_need_that_bends_upwards_is_not_overrun() -> None:
    tried: list[int] = []

    def measure(tokens: int) -> int:
        tried.append(tokens)
        return tokens**2

    found = largest(measure, 10, 10_000, 10**6)
    assert found is not None
    assert 10**5 < found**2 <= 10**6
    assert max(tried) ** 2 <= 10**6 / MARGIN


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_measured_costs_the_most_that_as_many_tokens_can(packed: bool) -> None:
    batch = made_up(2 * 5 * 64, 5, 64, packed)
    lengths = batch.packed.cu_seqlens.diff().tolist()
    assert lengths == ([32] * 20 if packed else [63] + [64] * 9)
    assert batch.present_GP.shape == ((4, 5) if packed else (2, 5))
    # Padded, the mask has a place without a token: without one attention would run another kernel.
    assert bool(batch.packed.padded()[2].all()) is packed


class FakeEngine:
    """The memory of a GPU in the place of one: what `find_tokens` asks of it, and in which mode."""

    stage = 1

    def __init__(self, fixed: int, per_token: int) -> None:
        self.fixed, self.per_token, self.mode, self.peak = fixed, per_token, "eval", 0
        self.calls: list[tuple[str, int]] = []

    def train(self) -> None:
        self.mode = "train"

    def make_states(self) -> None:
        self.calls.append(("states", 0))

    def score(self, batch: Any) -> torch.Tensor:
        self.calls.append((self.mode, batch.packed.tokens))
        self.peak = self.fixed + self.per_token * batch.packed.tokens
        return torch.ones(1, requires_grad=True)

    def backward(self, loss: torch.Tensor) -> None:
        assert loss.item() == 0.0


def on_fake_gpu(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, memory: int) -> Ranks:
    cuda = {
        "mem_get_info": lambda device: (memory, memory), "memory_reserved": lambda device: 0, "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None, "max_memory_reserved": lambda device: engine.peak,
    }  # fmt: skip
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr("reranker.data.collate.MicroBatch.to", lambda self, device: self)
    return SimpleNamespace(device=torch.device("cuda"), gather=lambda value: [value])  # type: ignore[return-value]


def test_a_gpu_is_measured_as_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(fixed=10**9, per_token=10**6)
    ranks = on_fake_gpu(monkeypatch, engine, memory=10**10)
    found = find_tokens(engine, ranks, 4, 128, 10**6, packed=True)  # type: ignore[arg-type]
    assert found == int((MARGIN * 10**10 - 10**9) / 10**6) // 512 * 512
    assert engine.calls[0] == ("states", 0)
    assert {mode for mode, _ in engine.calls[1:]} == {"train"}


def test_a_gpu_too_small_for_one_group_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from reranker.errors import UserError

    engine = FakeEngine(fixed=10**9, per_token=10**8)
    ranks = on_fake_gpu(monkeypatch, engine, memory=10**10)
    with pytest.raises(UserError) as caught:
        find_tokens(engine, ranks, 4, 128, 10**6, packed=False)  # type: ignore[arg-type]
    assert caught.value.agreed
    assert str(caught.value) == (
        "batch.tokens: found auto where not one group of 512 tokens fits, expected a group that does; lower "
        "data.group_size or data.max_length, or say model.gradient_checkpointing=true, deepspeed=zero3_offload, or "
        "batch.chunk_tokens with a number for batch.tokens"
    )


def test_what_was_measured_counts_under_the_same_conditions_alone(capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig()
    job = SimpleNamespace(
        config=config, stage=1, arithmetic=Arithmetic(Precision.bf16, False, 1), packed=True, most_tokens=4000
    )
    ranks = SimpleNamespace(device=torch.device("cpu"), first=True, gather=lambda value: [value])

    def how(saved: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
        found = measured_tokens(job, None, ranks, saved)  # type: ignore[arg-type]
        return capsys.readouterr().err.rpartition(", ")[2].strip(), found

    told, saved = how(None)
    assert told == "measured"
    assert how(saved)[0] == "as measured before"
    config.deepspeed.offload = True
    assert how(saved)[0] == "measured"
    config.deepspeed.offload, config.deepspeed.reduce_bucket_size = False, 1000
    assert how(saved)[0] == "measured"
    config.deepspeed.reduce_bucket_size, job.arithmetic = None, Arithmetic(Precision.bf16, True, 1)
    assert how(saved)[0] == "measured", "weights of 32 bits take more"


@pytest.mark.parametrize(("most", "found"), [(100_000, 4096), (2000, 2000), (300, 512)])
def test_on_a_cpu_nothing_is_measured(most: int, found: int) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"), None)
    assert find_tokens(None, ranks, 4, 128, most, packed=True) == found  # type: ignore[arg-type]
