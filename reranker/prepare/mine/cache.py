"""What a stage has found, in blocks of queries that are written whole.

In: the digest of everything that a stage's results depend on. Out: a directory of that name with a file for each
block that is done. A block is there whole or not at all, so that a killed run goes on behind its last one, and
settings that a stage does not depend on change nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.files import atomic_open, make_directory, sha256

SCHEMA = 3
"""Raise it when a stage computes something else from the same inputs."""
QUERIES = 256
"""Queries of a block."""
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.json", "*.model", "*.txt")


def digest(*values: Any) -> str:
    """16 hexadecimal digits of the sha256 of JSON values."""
    return hashlib.sha256(json.dumps([SCHEMA, *values], sort_keys=True).encode("utf-8")).hexdigest()[:16]


def model_digest(name: str) -> str:
    """A digest of the files of a model directory, sub-directories included; of a hub model, of its name."""
    directory = Path(name)
    if not directory.is_dir():
        return digest(name)
    paths = sorted({path for pattern in _WEIGHTS for path in directory.rglob(pattern) if path.is_file()})
    return digest([[str(path.relative_to(directory)), sha256(path)] for path in paths])


class Blocks:
    """Arrays of each block, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        make_directory(directory)

    def path(self, number: int) -> Path:
        return self.directory / f"block-{number:06d}.npz"

    def done(self, number: int) -> bool:
        return self.path(number).exists()

    def put(self, number: int, **arrays: Any) -> None:
        import numpy as np

        with atomic_open(self.path(number)) as stream:
            np.savez(stream, **arrays)

    def get(self, number: int) -> dict[str, Any]:
        import numpy as np

        try:
            with np.load(self.path(number), allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(self.path(number), f"a block that cannot be read ({error})", "one that is whole",
                            "remove it: its queries are searched again") from None  # fmt: skip
