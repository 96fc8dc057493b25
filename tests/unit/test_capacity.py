"""The largest micro-batch that fits is found without ever trying one that may not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reranker.train.capacity import largest, longest_groups


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
        return fixed + per_token * tokens  # with no tokens: what is there before

    found = largest(measure, least, cap * least, limit)
    assert found == min(fit, cap) * least
    assert max(tried) == found
    assert tried == sorted(set(tried))
    assert len(tried) < 12


def test_where_nothing_fits_the_least_is_what_is_left() -> None:
    assert largest(lambda tokens: 10**12, 100, 10_000, 10**9) == 100


def test_a_need_that_bends_upwards_is_not_overrun() -> None:
    tried: list[int] = []

    def measure(tokens: int) -> int:
        tried.append(tokens)
        return tokens**2

    found = largest(measure, 10, 10_000, 10**6)
    assert found**2 <= 10**6
    assert max(tried) <= 4 * found


def test_what_is_measured_is_as_long_as_pairs_can_be() -> None:
    batch = longest_groups(3, 5, 64)
    assert batch.packed.cu_seqlens.diff().tolist() == [64] * 15
    assert (batch.packed.longest, batch.present_GP.shape) == (64, (3, 5))
