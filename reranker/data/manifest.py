"""What a directory of shards holds: `manifest.json`, and beside each shard its index.

    shard-00000.tar                  plain USTAR, one NNNNNNNNN.json member per group, keys in order
    shard-00000.index.safetensors    of each member: offset and size of its bytes, CRC-32, hashes of its texts
    manifest.json                    schema, shards with groups, bytes and sha256, source, command

Plain webdataset reads the tars and knows nothing of the rest. The directory may be a URL. Foreign shards that
`reranker index` has looked through lie elsewhere: their entries name a location of their own. Raises
`UserError` for a directory that is not whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.data.fetch import read_location
from reranker.data.location import PIPE, is_remote, join, local_path
from reranker.errors import UserError
from reranker.files import read_json, sha256

SCHEMA = 2
NAME = "manifest.json"
REPACK = "delete the directory and run reranker pack (or index) again"


@dataclass(frozen=True)
class Shard:
    """One tar: its file name, groups, size in bytes and sha256, and the sha256 of its index.

    `url` is the tar's own location where it does not lie beside the manifest.
    """

    name: str
    groups: int
    bytes: int
    sha256: str
    index_sha256: str
    url: str | None = None

    def location(self, directory: str | Path) -> str:
        """Where the tar of a manifest in `directory` lies."""
        return self.url or join(str(directory), self.name)

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".index.safetensors"


@dataclass(frozen=True)
class Manifest:
    """The shards of a data set in order, and where they came from."""

    shards: tuple[Shard, ...]
    source: dict[str, Any]
    command: str
    schema: int = SCHEMA

    @property
    def groups(self) -> int:
        return sum(shard.groups for shard in self.shards)

    @property
    def sizes(self) -> list[int]:
        return [shard.groups for shard in self.shards]

    @property
    def fingerprint(self) -> str:
        """Changes when a group or the order of the groups does; not with the place or command."""
        content = json.dumps([[shard.groups, shard.sha256] for shard in self.shards])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return {"schema": self.schema, "groups": self.groups, **dataclasses.asdict(self)}


def load_manifest(directory: str | Path, key: str = "data.shards") -> Manifest:
    """The manifest of shards in a directory or under a URL. `key` is the setting that named it."""
    directory = str(directory)
    value = _remote_json(directory, key) if is_remote(directory) else _local_json(Path(local_path(directory)), key)
    where = join(directory, NAME)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        schema = value.get("schema") if isinstance(value, dict) else None
        raise UserError(where, f"schema {schema}", f"schema {SCHEMA}", REPACK)
    try:
        shards = tuple(Shard(**shard) for shard in value["shards"])
        manifest = Manifest(shards, value["source"], value["command"])
        for shard in shards:
            _check_entry(shard, directory)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(where, f"an incomplete manifest ({error})", "what pack writes", REPACK) from None
    if not shards:
        raise UserError(where, "no shards", "at least one", REPACK)
    return manifest


def _local_json(directory: Path, key: str) -> Any:
    fix = "write them with reranker pack groups=FILE output=DIR, or index those of others with reranker index"
    if not directory.is_dir():
        raise UserError(key, f"{directory}, no such directory", "shards with a manifest.json", fix)
    if not (directory / NAME).is_file():
        tars = len(list(directory.glob("*.tar")))
        raise UserError(key, f"{directory} with {tars} .tar files and no {NAME}", "shards with a manifest.json", fix)
    return read_json(directory / NAME, REPACK)


def _remote_json(directory: str, key: str) -> Any:
    try:
        return json.loads(read_location(join(directory, NAME)))
    except FileNotFoundError:
        raise UserError(key, f"{directory} without a {NAME}", "the URL of shards",
                        "check the URL, or index shards of others with reranker index") from None  # fmt: skip
    except UserError:
        raise
    except ValueError as error:
        raise UserError(join(directory, NAME), f"no JSON ({error})", "a manifest", REPACK) from None


def _check_entry(shard: Shard, directory: str) -> None:
    """Raise TypeError or ValueError for an entry that no command of ours writes.

    A manifest may come from elsewhere: it names no path outside its directory and no command to run.
    """
    kinds = {"name": str, "groups": int, "bytes": int, "sha256": str, "index_sha256": str}
    for field, kind in kinds.items():
        if type(getattr(shard, field)) is not kind:
            raise TypeError(f"{field} {getattr(shard, field)!r}")
    if Path(shard.name).name != shard.name or shard.groups < 1 or shard.bytes < 0:
        raise ValueError(f"shard {shard.name!r} of {shard.groups} groups and {shard.bytes} bytes")
    if is_remote(directory) and shard.url and (shard.url.startswith(PIPE) or not is_remote(shard.url)):
        raise ValueError(f"under a URL, the shard {shard.url!r} of this machine")


def check_shards(directory: str | Path, manifest: Manifest, digest: bool = False) -> None:
    """Compare every local shard with the manifest: its size, and with `digest` its sha256. Raises UserError.

    Remote shards are compared when they are fetched.
    """
    for shard in manifest.shards:
        files = [shard.location(directory), join(str(directory), shard.index_name)]
        for location in files:
            if not is_remote(location) and not Path(local_path(location)).is_file():
                expected = f"a file of the {len(manifest.shards)} shards in {NAME}"
                raise UserError(location, "no such file", expected, REPACK)
        if is_remote(files[0]):
            continue
        path = Path(local_path(files[0]))
        if (size := path.stat().st_size) != shard.bytes:
            kind = "a truncated tar of" if size < shard.bytes else "a tar of"
            raise UserError(path, f"{kind} {size} bytes", f"{shard.bytes}", f"copy it again or {REPACK}")
        if digest and (found := sha256(path)) != shard.sha256:
            raise UserError(path, f"sha256 {found[:16]}…", f"{shard.sha256[:16]}…", f"copy it again or {REPACK}")
