"""Keyed permutations of range(n) that need no memory: position -> element, a pure function.

A balanced Feistel network over the smallest even power of two that holds n, walked until it lands inside
(Black and Rogaway, 2002: "Ciphers with arbitrary finite domains"). The round function is the finaliser of
splitmix64 (Steele et al., 2014), which mixes every bit into every other: rounds such as
`(r * odd + key) & mask` leave the low bits of neighbours correlated. Golden values pin the result.
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1
_ROUNDS = 6


def mix(value: int) -> int:
    """splitmix64: a bijection of 64-bit numbers in which each input bit flips half of the output bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix_all(values: np.ndarray) -> np.ndarray:
    """`mix` of an array of 64-bit numbers, whose arithmetic is modulo 2^64 by itself."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keyed(*parts: int) -> int:
    """A 64-bit number that depends on every part and on their order."""
    value = 0
    for part in parts:
        value = mix(value ^ mix(part & _MASK))
    return value


_MIXED_ROUNDS = tuple(mix(round_) for round_ in range(_ROUNDS))


class Permutation:
    """A bijection of range(n), chosen by `key` (any integers). `permutation(i)` is the i-th element."""

    def __init__(self, n: int, *key: int) -> None:
        assert n > 0, "a permutation of nothing"
        self.n = n
        self._half = max(1, ((n - 1).bit_length() + 1) // 2)
        # keyed(*key, round) of each round: what is common to all is computed once.
        common = keyed(*key)
        self._keys = [mix(common ^ round_) for round_ in _MIXED_ROUNDS]

    def __call__(self, position: int) -> int:
        assert 0 <= position < self.n, f"position {position} of {self.n}"
        value = position
        while True:
            value = self._encrypt(value)
            # The network permutes a domain of less than 4 n elements: leaving it again takes few rounds.
            if value < self.n:
                return value

    def all(self) -> np.ndarray:
        """Every element in order, as an array: what `[self(i) for i in range(n)]` gives."""
        values = np.arange(self.n, dtype=np.uint64)
        inside = np.zeros(self.n, dtype=bool)
        while not inside.all():
            values[~inside] = self._encrypt_all(values[~inside])
            inside = values < self.n
        return values.astype(np.int64)

    def _encrypt_all(self, values: np.ndarray) -> np.ndarray:
        half, mask = np.uint64(self._half), np.uint64((1 << self._half) - 1)
        left, right = values >> half, values & mask
        for key in self._keys:
            left, right = right, left ^ (_mix_all(right ^ np.uint64(key)) & mask)
        return left << half | right

    def _encrypt(self, value: int) -> int:
        mask = (1 << self._half) - 1
        left, right = value >> self._half, value & mask
        for key in self._keys:
            left, right = right, left ^ (mix(right ^ key) & mask)
        return left << self._half | right
