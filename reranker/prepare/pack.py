"""Groups (jsonl) -> WebDataset shards with index and manifest, and with a tokenizer the token lengths.

Every line is checked before anything takes its final name: the output directory is whole or absent. Equal
groups give equal bytes, whatever the number of processes that write them: members in order, fixed owner, mode
and time. Memory holds a few shards for each process, never the whole input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reranker.config.shards import IndexConfig, PackConfig
from reranker.data import lengths
from reranker.data.index import IndexBuilder
from reranker.data.lengths import Lengths, lengths_name, write_lengths
from reranker.data.manifest import NAME, Manifest, Shard, check_shards, load_manifest
from reranker.data.reader import ShardReader
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError, shorten
from reranker.files import atomic_directory, refusals_told, sha256, write_json
from reranker.groups import FORM, Group, decode_lines, parse_group, raw_lines
from reranker.prepare.part import Shares, key_of, parse_part
from reranker.processes import in_order
from reranker.progress import progress_bar

_BLOCK = 512
_WITHOUT_EFFECT = (
    "groups", "output", "overwrite", "tokenizer", "query_prefix", "passage_prefix", "workers", "part"
)  # fmt: skip
_OURS = re.compile(r"shard-\d{5,}\.(tar|index\.safetensors)|" + re.escape(NAME))
# Also what a kill leaves of one: `.lengths-FINGERPRINT.*`.
_OUR_LENGTHS = re.compile(r"\.?" + lengths_name("[0-9a-f]{16}") + r"(\..+)?")
_IN_LENGTHS = re.compile(r"shard-\d{5,}\.safetensors|" + re.escape(lengths.NAME))


def pack_command(config: PackConfig) -> int:
    """`reranker pack`."""
    for key in ("groups_per_shard", "workers"):
        if (value := getattr(config, key)) < 1:
            raise UserError(key, str(value), "1 or more", "change the value")
    part = parse_part(config.part)
    groups, output = Path(config.groups), Path(config.output)
    if not groups.is_file():
        raise UserError("groups", f"{groups}, no such file", "groups, one JSON object a line", "check the path")
    tokenizer = load_pair_tokenizer(config)
    source = {"name": groups.name, "sha256": sha256(groups), "groups_per_shard": config.groups_per_shard}
    if os.path.exists(output):
        with refusals_told(output):
            refuse_others(output, config.overwrite)
        if (output / NAME).is_file() and not config.overwrite:
            return _packed_before(config, load_manifest(output, "output"), source, tokenizer)
    shares = Shares(output, part, key_of(config, _WITHOUT_EFFECT, source)) if part else None
    if shares and not shares.merging:
        return _pack_share(config, shares)
    if shares:
        manifest = _merge(shares, output, source, config.groups_per_shard, config.workers, tokenizer)
    else:
        batches = _line_batches(groups, config.groups_per_shard)
        manifest = _write(batches, output, source, config.groups_per_shard, config.workers, tokenizer, shown=True)
    added = f", with token lengths of {config.tokenizer}" if tokenizer else ""
    print(f"{output}: {manifest.groups} groups in {len(manifest.shards)} shards{added}")
    return 0


def pack(groups: Iterable[Group], output: Path, source: dict[str, object], groups_per_shard: int) -> Manifest:
    """Write groups as shards under `output`, whole or not at all. Raises UserError from reading and writing them."""
    remaining = iter(groups)
    batches = iter(lambda: list(itertools.islice(remaining, groups_per_shard)), [])
    return _write(batches, output, source, groups_per_shard)


def load_pair_tokenizer(config: PackConfig | IndexConfig) -> PairTokenizer | None:
    """The tokenizer of the model whose token lengths are asked for, if they are. Raises UserError."""
    if not config.tokenizer:
        for key in ("query_prefix", "passage_prefix"):
            if value := getattr(config, key):
                raise UserError(key, shorten(value), "a tokenizer beside it, as it changes nothing but token lengths",
                                f"say tokenizer=MODEL, or leave {key} out")  # fmt: skip
        return None
    from reranker.model.cross_encoder import load_tokenizer

    contract = Contract(query_prefix=config.query_prefix, passage_prefix=config.passage_prefix)
    return PairTokenizer(load_tokenizer(config.tokenizer, key="tokenizer"), contract)


@dataclass(frozen=True)
class _Lines:
    """Groups as the lines of a file from line `first` on: parsed when iterated, so in the process that writes them."""

    file: Path
    first: int
    lines: list[bytes]

    def __iter__(self) -> Iterator[Group]:
        for where, value in decode_lines(self.lines, self.file, self.first):
            yield parse_group(value, where)


def _line_batches(path: Path, groups_per_shard: int) -> Iterator[_Lines]:
    """The lines of each shard. Raises UserError where the file cannot be read on, after the lines before that."""
    lines: list[bytes] = []
    first, found = 1, 0
    try:
        for number, line in enumerate(raw_lines(path), 1):
            lines.append(line)
            found += bool(line.strip())
            if found == groups_per_shard:
                yield _Lines(path, first, lines)
                lines, first, found = [], number + 1, 0
    except UserError:
        yield _Lines(path, first, lines)  # a wrong line among them comes first
        raise
    if found:
        yield _Lines(path, first, lines)
    elif first == 1:
        raise UserError(path, "an empty file", f"one group a line, {FORM}", "check how the file was made")


def _packed_before(
    config: PackConfig, manifest: Manifest, source: dict[str, object], tokenizer: PairTokenizer | None
) -> int:
    output = Path(config.output)
    if manifest.source != source:
        raise UserError("output", f"{output} with shards of other groups", "a directory to make",
                        "choose another one or say overwrite=true")  # fmt: skip
    check_shards(output, manifest)
    added = ""
    if tokenizer:
        beside = output / lengths_name(tokenizer.lengths_fingerprint)
        if beside.exists():
            Lengths(beside, manifest, tokenizer.lengths_fingerprint)  # raises for what is not whole
        else:
            _write_lengths(beside, manifest, tokenizer, config.workers)
            added = f"; token lengths of {config.tokenizer} added"
    print(f"{output}: {manifest.groups} groups in {len(manifest.shards)} shards, packed before{added}")
    return 0


def _write(
    batches: Iterable[Iterable[Group]],
    output: Path,
    source: dict[str, object],
    groups_per_shard: int,
    workers: int = 1,
    tokenizer: PairTokenizer | None = None,
    shown: bool = False,
) -> Manifest:
    """A shard of each batch; all but the last are of `groups_per_shard` groups."""
    shards: list[Shard] = []
    with atomic_directory(output) as staging:
        write = functools.partial(_write_batch, staging, groups_per_shard)
        bar = progress_bar(desc="pack", unit=" groups", disable=not shown)
        with bar, in_order(write, enumerate(batches), workers) as written:
            for shard in written:
                shards.append(shard)
                bar.update(shard.groups)
        return _finish(staging, shards, source, groups_per_shard, workers, tokenizer)


def _finish(
    staging: Path, shards: Iterable[Shard], source: dict[str, object], groups_per_shard: int, workers: int,
    tokenizer: PairTokenizer | None,
) -> Manifest:  # fmt: skip
    """Write the manifest of shards that are all there, and their token lengths."""
    command = f"reranker pack groups={source['name']} groups_per_shard={groups_per_shard}"
    manifest = Manifest(tuple(shards), source, command)
    write_json(staging / NAME, manifest.to_dict())
    if tokenizer:
        _write_lengths(staging / lengths_name(tokenizer.lengths_fingerprint), manifest, tokenizer, workers)
    return manifest


def _pack_share(config: PackConfig, shares: Shares) -> int:
    """Write every n-th shard, in a directory of this task."""
    groups, part = Path(config.groups), shares.part
    total = 0

    def own() -> Iterator[tuple[int, _Lines]]:
        nonlocal total
        for number, batch in enumerate(_line_batches(groups, config.groups_per_shard)):
            total += sum(bool(line.strip()) for line in batch.lines)
            if part.has(number):
                yield number, batch

    shares.make()
    with atomic_directory(shares.path("")) as staging:
        write = functools.partial(_write_batch, staging, config.groups_per_shard)
        with progress_bar(desc="pack", unit=" groups") as bar, in_order(write, own(), config.workers) as written:
            shards = []
            for shard in written:
                shards.append(shard)
                bar.update(shard.groups)
    shares.record(groups=total, shards=[dataclasses.asdict(shard) for shard in shards])
    print(f"{shares.directory}: part {part}, {sum(shard.groups for shard in shards)} groups in {len(shards)} shards; "
          f"part=merge/{part.of} puts all together")  # fmt: skip
    return 0


def _merge(
    shares: Shares, output: Path, source: dict[str, object], groups_per_shard: int, workers: int,
    tokenizer: PairTokenizer | None,
) -> Manifest:  # fmt: skip
    """The shards of all tasks as one directory. Raises UserError where they are not all groups, once each."""
    found: list[tuple[Shard, int]] = []
    records = shares.records()
    for number, record in enumerate(records):
        found += [(Shard(**shard), number) for shard in record["shards"]]
    found.sort(key=lambda one: (len(one[0].name), one[0].name))  # shard-100000 comes behind shard-99999
    expected = [f"shard-{number:05d}.tar" for number in range(len(found))]
    groups, totals = sum(shard.groups for shard, _ in found), {record["groups"] for record in records}
    if [shard.name for shard, _ in found] != expected or totals != {groups}:
        raise UserError(shares.directory, f"{groups} groups in {len(found)} shards",
                        f"each of {max(totals)} groups once", "run the parts again")  # fmt: skip
    with atomic_directory(output) as staging:
        for shard, number in progress_bar(found, desc="merge", unit=" shards"):
            for name, digest in ((shard.name, shard.sha256), (shard.index_name, shard.index_sha256)):
                _take(shares, number, name, digest, staging / name)
        return _finish(staging, [shard for shard, _ in found], source, groups_per_shard, workers, tokenizer)


def _take(shares: Shares, number: int, name: str, digest: str, target: Path) -> None:
    """A file of a task under a second name; a copy where the file system has no links."""
    file = shares.path("", number) / name
    if not file.is_file() or sha256(file) != digest:
        found = "other bytes than its task wrote" if file.is_file() else "no such file"
        raise UserError(file, found, "a whole shard", f"run part={number}/{shares.part.of} again")
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _write_lengths(output: Path, manifest: Manifest, tokenizer: PairTokenizer, workers: int) -> None:
    with contextlib.closing(ShardReader(output.parent, manifest)) as reader:
        write_lengths(output, reader, tokenizer, workers)


def _write_batch(directory: Path, groups_per_shard: int, batch: tuple[int, Iterable[Group]]) -> Shard:
    number, groups = batch
    return write_shard(directory / f"shard-{number:05d}.tar", list(groups), number * groups_per_shard)


def write_shard(path: Path, groups: list[Group], first: int) -> Shard:
    """One tar and its index; `first` is the place of its first group in the data set."""
    members = IndexBuilder()
    with open(path, "wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, group in enumerate(groups, first):
                content = group.to_json().encode("utf-8")
                # A new TarInfo has mode 0644, owner 0 and time 0: nothing of this machine gets in.
                member = tarfile.TarInfo(f"{number:09d}.json")
                member.size = len(content)
                members.add(group, stream.tell() + _BLOCK, content)
                tar.addfile(member, io.BytesIO(content))
        stream.flush()
        os.fsync(stream.fileno())
    shard = Shard(path.name, len(groups), path.stat().st_size, sha256(path), "")
    index = path.with_name(shard.index_name)
    members.save(index)
    return dataclasses.replace(shard, index_sha256=sha256(index))


def refuse_others(output: Path, overwrite: bool) -> None:
    """Raise UserError for what is neither empty nor shards: overwriting removes whole sets of shards alone."""
    expected = "a directory of shards alone or none" if overwrite else "a directory to make"
    fix = "move it away or choose another one"
    if not output.is_dir():
        raise UserError("output", f"{output}, a file", expected, fix)
    names = sorted(path.name for path in output.iterdir())
    if not names or (NAME in names and not overwrite):
        return
    found = next(_others(output), None)
    if not found and NAME not in names:
        found = f"shards without {NAME}"
    if not found:
        try:
            load_manifest(output, "output")
        except UserError as error:
            found = f"a {NAME} that is not one of shards ({error.found})"
    if found:
        raise UserError("output", f"{output}, which holds {found}", expected, fix)


def _others(output: Path) -> Iterator[str]:
    """The names in a directory of shards that are not ours."""
    for path in sorted(output.iterdir()):
        if path.is_dir() and _OUR_LENGTHS.fullmatch(path.name):
            inside = sorted(entry.name for entry in path.iterdir())
            yield from (f"{path.name}/{name}" for name in inside if not _IN_LENGTHS.fullmatch(name))
        elif not _OURS.fullmatch(path.name):
            yield path.name
