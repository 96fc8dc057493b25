"""Files that are whole or absent.

A name given here holds the old content or the new one, never a part of either: content goes to a
temporary name in the same directory, is flushed to the disk, and takes the final name in one rename.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from reranker.errors import UserError


def fsync_directory(path: str | Path) -> None:
    """Make the names in a directory as durable as the files behind them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_open(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` when the block ends, and not at all if it raises."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A directory that takes the place of `path` when the block ends, and never appears if it raises."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        os.chmod(staging, 0o777 & ~_umask())
        yield staging
        _fsync_tree(staging)
        if path.exists():
            # A directory cannot be replaced in one rename: the old one steps aside first.
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, aside / path.name)
            try:
                os.replace(staging, path)
            except BaseException:
                os.replace(aside / path.name, path)
                raise
            finally:
                shutil.rmtree(aside)
        else:
            os.replace(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    fsync_directory(path.parent)


def _fsync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            with open(os.path.join(folder, name), "rb") as stream:
                os.fsync(stream.fileno())
        fsync_directory(folder)


def write_text(path: str | Path, text: str) -> None:
    with atomic_open(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: str | Path, fix: str = "make the file anew") -> Any:
    """The JSON value in `path`. Raises UserError if there is no such file or it is not JSON."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(path, "no such file", "a JSON file", fix) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(path, f"no JSON ({error})", "a JSON file", fix) from None


def sha256(path: str | Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: IO[bytes]) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def open_text(path: str | Path) -> IO[str]:
    """A text file for reading; `.gz` and `.zst` are decompressed on the way.

    Raises UserError if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "no such file"
        raise UserError(path, kind, "a file", "check the path")
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8")
    if path.suffix == ".zst":
        return io.TextIOWrapper(io.BufferedReader(_ZstdFile(path)), encoding="utf-8")
    return open(path, encoding="utf-8")


class _ZstdFile(io.RawIOBase):
    """The content of a .zst file of any number of frames.

    zstandard's own reader takes a file that was cut short for its end. Raises EOFError there, OSError for
    what is not zstd.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = open(path, "rb")  # noqa: SIM115
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._frame: Any = None
        self._compressed = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._compressed and not (block := self._file.read(1 << 17)):
                if self._frame is not None:
                    raise EOFError("the last frame ends early")
                return 0
            self._compressed, block = b"", self._compressed or block
            self._frame = self._frame or self._new_frame()
            try:
                self._ready = self._frame.decompress(block)
            except self._error as error:
                raise OSError(str(error)) from None
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
