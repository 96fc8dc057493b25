"""The fragments of a checkpoint: written rank by rank, read slice by slice.

A file of fragments is plain safetensors: flat float32 tensors, whose names, kinds, shapes and offsets stand in the
file's metadata. In: a rank's fragments, or a checkpoint's directory. Out: the file with its size and sha256, or any
slice of any parameter, joined from whichever ranks wrote it. Raises `UserError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from reranker.errors import UserError
from reranker.train.fragments import MASTER, Fragment

BLOCK = 1 << 24  # bytes


def fragments_file(rank: int) -> str:
    return f"fragments-{rank:05d}.safetensors"


def write_fragments(file: Path, fragments: Sequence[Fragment]) -> dict[str, Any]:
    """Write a rank's fragments and flush them to the disk: {"name", "bytes", "sha256"} of the file.

    The sha256 is that of what was meant, not of what a faulty disk made of it. safetensors' own writer would take
    every tensor as bytes once more, beside a training that has no memory to spare, and hold the interpreter meanwhile.
    """
    places, header, end = {}, {}, 0
    for number, fragment in enumerate(fragments):
        assert fragment.values.dtype == torch.float32
        assert fragment.values.is_contiguous()
        key = f"{number:06d}"
        places[key] = (fragment.name, fragment.kind, fragment.shape, fragment.offset)
        begin, end = end, end + fragment.values.nbytes
        header[key] = {"dtype": "F32", "shape": list(fragment.values.shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"fragments": json.dumps(places)}, **header}).encode()
    text += b" " * (-len(text) % 8)  # the format wants its numbers aligned
    digest, size = hashlib.sha256(), 0
    with open(file, "wb") as stream:
        contents: list[Any] = [struct.pack("<Q", len(text)), text, *(fragment.values.numpy() for fragment in fragments)]
        for content in contents:
            view = memoryview(content).cast("B")
            for start in range(0, len(view), BLOCK):
                block = view[start : start + BLOCK]
                stream.write(block)
                digest.update(block)
            size += len(view)
        stream.flush()
        os.fsync(stream.fileno())
    return {"name": file.name, "bytes": size, "sha256": digest.hexdigest()}


class Pieces:
    """Slices of parameters from the fragments of all ranks; the files stay on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._where: dict[tuple[str, str], list[tuple[Any, str, int]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(path.glob("fragments-*.safetensors")):
            tensors = safe_open(file, framework="pt")
            for key, (name, kind, shape, offset) in json.loads(tensors.metadata()["fragments"]).items():
                self._where.setdefault((name, kind), []).append((tensors, key, offset))
                self._shapes[name] = tuple(shape)

    @property
    def names(self) -> list[str]:
        return list(self._shapes)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise UserError unless these are the parameters of a model with these shapes."""
        for name in sorted(shapes.keys() | self._shapes.keys()):
            if shapes.get(name) != self._shapes.get(name):
                raise UserError(
                    self._path, f"{name} of shape {self._shapes.get(name)}", f"{shapes.get(name)}, as the model has",
                    "resume with the model that the run began with, or choose another run_dir",
                )  # fmt: skip

    def read(self, name: str, kind: str, offset: int, count: int) -> torch.Tensor:
        """Elements [offset, offset + count) of a flattened master or moment, in float32.

        Raises UserError for a parameter that is not there, and if a part is missing.
        """
        if name not in self._shapes:
            raise UserError(self._path, f"no parameter {name}", "the weights of this model",
                            "resume with the model that the run began with")  # fmt: skip
        values, filled = torch.empty(count), 0
        for tensors, key, start in self._where.get((name, kind), ()):
            piece = tensors.get_slice(key)
            first, last = max(offset, start), min(offset + count, start + piece.get_shape()[0])
            if first < last:
                values[first - offset : last - offset] = piece[first - start : last - start]
                filled += last - first
        if filled != count:
            raise UserError(self._path, f"{filled} of {count} elements of {name}", "a complete checkpoint",
                            "use another checkpoint")  # fmt: skip
        return values

    def full(self, name: str, kind: str) -> torch.Tensor:
        """A parameter's master or moment in fp32 and its own shape. Raises UserError if a part is missing."""
        count = torch.Size(self._shapes.get(name, ())).numel()
        return self.read(name, kind, 0, count).view(self._shapes[name])


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """{parameter: fp32 tensor} of a checkpoint."""
    pieces = Pieces(path)
    return {name: pieces.full(name, MASTER) for name in pieces.names}
