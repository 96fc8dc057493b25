"""Groups (jsonl) -> WebDataset shards with index and manifest.

Every line is checked before anything takes its final name: the output directory is whole or absent. Equal
groups give equal bytes: members in order, fixed owner, mode and time.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from reranker.config import PackConfig
from reranker.data.manifest import NAME, Manifest, Shard, check_shards, load_manifest
from reranker.errors import UserError
from reranker.files import atomic_directory, refusals_told, sha256, write_json
from reranker.groups import Group, read_groups
from reranker.progress import progress_bar

_BLOCK = 512
_OURS = re.compile(r"shard-\d{5,}\.(tar|index\.safetensors)|" + re.escape(NAME))


def pack_command(config: PackConfig) -> int:
    """`reranker pack`."""
    if config.groups_per_shard < 1:
        raise UserError("groups_per_shard", str(config.groups_per_shard), "1 or more", "change the value")
    groups, output = Path(config.groups), Path(config.output)
    if not groups.is_file():
        raise UserError("groups", f"{groups}, no such file", "groups, one JSON object a line", "check the path")
    source = {"name": groups.name, "sha256": sha256(groups), "groups_per_shard": config.groups_per_shard}
    if os.path.exists(output):
        with refusals_told(output):
            _refuse_others(output, config.overwrite)
        if (output / NAME).is_file() and not config.overwrite:
            manifest = load_manifest(output, "output")
            if manifest.source == source:
                check_shards(output, manifest)
                print(f"{output}: {manifest.groups} groups in {len(manifest.shards)} shards, packed before")
                return 0
            raise UserError("output", f"{output} with shards of other groups", "a directory to make",
                            "choose another one or say overwrite=true")  # fmt: skip
    with progress_bar(desc="pack", unit=" groups") as bar:
        manifest = pack(_counted(read_groups(groups), bar), output, source, config.groups_per_shard)
    print(f"{output}: {manifest.groups} groups in {len(manifest.shards)} shards")
    return 0


def pack(groups: Iterable[Group], output: Path, source: dict[str, object], groups_per_shard: int) -> Manifest:
    """Write groups as shards under `output`, whole or not at all. Raises UserError from reading and writing them."""
    remaining = iter(groups)
    shards: list[Shard] = []
    with atomic_directory(output) as staging:
        first = 0
        while batch := list(islice(remaining, groups_per_shard)):
            shards.append(write_shard(staging / f"shard-{len(shards):05d}.tar", batch, first))
            first += len(batch)
        command = f"reranker pack groups={source['name']} groups_per_shard={groups_per_shard}"
        manifest = Manifest(tuple(shards), source, command)
        write_json(staging / NAME, manifest.to_dict())
    return manifest


def write_shard(path: Path, groups: list[Group], first: int) -> Shard:
    """One tar and its index; `first` is the place of its first group in the data set."""
    offsets, sizes, checksums = [], [], []
    with open(path, "wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, group in enumerate(groups, first):
                content = group.to_json().encode("utf-8")
                # A new TarInfo has mode 0644, owner 0 and time 0: nothing of this machine gets in.
                member = tarfile.TarInfo(f"{number:09d}.json")
                member.size = len(content)
                offsets.append(stream.tell() + _BLOCK)
                tar.addfile(member, io.BytesIO(content))
                sizes.append(len(content))
                checksums.append(zlib.crc32(content))
        stream.flush()
        os.fsync(stream.fileno())
    columns = {
        "offset": np.array(offsets, np.uint64),
        "size": np.array(sizes, np.uint64),
        "crc32": np.array(checksums, np.uint32),
    }
    shard = Shard(path.name, len(groups), path.stat().st_size, sha256(path), "")
    index = path.with_name(shard.index_name)
    save_file(columns, index)
    return Shard(shard.name, shard.groups, shard.bytes, shard.sha256, sha256(index))


def _refuse_others(output: Path, overwrite: bool) -> None:
    """Raise UserError for what is neither empty nor shards: overwriting removes whole sets of shards alone."""
    expected = "a directory of shards alone or none" if overwrite else "a directory to make"
    fix = "move it away or choose another one"
    if not output.is_dir():
        raise UserError("output", f"{output}, a file", expected, fix)
    names = sorted(path.name for path in output.iterdir())
    if not names or (NAME in names and not overwrite):
        return
    found = next((name for name in names if not _OURS.fullmatch(name)), None)
    if not found and NAME not in names:
        found = f"shards without {NAME}"
    if not found:
        try:
            load_manifest(output, "output")
        except UserError as error:
            found = f"a {NAME} that is not one of shards ({error.found})"
    if found:
        raise UserError("output", f"{output}, which holds {found}", expected, fix)


def _counted(groups: Iterable[Group], bar: Any) -> Iterator[Group]:
    for group in groups:
        bar.update()
        yield group
