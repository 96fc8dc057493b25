"""Tokens of every text of a data set, for planning micro-batches without reading and tokenizing them.

    lengths-FINGERPRINT/             one directory for each tokenizer and its prefixes, beside the shards
        shard-00000.safetensors      `tokens`, u16: one for each text, in the order of the shard's index
        lengths.json                 schema, fingerprints of tokenizer and data, shards with texts and sha256

A text counts by itself, behind the prefix of its kind if there is one, without special tokens and not cut; 65535 stands
for that many or more. Where the shards cannot be written beside, the directory lies on this node. Raises `UserError`
for lengths of other texts, of another tokenizer or with other prefixes, and for files that are not those written.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tokenizers import Tokenizer

from reranker.data.cache import ShardCache
from reranker.data.fetch import read_location
from reranker.data.index import ShardIndex
from reranker.data.location import is_remote, join, local_path
from reranker.data.manifest import Manifest, Shard
from reranker.data.reader import ShardReader
from reranker.data.tokenize import PairTokenizer
from reranker.errors import UserError
from reranker.files import atomic_directory, sha256, write_json
from reranker.processes import in_order
from reranker.progress import progress_bar

SCHEMA = 1
NAME = "lengths.json"
MOST = 65535
REMAKE = "delete the directory: whoever needs it makes it again"

_KEPT = 256
"""Shards whose lengths a process keeps: as many as the reader holds open."""
_TEXTS = 512
"""Texts that are encoded at a time: an encoding takes some 150 bytes a token until it is counted."""


def lengths_name(fingerprint: str) -> str:
    """The directory of a tokenizer's lengths."""
    return f"lengths-{fingerprint}"


@dataclass(frozen=True)
class LengthsFile:
    """The lengths of one shard: file name, texts, sha256."""

    name: str
    texts: int
    sha256: str

    def parse(self, content: bytes, location: str) -> np.ndarray:
        """The column in the bytes of the file, which lies at `location`. Raises UserError."""
        if (found := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise UserError(location, f"sha256 {found[:16]}…", f"{self.sha256[:16]}…, as in {NAME}", REMAKE)
        try:
            tokens = load(content)["tokens"]
        except (SafetensorError, KeyError) as error:
            raise UserError(location, f"no lengths ({error!r})", "a column `tokens`", REMAKE) from None
        if tokens.dtype != np.uint16 or tokens.shape != (self.texts,):
            raise UserError(location, f"{tokens.dtype} of shape {tokens.shape}", f"uint16 of {self.texts} texts",
                            REMAKE)  # fmt: skip
        return tokens


class Lengths:
    """Random access to the lengths of a data set. Memory does not grow with the number of shards.

    Args:
        directory: path or URL of the lengths themselves.
        fingerprint: of the tokenizer, and its prefixes, whose lengths they must be.
        cache: where copies of remote files are kept.
    """

    def __init__(
        self, directory: str | Path, manifest: Manifest, fingerprint: str, cache: ShardCache | None = None
    ) -> None:
        self.directory = str(directory)
        self._cache = cache
        self._files = load_files(self.directory, manifest, fingerprint)
        if not is_remote(self.directory):
            for file in self._files:
                if not os.path.isfile(path := local_path(join(self.directory, file.name))):
                    raise UserError(path, "no such file", f"a file of the {len(self._files)} in {NAME}", REMAKE)
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def tokens(self, shard: int) -> np.ndarray:
        """Tokens of every text of a shard, u16."""
        if shard not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            file = self._files[shard]
            location = join(self.directory, file.name)
            self._kept[shard] = file.parse(self._read(location, file.sha256), location)
        self._kept.move_to_end(shard)
        return self._kept[shard]

    def group(self, shard: int, index: int, shard_index: ShardIndex) -> tuple[int, list[int]]:
        """Tokens of one group's query, and of its passages: positives, then negatives."""
        tokens = self.tokens(shard)
        if len(tokens) != shard_index.texts:
            raise UserError(join(self.directory, self._files[shard].name), f"{len(tokens)} texts",
                            f"the {shard_index.texts} of its shard's index", REMAKE)  # fmt: skip
        start, end = int(shard_index.first[index]), int(shard_index.first[index + 1])
        query, *passages = tokens[start:end].tolist()
        return query, passages

    def _read(self, location: str, digest: str) -> bytes:
        if is_remote(location):
            assert self._cache is not None, "remote lengths are read through a cache"
            with open(self._cache.open(location, digest), "rb") as stream:
                return stream.read()
        try:
            return Path(local_path(location)).read_bytes()
        except OSError as error:
            raise UserError(location, f"a file that cannot be read ({error.strerror})", "a readable file",
                            "check the file system") from None  # fmt: skip


def load_files(directory: str, manifest: Manifest, fingerprint: str) -> tuple[LengthsFile, ...]:
    """What `lengths.json` in a directory or under a URL says, one file for each shard. Raises UserError."""
    where = join(directory, NAME)
    try:
        value = json.loads(read_location(where) if is_remote(where) else Path(local_path(where)).read_bytes())
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(where, f"a file that cannot be read ({reason})", "token lengths", REMAKE) from None
    try:
        schema, tokenizer, data = value["schema"], value["tokenizer"], value["data"]
        files = tuple(LengthsFile(**file) for file in value["shards"])
    except (KeyError, TypeError) as error:
        raise UserError(where, f"incomplete lengths ({error})", "token lengths", REMAKE) from None
    if schema != SCHEMA:
        raise UserError(where, f"schema {schema}", f"schema {SCHEMA}", REMAKE)
    if tokenizer != fingerprint:
        raise UserError(where, f"lengths of tokenizer {tokenizer}", f"those of {fingerprint}", REMAKE)
    if data != manifest.fingerprint or [file.name for file in files] != [_file_name(s) for s in manifest.shards]:
        raise UserError(where, f"lengths of data {data}", f"those of {manifest.fingerprint}", REMAKE)
    return files


def write_lengths(output: Path, reader: ShardReader, tokenizer: PairTokenizer, workers: int = 1) -> None:
    """Write the lengths of a data set as the directory `output`, whole or not at all.

    The bytes do not depend on `workers`. If another process finishes the same directory first, that one stays.
    """
    manifest = reader.manifest
    # Two trainings that start together on the same shards: a reader of theirs may hold the names.
    with atomic_directory(output, first_stays=True) as staging:
        contract = tokenizer.contract
        count = _Counter(
            reader, tokenizer.fingerprint_text, staging, contract.query_prefix, contract.passage_prefix
        )  # fmt: skip
        bar = progress_bar(desc="token lengths", unit=" groups", total=manifest.groups)
        files = []
        with bar, in_order(count, range(len(manifest.shards)), workers) as written:
            for shard, file in zip(manifest.shards, written, strict=True):
                files.append(dataclasses.asdict(file))
                bar.update(shard.groups)
        value = {
            "schema": SCHEMA, "tokenizer": tokenizer.lengths_fingerprint, "data": manifest.fingerprint, "shards": files,
        }  # fmt: skip
        write_json(staging / NAME, value)


def find_or_write_lengths(
    reader: ShardReader, tokenizer: PairTokenizer, cache_directory: Path, workers: int = 1
) -> Lengths:
    """The lengths beside the shards of a reader or on this node; where there are none, they are counted.

    They are written beside the shards or, where that cannot be done, under `cache_directory`.
    """
    manifest, fingerprint = reader.manifest, tokenizer.lengths_fingerprint
    beside = join(reader.directory, lengths_name(fingerprint))
    here = cache_directory / "lengths" / f"{manifest.fingerprint}-{fingerprint}"
    for place in (beside, str(here)):
        if _exists(place):
            return Lengths(place, manifest, fingerprint, reader.cache)
    writable = not is_remote(beside) and os.access(local_path(reader.directory), os.W_OK | os.X_OK)
    output = Path(local_path(beside)) if writable else here
    write_lengths(output, reader, tokenizer, workers)
    return Lengths(output, manifest, fingerprint)


@dataclass
class _Counter:
    """Writes the lengths of a shard. Travels to a worker as the tokenizer's text."""

    reader: ShardReader
    text: str
    directory: Path
    query_prefix: str
    passage_prefix: str

    def __call__(self, shard: int) -> LengthsFile:
        entry = self.reader.manifest.shards[shard]
        path = self.directory / _file_name(entry)
        tokens = np.fromiter(self._count(shard, entry), np.uint16)
        path.write_bytes(save({"tokens": tokens}))  # save_file makes a file that its owner alone can read
        return LengthsFile(path.name, len(tokens), sha256(path))

    @functools.cached_property
    def _tokenizer(self) -> Any:
        if multiprocessing.parent_process() is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
        tokenizer = Tokenizer.from_str(self.text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _count(self, shard: int, entry: Shard) -> Iterator[int]:
        texts: list[str] = []
        for index in range(entry.groups):
            group = self.reader.group(shard, index)
            texts.append(self.query_prefix + group.prompted_query)
            texts += [self.passage_prefix + passage for passage in (*group.pos, *group.neg)]
            if len(texts) >= _TEXTS or index == entry.groups - 1:
                for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                    yield min(len(encoding.ids), MOST)
                texts = []


def _file_name(shard: Shard) -> str:
    return shard.name.removesuffix(".tar") + ".safetensors"


def _exists(directory: str) -> bool:
    """Whether lengths lie there, whole or not."""
    if not is_remote(directory):
        return os.path.exists(local_path(directory))
    try:
        return bool(read_location(join(directory, NAME)))
    except FileNotFoundError:
        return False
