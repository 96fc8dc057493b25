"""Copies of remote files on this node, one for all its processes: ranks, DataLoader workers, other runs.

    SHA256              a whole and verified copy; its modification time is the time of its last use
    SHA256.*.part       a fetch under way, from its start as long as the file will be: room that is taken
    SHA256.lock         held by the process that fetches the file
    directory.lock      held while room is made and while a copy takes its name

In: locations with the sha256 and the size that a manifest gives. Out: descriptors of whole files. A copy is
verified once, when it is fetched, and takes its name in one rename. Equal files of two URLs are one copy. Copies
and the fetches of files of known size are together never larger than the limit: the copies not used for longest
make room, and who holds one of them open reads on undisturbed. The kernel gives up the locks of a killed process,
and the next fetch clears away what it left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue

from filelock import FileLock, Timeout

from reranker.data.fetch import Changed, fetch_with_retries, prepare_to_open
from reranker.data.location import open_location
from reranker.errors import UserError, shorten
from reranker.files import make_directory, refusals_told

_BLOCK = 1 << 20
_POLL = 0.05  # seconds, as long as filelock waits between two looks at a lock
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"([0-9a-f]{64})(\.[0-9a-f]{32}\.part)?")

File = tuple[str, str, "int | None"]
"""Location, sha256 and size of a file."""


class ShardCache:
    """Local copies of remote files. Pickles and forks: what it knows is in the directory.

    Args:
        directory: where the copies lie; other files in it are left alone.
        limit: bytes of all copies at most.
        retries: times that a fetch which failed is tried again.
    """

    def __init__(self, directory: str | Path, limit: int, retries: int = 3) -> None:
        self.directory, self.limit, self.retries = Path(directory), limit, retries
        self._queue: SimpleQueue[File] = SimpleQueue()
        self._process = 0  # whose thread takes from the queue

    def __reduce__(self) -> tuple[type[ShardCache], tuple[Path, int, int]]:
        return type(self), (self.directory, self.limit, self.retries)

    def open(self, location: str, sha256: str, size: int | None = None) -> int:
        """A descriptor, for reading only, of a copy of the file; the file is fetched first if there is none.

        Raises UserError for a file that cannot be fetched, that is not the one of the manifest or larger than the
        limit, and for a directory that cannot be written.
        """
        descriptor = self._open(location, sha256, size, wait=True)
        assert descriptor is not None, "whoever waits gets a copy"
        return descriptor

    def drop(self, location: str, sha256: str) -> None:
        """Forget a copy that reads badly: the next `open` fetches the file again."""
        with refusals_told(self.directory):
            self._copy(location, sha256).unlink(missing_ok=True)

    def prefetch(self, files: Iterable[File]) -> None:
        """Fetch files, one after another, in the background. Returns at once.

        Files that another process fetches at the moment are passed over, so that the workers of a node share the
        work. What goes wrong is left to `open` to meet and tell.
        """
        if self._process != os.getpid():  # the thread of a parent is not here
            self._queue, self._process = SimpleQueue(), os.getpid()
            thread = threading.Thread(target=self._work_off, args=(self._queue,), name="prefetch", daemon=True)
            thread.start()
        for file in files:
            prepare_to_open(file[0])
            self._queue.put(file)

    def _work_off(self, queue: SimpleQueue[File]) -> None:
        while True:
            with contextlib.suppress(Exception):
                if (descriptor := self._open(*queue.get(), wait=False)) is not None:
                    os.close(descriptor)

    def _open(self, location: str, digest: str, size: int | None, wait: bool) -> int | None:
        """As `open`; None only if not to `wait` for another process that is fetching the file."""
        copy = self._copy(location, digest)
        with refusals_told(self.directory):
            if (descriptor := _opened(copy, size)) is not None:
                return descriptor
            self._check_fits(location, size or 0)
            make_directory(self.directory)
            try:
                with FileLock(self._lock(digest), mode=0o666, blocking=wait):
                    # Another process may have fetched it while this one waited.
                    if (descriptor := _opened(copy, size)) is not None:
                        return descriptor
                    return self._fetch(location, copy, size)
            except Timeout:
                return None

    def _fetch(self, location: str, copy: Path, size: int | None) -> int:
        """Fetch a file whose lock is held. A descriptor of the copy, which may be evicted at once."""
        part = self.directory / f"{copy.name}.{uuid.uuid4().hex}.part"
        target = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            fetch_with_retries(self._download, location, target, part, copy.name, size, retries=self.retries)
            with refusals_told(self.directory):
                os.fsync(target)  # a network file system tells only here that the disk is full
            descriptor = _opened(part, size)
            assert descriptor is not None
            with FileLock(self._lock("directory"), mode=0o666):
                os.replace(part, copy)
            return descriptor
        finally:
            os.close(target)
            part.unlink(missing_ok=True)

    def _download(self, location: str, target: int, part: Path, digest: str, size: int | None) -> None:
        """Fill the part with the file. Raises what the location does, and Changed for another file."""
        os.ftruncate(target, 0)
        while not self._reserve(location, target, part, size or 0):
            time.sleep(_POLL)
        os.lseek(target, 0, os.SEEK_SET)
        room = self.limit if size is None else size
        found, hashed = 0, hashlib.sha256()
        with open_location(location) as stream:
            while block := stream.read(_BLOCK):
                found += len(block)
                hashed.update(block)
                if found <= room:
                    with refusals_told(self.directory):
                        _write(target, block)
        if size is not None and found != size:
            raise Changed(f"{found} bytes", f"{size}")
        if hashed.hexdigest() != digest and found <= room:
            raise Changed(f"sha256 {hashed.hexdigest()[:16]}…", f"{digest[:16]}…")
        if size is None and not self._reserve(location, target, part, found):
            # Two that wait with their bytes in hand could wait for each other: wait without them.
            self._download(location, target, part, digest, found)

    def _reserve(self, location: str, target: int, part: Path, size: int) -> bool:
        """Give the part its length, for which the oldest copies make room; False while other fetches take the room."""
        self._check_fits(location, size)
        taken = 0
        copies: list[tuple[int, int, str]] = []
        with refusals_told(self.directory), FileLock(self._lock("directory"), mode=0o666):
            for entry in os.scandir(self.directory):
                name = _NAME.fullmatch(entry.name)
                if not name or entry.name == part.name:
                    continue
                with contextlib.suppress(FileNotFoundError):  # dropped or given up meanwhile
                    if not name[2]:
                        found = entry.stat()
                        copies.append((found.st_mtime_ns, found.st_size, entry.path))
                    elif part.name.startswith(name[1]) or self._is_free(name[1]):
                        os.unlink(entry.path)  # of a process that was killed
                    else:
                        taken += entry.stat().st_size
            if taken + size > self.limit:
                return False
            surplus = taken + size + sum(bytes_ for _, bytes_, _ in copies) - self.limit
            for _, bytes_, path in sorted(copies):
                if surplus <= 0:
                    break
                Path(path).unlink(missing_ok=True)
                surplus -= bytes_
            os.ftruncate(target, size)
        return True

    def _is_free(self, digest: str) -> bool:
        """Whether no process is fetching a file."""
        try:
            with FileLock(self._lock(digest), mode=0o666, blocking=False):
                return True
        except Timeout:
            return False

    def _check_fits(self, location: str, size: int) -> None:
        if size > self.limit:
            found = f"{self.limit / 2**30:.3g}, too little for the {size / 2**30:.3g} GiB of {location}"
            raise UserError("data.cache.gib", found, "room for the largest file at least", "raise it")

    def _copy(self, location: str, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):  # a manifest from elsewhere must not name paths of this node
            raise UserError(location, f"sha256 {shorten(digest)}", "64 hexadecimal digits", "make the manifest anew")
        return self.directory / digest

    def _lock(self, name: str) -> Path:
        return self.directory / f"{name}.lock"


def _opened(path: Path, size: int | None) -> int | None:
    """A descriptor of a copy, which counts as used now; None if there is none, or none of this size."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if size is not None and os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        return None
    now = time.time_ns()  # the kernel's own time is of a few milliseconds
    with contextlib.suppress(PermissionError):  # another user's copy keeps the time of its own
        os.utime(descriptor, ns=(now, now))
    return descriptor


def _write(descriptor: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
