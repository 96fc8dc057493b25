"""Shards -> everything in them that is not as it was written.

In: a directory or URL of shards, packed or indexed. Out: one line for each damaged file and member, sorted, in the
form of a `UserError`, and a summary. Every byte is read once, several files at a time, and compared with its
checksum: each tar and index with the manifest's sha256, each member with the index's CRC-32, each file of token
lengths with its sha256 and the index. Remote files stream by and fill no cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError

from reranker.config.shards import DataVerifyConfig
from reranker.data import lengths
from reranker.data.index import ShardIndex, load_index
from reranker.data.lengths import LengthsFile, lengths_name, load_files
from reranker.data.location import is_remote, join, local_path, open_location
from reranker.data.manifest import NAME, REPACK, Manifest, Shard, load_manifest
from reranker.data.reader import ShardReader
from reranker.errors import EXIT_CODE, UserError
from reranker.progress import progress_bar

_BLOCK = 1 << 20
_LENGTHS = re.compile(lengths_name("([0-9a-f]{16})"))


@dataclass(frozen=True)
class Damage:
    """What is wrong with a file, or with a member of it."""

    file: str
    mistake: UserError
    member: int = -1


def verify_command(config: DataVerifyConfig) -> int:
    """`reranker data verify`."""
    if config.workers < 1:
        raise UserError("workers", str(config.workers), "1 or more", "change the value")
    manifest = load_manifest(config.shards, "shards")
    size = sum(shard.bytes for shard in manifest.shards)
    names = _names(config.shards)
    with progress_bar(desc="verify", unit="B", unit_scale=True, total=size) as bar:
        found = verify(config.shards, manifest, names or [], config.workers, bar.update)
    for damage in found:
        print(damage.mistake)
    told = f"{config.shards}: {manifest.groups} groups in {len(manifest.shards)} shards"
    if counted := len(list(_lengths_among(names or [], config.shards))):
        told += f", token lengths of {counted} tokenizer{'s' * (counted > 1)}"
    if found:
        files, members = len({damage.file for damage in found}), sum(damage.member >= 0 for damage in found)
        told += f"; damaged: {files} file{'s' * (files != 1)}, {members} member{'s' * (members != 1)}"
    else:
        told += ", every byte as it was written"
    if names is None:
        told += "; the URL lists no names, so token lengths and surplus files were not looked for"
    print(told)
    return EXIT_CODE if found else 0


def verify(
    directory: str, manifest: Manifest, names: Iterable[str], workers: int, read: Callable[[int], Any]
) -> list[Damage]:
    """Everything that is wrong, sorted by file and member.

    `names` are those in `directory`, if they are known; `read` is told from time to time of so many bytes of tars.
    """
    check = _Check(directory, manifest)
    found: list[Damage] = []
    with _threads(workers, check.stop) as pool:
        texts: list[int | None] = []
        for future in [pool.submit(check.shard, number) for number in range(len(manifest.shards))]:
            # The bar is this thread's: where its stream is closed, an update in another one leaves tqdm locked.
            while not wait([future], timeout=0.5).done:
                read(check.take_count())
            damages, count = future.result()
            found += damages
            texts.append(count)
        read(check.take_count())
        found += check.extra_files(names)
        for place, fingerprint in _lengths_among(names, directory):
            try:
                files = load_files(place, manifest, fingerprint)
            except UserError as mistake:
                found.append(Damage(mistake.where, mistake))
                continue
            for damages in pool.map(check.lengths, [join(place, file.name) for file in files], files, texts):
                found += damages
    return sorted(found, key=lambda damage: (damage.file, damage.member))


def _again(shard: Shard) -> str:
    return "copy it again or index the shards again: reranker index" if shard.url else f"copy it again or {REPACK}"


def _lengths_among(names: Iterable[str], directory: str) -> Iterator[tuple[str, str]]:
    """(place, fingerprint of the tokenizer) of the token lengths in a directory."""
    for name in names:
        if match := _LENGTHS.fullmatch(name):
            yield join(directory, name), match[1]


class _Stopped(Exception):
    pass


class _Check:
    """The checks of single files; several run at a time."""

    def __init__(self, directory: str, manifest: Manifest) -> None:
        self.stop = threading.Event()
        self._directory, self._manifest, self._reader = directory, manifest, ShardReader(directory, manifest)
        self._count, self._lock = 0, threading.Lock()
        self._tars = {shard.sha256: shard.name for shard in manifest.shards}
        self._indexes = {shard.index_sha256: shard.name for shard in manifest.shards}

    def shard(self, number: int) -> tuple[list[Damage], int | None]:
        """What is wrong with a tar and its index, and the texts that the index counts, if it is the right one."""
        try:
            index = self._index(number)
        except UserError as mistake:
            return [Damage(mistake.where, mistake), *self._tar(number, None)], None
        found = self._tar(number, index)
        fits = all(damage.file != self._index_location(number) for damage in found)
        return found, index.texts if fits else None

    def take_count(self) -> int:
        """Bytes of tars that were read since the last call."""
        with self._lock:
            count, self._count = self._count, 0
        return count

    def lengths(self, location: str, file: LengthsFile, texts: int | None) -> list[Damage]:
        """What is wrong with a shard's token lengths; `texts` is the index's count, if it is known."""
        try:
            file.parse(b"".join(self._blocks(location, lengths.NAME, lengths.REMAKE)), location)
            if texts is not None and file.texts != texts:
                raise UserError(location, f"{file.texts} texts", f"the {texts} of the shard's index", lengths.REMAKE)
        except UserError as mistake:
            return [Damage(location, mistake)]
        return []

    def extra_files(self, names: Iterable[str]) -> Iterator[Damage]:
        """Tars and indexes in the directory that the manifest does not name: webdataset would read them."""
        known = {shard.location(self._directory) for shard in self._manifest.shards}
        known |= {join(self._directory, shard.index_name) for shard in self._manifest.shards}
        for name in names:
            place = join(self._directory, name)
            if name.endswith((".tar", ".index.safetensors")) and place not in known:
                yield Damage(place, UserError(
                    place, f"a file that {NAME} does not name", f"files of its {len(self._manifest.shards)} shards",
                    "move it away",
                ))  # fmt: skip

    def _index_location(self, number: int) -> str:
        return join(self._directory, self._manifest.shards[number].index_name)

    def _index(self, number: int) -> ShardIndex:
        entry, location = self._manifest.shards[number], self._index_location(number)
        content = b"".join(self._blocks(location, NAME, _again(entry)))
        digest = hashlib.sha256(content).hexdigest()
        if other := self._indexes.get(digest) if digest != entry.index_sha256 else None:
            raise UserError(location, f"the index of {other}", f"that of {entry.name}", _again(entry))
        if digest != entry.index_sha256:
            raise UserError(location, f"sha256 {digest[:16]}…", f"{entry.index_sha256[:16]}…", _again(entry))
        try:
            index = load_index(content)
        except (SafetensorError, TypeError, ValueError) as error:
            raise UserError(location, f"no index ({error})", f"that of {entry.name}", REPACK) from None
        if len(index) != entry.groups:
            raise UserError(location, f"{len(index)} members", f"the {entry.groups} in {NAME}", REPACK)
        return index

    def _tar(self, number: int, index: ShardIndex | None) -> list[Damage]:
        """What is wrong with a tar and, where its index is whole, with its members."""
        location, entry = self._reader.location(number), self._manifest.shards[number]
        members = _Members(index) if index is not None else None
        hashed, size = hashlib.sha256(), 0
        try:
            for block in self._blocks(location, NAME, _again(entry)):
                hashed.update(block)
                if members is not None:
                    members.pass_by(block, size)
                size += len(block)
                with self._lock:
                    self._count += len(block)
        except UserError as mistake:
            return [Damage(location, mistake)]
        damaged = members.damaged() if members is not None else []
        digest = hashed.hexdigest()
        if digest == entry.sha256:
            if not damaged:
                return []
            told = f"an index that does not fit {entry.name}: {len(damaged)} of {entry.groups} members differ"
            where = self._index_location(number)
            return [Damage(where, UserError(where, told, "the index of its tar", REPACK))]
        told, expected = f"sha256 {digest[:16]}…", f"{entry.sha256[:16]}…"
        if size != entry.bytes:
            told, expected = f"a {'truncated ' * (size < entry.bytes)}tar of {size} bytes", str(entry.bytes)
        if other := self._tars.get(digest):
            told, expected, damaged = f"the content of {other}", "its own", []
        elif len(damaged) == entry.groups > 1:
            told, damaged = f"{told} and none of its {entry.groups} members whole", []
        found = [Damage(location, UserError(location, told, expected, _again(entry)))]
        return found + [self._member(number, member) for member in damaged]

    def _member(self, number: int, member: int) -> Damage:
        return Damage(self._reader.location(number), UserError(
            self._reader.name(number, member), "bytes that differ from those packed (CRC-32)", "an undamaged shard",
            _again(self._manifest.shards[number]),
        ), member)  # fmt: skip

    def _blocks(self, location: str, listed: str, fix: str) -> Iterator[bytes]:
        """The content of a file that is `listed` in another one. Raises UserError where it cannot be read."""
        try:
            with open_location(location) if is_remote(location) else open(local_path(location), "rb") as stream:
                while block := stream.read(_BLOCK):
                    if self.stop.is_set():
                        raise _Stopped
                    yield block
        except (UserError, _Stopped):
            raise
        except FileNotFoundError:
            expected = f"a file of the {len(self._manifest.shards)} shards in {listed}"
            raise UserError(location, "no such file", expected, fix) from None
        except Exception as error:  # each kind of remote file system has errors of its own
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(location, f"a file that cannot be read ({reason})", "a readable file",
                            "check the path, its permissions and the network") from None  # fmt: skip


class _Members:
    """The members of a tar that streams by, each compared with the CRC-32 of the index."""

    def __init__(self, index: ShardIndex) -> None:
        self._first: list[int] = index.offset.tolist()
        self._end: list[int] = (index.offset + index.size).tolist()
        self._crc32: list[int] = index.crc32.tolist()
        self._found = [0] * len(index)
        self._order: list[int] = np.argsort(index.offset, kind="stable").tolist()
        self._passed = 0

    def pass_by(self, block: bytes, start: int) -> None:
        """The bytes of the tar from `start` on, where the last call's ended."""
        end, view = start + len(block), memoryview(block)
        while self._passed < len(self._order) and self._first[member := self._order[self._passed]] < end:
            part = view[max(self._first[member] - start, 0) : min(self._end[member], end) - start]
            self._found[member] = zlib.crc32(part, self._found[member])
            if self._end[member] > end:
                break
            self._passed += 1

    def damaged(self) -> list[int]:
        """The members that differ or that the tar ended before."""
        lost = set(self._order[self._passed :])
        return [member for member, crc in enumerate(self._crc32) if member in lost or self._found[member] != crc]


def _names(directory: str) -> list[str] | None:
    """The names in a directory, sorted; None where a URL lists none."""
    if not is_remote(directory):
        return sorted(os.listdir(local_path(directory)))
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(directory)
        names = {name.rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False)}
    except Exception:  # https:// has no directories, a bucket may forbid it
        return None
    return sorted(names) if NAME in names else None


@contextlib.contextmanager
def _threads(workers: int, stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Threads that end at once where the block raises."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
