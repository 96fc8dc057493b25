"""WebDataset tars of others -> a manifest and indexes; the tars stay where they are and as they are.

In: a directory of tars, a pattern with braces, a URL, a `pipe:` command, or a list of these. Each tar is read once,
from its beginning to its end. Regular members that end in `.json` are groups, other members are passed over. Out:
a directory that is whole or absent, the same whatever the number of processes. The first tar in order that is
not whole or has a member that is no group is told as a `UserError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from braceexpand import braceexpand

from reranker.checks import cache_directory, check_at_least
from reranker.config.shards import IndexConfig
from reranker.data.cache import ShardCache
from reranker.data.fetch import fetch_with_retries
from reranker.data.index import IndexBuilder
from reranker.data.lengths import find_or_write_lengths
from reranker.data.location import is_remote, local_path, open_location
from reranker.data.manifest import NAME, Manifest, Shard, check_shards, load_manifest
from reranker.data.reader import ShardReader
from reranker.data.tokenize import PairTokenizer
from reranker.errors import UserError, shorten
from reranker.files import atomic_directory, refusals_told, sha256, write_json
from reranker.groups import FORM, Group, parse_group
from reranker.prepare.pack import load_pair_tokenizer, refuse_others
from reranker.processes import in_order
from reranker.progress import progress_bar

_RETRIES = 3
_BLOCK = 1 << 20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def index_command(config: IndexConfig) -> int:
    """`reranker index`."""
    check_at_least([("workers", config.workers, 1), ("cache.gib", config.cache.gib, 0)])
    tars, output = locations(config.shards), Path(config.output)
    tokenizer = load_pair_tokenizer(config)
    source = {"name": f"{len(tars)} tars", "sha256": hashlib.sha256("\n".join(tars).encode("utf-8")).hexdigest()}
    if os.path.exists(output):
        with refusals_told(output):
            refuse_others(output, config.overwrite)
            _refuse_own_tars(output, tars)
        if (output / NAME).is_file() and not config.overwrite:
            manifest = load_manifest(output, "output")
            if manifest.source != source:
                raise UserError("output", f"{output} with shards of other groups", "a directory to make",
                                "choose another one or say overwrite=true")  # fmt: skip
            check_shards(output, manifest)
            print(f"{output}: {manifest.groups} groups in {len(tars)} shards, indexed before")
            return _count_tokens(config, manifest, tokenizer)
    manifest, others = _write(tars, output, source, config)
    passed = f"; {others} other members passed over" if others else ""
    print(f"{output}: {manifest.groups} groups in {len(tars)} shards{passed}")
    return _count_tokens(config, manifest, tokenizer)


def _count_tokens(config: IndexConfig, manifest: Manifest, tokenizer: PairTokenizer | None) -> int:
    """Write the token lengths beside the indexes, where they are asked for and not there."""
    if tokenizer:
        directory = cache_directory(config.cache)
        cache = ShardCache(directory, int(config.cache.gib * 2**30), _RETRIES)
        with contextlib.closing(ShardReader(config.output, manifest, cache, _RETRIES)) as reader:
            found = find_or_write_lengths(reader, tokenizer, directory, config.workers)
        print(f"{found.directory}: token lengths of {config.tokenizer}")
    return 0


def locations(shards: Any) -> list[str]:
    """The tars that a value of `shards` names, in order; paths are made absolute. Raises UserError."""
    given = [shards] if isinstance(shards, str) else shards
    expected = "a directory, a pattern, a URL, a pipe: command or a list of these"
    if not isinstance(given, list) or not given or not all(isinstance(one, str) and one for one in given):
        raise UserError("shards", shorten(shards), expected, "name the tars")
    tars = [tar for one in given for tar in _expand(one)]
    if twice := next((tar for tar, times in Counter(tars).items() if times > 1), None):
        raise UserError("shards", f"{twice} twice", "each tar once", "leave one of them out")
    return tars


def _expand(text: str) -> Iterator[str]:
    # A name may have braces of its own, and a pattern may stand for directories.
    if not is_remote(text) and os.path.exists(local_path(text)):
        names = [text]
    else:
        try:
            names = list(braceexpand(text))
        except ValueError:
            raise UserError("shards", f"{text} with a brace that has no other", "pairs of braces",
                            "mend the pattern") from None  # fmt: skip
    for name in names:
        if is_remote(name):
            yield name
        else:
            yield from _local(Path(os.path.abspath(local_path(name))))


def _local(path: Path) -> list[str]:
    if not path.exists():
        raise UserError("shards", f"{path}, no such file", "a tar or a directory of tars", "check the path")
    if not path.is_dir():
        return [str(path)]
    with refusals_told(path):
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    if tars := [str(path / name) for name in names if name.endswith(".tar")]:
        return tars
    compressed = sum(name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")) for name in names)
    if compressed:
        raise UserError("shards", f"{path} with {compressed} compressed tars", "tars", "decompress them: a member of a "
                        "compressed tar cannot be read by itself")  # fmt: skip
    raise UserError("shards", f"{path} with no .tar file", "a directory of tars", "check the path")


def _refuse_own_tars(output: Path, tars: list[str]) -> None:
    """Raise UserError where the index would take the place of the tars, or of links to them."""
    for tar in tars:
        places = () if is_remote(tar) else (os.path.realpath(tar), os.path.realpath(os.path.dirname(tar)))
        if any(Path(place).is_relative_to(os.path.realpath(output)) for place in places):
            raise UserError("output", f"{output}, which holds {tar}", "a directory apart from the tars",
                            "choose another one")  # fmt: skip


def _write(tars: list[str], output: Path, source: dict[str, Any], config: IndexConfig) -> tuple[Manifest, int]:
    """(manifest, members that were passed over) of tars whose indexes are written under `output`."""
    shards, passed = [], 0
    with atomic_directory(output) as staging, progress_bar(desc="index", unit=" tars", total=len(tars)) as bar:
        index = functools.partial(_index, staging)
        with in_order(index, enumerate(tars), config.workers) as results:
            for shard, others in results:
                shards.append(shard)
                passed += others
                bar.update()
        given = config.shards if isinstance(config.shards, str) else f"[{','.join(config.shards)}]"
        manifest = Manifest(tuple(shards), source, f"reranker index shards={given}")
        write_json(staging / NAME, manifest.to_dict())
    return manifest, passed


def _index(directory: Path, tar: tuple[int, str]) -> tuple[Shard, int]:
    """(entry of the manifest, members that were passed over) of one tar, whose index is written to `directory`."""
    number, location = tar
    if is_remote(location):
        read = fetch_with_retries(_read, location, retries=_RETRIES)
    else:
        try:
            read = _read(location)
        except OSError as error:
            raise UserError(location, f"a file that cannot be read ({error.strerror or error})", "a tar",
                            "check the path and its permissions") from None  # fmt: skip
    # Named anew: tars of several places can have the same name.
    shard = Shard(f"shard-{number:05d}.tar", read.groups, read.bytes, read.sha256, "", location)
    index = directory / shard.index_name
    read.members.save(index)
    return dataclasses.replace(shard, index_sha256=sha256(index)), read.others


@dataclass(frozen=True)
class _Tar:
    members: IndexBuilder
    groups: int
    others: int
    bytes: int
    sha256: str


def _read(location: str) -> _Tar:
    """What one tar holds. Raises UserError for what is wrong with it, anything else for what is with the reading."""
    members, groups, others = IndexBuilder(), 0, 0
    with open_location(location) if is_remote(location) else open(local_path(location), "rb") as stream:
        source = _Hashed(stream)
        try:
            with tarfile.open(fileobj=source, mode="r|", bufsize=_BLOCK, tarinfo=_Member) as tar:  # type: ignore[call-overload]
                for member in tar:
                    tar.members = []  # tarfile would keep them all
                    if not (member.isreg() and member.name.endswith(".json")):
                        others += 1
                        continue
                    content = cast(IO[bytes], tar.extractfile(member)).read()
                    members.add(_parse(content, f"{location}:{member.name}"), member.offset_data, content)
                    groups += 1
                _check_end(tar, location)
        except tarfile.TarError as error:
            raise _no_tar(location, source.head, groups + others, error) from None
    if not groups:
        raise UserError(location, f"no .json member among {others}", "a .json member for each group",
                        "leave the tar out, or pack its groups with reranker pack")  # fmt: skip
    return _Tar(members, groups, others, source.bytes, source.hash.hexdigest())


class _Hashed:
    """A stream whose bytes are counted and hashed as they go by."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.bytes, self.hash, self.head = 0, hashlib.sha256(), b""

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self.bytes += len(block)
        self.hash.update(block)
        self.head = self.head or block[:8]
        return block


class _Member(tarfile.TarInfo):
    """tarfile takes a header that is damaged or not there for the end of the tar; here the end is a block of zeros."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _check_end(tar: tarfile.TarFile, location: str) -> None:
    """Read on to the end. Raises UserError if more than padding comes, such as the second of two tars in one file."""
    assert tar.fileobj is not None
    while block := tar.fileobj.read(_BLOCK):
        if block.strip(b"\0"):
            raise UserError(location, "more behind the end of the tar", "one tar",
                            "make one tar of those that were put together")  # fmt: skip


def _no_tar(location: str, head: bytes, members: int, error: tarfile.TarError) -> UserError:
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return UserError(location, f"a tar compressed with {name}", "a plain tar, of which a member can be read "
                             "by itself", "decompress it")  # fmt: skip
    if members:
        return UserError(location, f"a tar that is cut short or damaged ({error})", "a whole tar",
                         "copy or make it anew")  # fmt: skip
    return UserError(location, f"no tar ({error})", "a tar", "check what lies there")


def _parse(content: bytes, where: str) -> Group:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UserError(where, f"no JSON ({error})", "a group", f"write {FORM}") from None
    return parse_group(value, where)
