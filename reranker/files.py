"""Files that are whole or absent.

A file name given here holds the old content or the new one, never a part of either: content goes to a
temporary name in the same directory, is flushed to the disk, and takes the final name in one rename. A
directory takes it in one rename where the name is free. Where it is not, the old directory steps aside first:
a kill between the two renames leaves no directory of that name and the whole old one beside it, as
`.NAME.old.*`, which the next `atomic_directory` of the same name brings back. A kill at any time can leave a
`.NAME.*` behind that is safe to remove. What the system refuses is raised as a UserError that names the path.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from reranker.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fsync_directory(path: str | Path) -> None:
    """Make the names in a directory as durable as the files behind them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def refusals_told(path: str | Path) -> Iterator[None]:
    """Raise a UserError about `path` where the system refuses something in the block."""
    try:
        yield
    except OSError as error:
        if reason := _no_room(error):
            raise _full(path, reason) from None
        raise UserError(path, f"a path that cannot be written ({error.strerror or error})", "one that can be",
                        "choose another one") from None  # fmt: skip


@contextlib.contextmanager
def atomic_open(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` when the block ends, and not at all if it raises.

    Raises UserError for a path that cannot be written and where the block finds no room on the disk.
    """
    path = Path(path)
    with _place(path) as target:
        with refusals_told(path):
            if target.exists() and not target.is_file():
                found = "a directory" if target.is_dir() else "a device or pipe"
                raise UserError(path, found, "a file or nothing", "name another one")
            descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                with refusals_told(path):
                    stream.flush()
                    os.fsync(stream.fileno())
            with refusals_told(path):
                os.chmod(temporary, 0o666 & ~_umask())
                os.replace(temporary, target)
                fsync_directory(target.parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def atomic_directory(path: str | Path, first_stays: bool = False) -> Iterator[Path]:
    """A directory that takes the place of `path` when the block ends, and never appears if it raises.

    With `first_stays` it does not where another process was first: for what is the same whoever makes it.
    Raises UserError for a path that cannot be written or replaced and where the block finds no room on the disk.
    """
    path = Path(path)
    with _place(path) as target:
        with refusals_told(path):
            for aside in target.parent.glob(f".{glob.escape(target.name)}.old.????????"):
                _bring_back(aside, target)
            _refuse_irreplaceable(path, target)
            staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            os.chmod(staging, 0o777 & ~_umask())
            yield staging
            with refusals_told(path):
                _fsync_tree(staging)
                _take_name(staging, target, first_stays)
                fsync_directory(target.parent)
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            if isinstance(error, UserError) and Path(error.where).is_relative_to(staging):
                where = path / Path(error.where).relative_to(staging)
                raise UserError(where, error.found, error.expected, error.fix) from None
            raise


def make_directory(path: str | Path) -> None:
    """Make a directory, and those above it, where it is missing. Raises UserError."""
    with refusals_told(path):
        _missing(Path(path) / "name")
        os.makedirs(path, exist_ok=True)


@contextlib.contextmanager
def _place(path: Path) -> Iterator[Path]:
    """`path` without links, in a directory that exists. Directories made for it go again if the block raises."""
    missing: list[Path] = []
    try:
        with refusals_told(path):
            target = Path(os.path.realpath(path))
            missing = _missing(target)
            target.parent.mkdir(parents=True, exist_ok=True)
        yield target
    except BaseException as error:
        for directory in missing:
            with contextlib.suppress(OSError):
                directory.rmdir()
        # Another error of the block can be about another file.
        if reason := _no_room(error):
            raise _full(path, reason) from None
        raise


def _missing(target: Path) -> list[Path]:
    """The directories above `target` that are to be made, the deepest first. Raises UserError."""
    missing = list(itertools.takewhile(lambda directory: not os.path.exists(directory), target.parents))
    nearest = [*target.parents, target][len(missing)]  # the root has no parents
    if not nearest.is_dir():
        raise UserError(nearest, "a file", "a directory or nothing", "move it away or choose another output")
    return missing


def _refuse_irreplaceable(path: Path, target: Path) -> None:
    """Raise UserError if `target` is there and another directory cannot take its name."""
    if not target.exists():
        return
    if not target.is_dir():
        found = "a file"
    elif Path(os.path.realpath(os.curdir)).is_relative_to(target):
        found = "the directory that this command runs in, or one above it"
    elif os.path.ismount(target):
        found = "a mount point"
    else:
        return
    raise UserError(path, found, "a directory to make or to replace", "name another one")


def _take_name(staging: Path, target: Path, first_stays: bool) -> None:
    if first_stays or not target.exists():
        try:
            os.replace(staging, target)
        except OSError as error:
            if not first_stays or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(staging, ignore_errors=True)
        return
    # A directory cannot be replaced in one rename: the old one steps aside first.
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    try:
        os.replace(target, aside)
        os.replace(staging, target)
    except BaseException:
        _bring_back(aside, target)
        raise
    # Under its own name the old directory is always whole.
    os.replace(aside, staging)
    shutil.rmtree(staging)


def _bring_back(aside: Path, target: Path) -> None:
    """Undo the first of the two renames, if it was done. Removes nothing but an empty directory."""
    if target.exists():
        with contextlib.suppress(OSError):
            aside.rmdir()
    else:
        os.replace(aside, target)


def _no_room(error: BaseException) -> str | None:
    """What the system says if it is the disk, the quota or the limit of a file's size that `error` is about."""
    told = re.search(r"\(os error (\d+)\)", str(error))  # safetensors says it in words only
    code = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    return os.strerror(code) if code in _NO_ROOM else None


def _full(path: str | Path, reason: str) -> UserError:
    return UserError(path, f"no room to write it ({reason})", "room on the disk", "make room or choose another place")


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
