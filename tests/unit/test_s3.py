"""Shards in a bucket, of a real S3 server on a thread: read, indexed and verified as local ones are."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
import tenacity
from moto.server import ThreadedMotoServer

from reranker import cli
from reranker.config.shards import PackConfig
from reranker.data import fetch
from reranker.data.cache import ShardCache
from reranker.data.manifest import load_manifest
from reranker.data.reader import BadMember, ShardReader
from reranker.errors import UserError
from reranker.files import sha256
from reranker.groups import Group, write_groups
from reranker.prepare.pack import pack_command

GROUPS = [Group(f"질문 {n}", (f"정답 {n}",), tuple(f"오답 {n} {i}" for i in range(n % 4 + 1))) for n in range(25)]
BUCKET = "reranker"
SHARDS = f"s3://{BUCKET}/ko/shards"
AGAIN = "copy it again or delete the directory and run reranker pack (or index) again"


def not_found(location: str) -> str:
    """The line about an object that is not there."""
    return (
        f"{location}: found a file that cannot be fetched (FileNotFoundError: {location.removeprefix('s3://')}), "
        "expected a readable file; check the location, the network and the credentials"
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packed")
    write_groups(directory / "groups.jsonl", GROUPS)
    assert pack_command(PackConfig(str(directory / "groups.jsonl"), str(directory / "shards"), 10)) == 0
    return directory / "shards"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """S3 itself, as boto3 has it. How to reach it is in the environment alone."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    none = str(tmp_path_factory.getbasetemp() / "none")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in {
            "AWS_ENDPOINT_URL": "http://{}:{}".format(*moto.get_host_and_port()), "NO_PROXY": "127.0.0.1",
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none,
        }.items():  # fmt: skip
            patch.setenv(name, value)
        try:
            yield boto3.resource("s3")
        finally:
            moto.stop()


@pytest.fixture
def bucket(server: Any, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket with the shards in it."""
    monkeypatch.setattr(fetch, "WAIT", tenacity.wait_none())
    bucket = server.create_bucket(Bucket=BUCKET)
    for path in packed.iterdir():
        bucket.put_object(Key=f"ko/shards/{path.name}", Body=path.read_bytes())
    s3fs.S3FileSystem.clear_instance_cache()  # it knows the test before
    yield bucket
    bucket.objects.delete()
    bucket.delete()
    s3fs.S3FileSystem.clear_instance_cache()


def opened(directory: str, tmp_path: Path) -> ShardReader:
    return ShardReader(directory, load_manifest(directory), ShardCache(tmp_path / "copies", 1 << 30))


def contents(reader: ShardReader) -> list[bytes]:
    """The bytes of all members."""
    sizes = reader.manifest.sizes
    with contextlib.closing(reader):
        return [reader.read(shard, index) for shard, size in enumerate(sizes) for index in range(size)]


def line_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("reranker: error: "))
    return line.removeprefix("reranker: error: ")


def test_groups_and_bytes_are_those_of_the_local_shards(bucket: Any, packed: Path, tmp_path: Path) -> None:
    assert load_manifest(SHARDS) == load_manifest(packed)
    reader = opened(SHARDS, tmp_path)
    assert [reader.group(*reader.place(number)) for number in range(25)] == GROUPS
    assert contents(reader) == contents(ShardReader(packed, load_manifest(packed)))
    # Each tar and index is on this node now, as it was packed, and is read there.
    files = {path.name for path in (tmp_path / "copies").iterdir() if path.suffix != ".lock"}
    assert files == {sha256(path) for path in packed.iterdir() if path.name != "manifest.json"}
    manifest = load_manifest(SHARDS)
    bucket.objects.delete()
    again = ShardReader(SHARDS, manifest, ShardCache(tmp_path / "copies", 1 << 30))
    assert [again.group(*again.place(number)) for number in range(25)] == GROUPS


def test_a_forked_worker_reads_though_its_parent_read_before(bucket: Any, packed: Path, tmp_path: Path) -> None:
    reader = opened(SHARDS, tmp_path)
    assert reader.group(0, 0) == GROUPS[0]

    def work() -> None:
        assert [reader.group(*reader.place(number)) for number in range(25)] == GROUPS

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(20)
    process.kill()
    process.join()
    assert process.exitcode == 0


def test_a_missing_object_is_named_in_one_line(bucket: Any, packed: Path, tmp_path: Path) -> None:
    bucket.Object("ko/shards/shard-00001.tar").delete()
    reader = opened(SHARDS, tmp_path)
    assert reader.group(*reader.place(9)) == GROUPS[9]
    with pytest.raises(BadMember) as caught:
        reader.group(*reader.place(10))
    assert str(caught.value) == not_found(f"{SHARDS}/shard-00001.tar")
    assert reader.group(*reader.place(20)) == GROUPS[20]
    reader.close()


@pytest.mark.parametrize("directory", ["s3://reranker/ko/none", "s3://no-such-bucket/shards"])
def test_a_directory_without_a_manifest_is_named_in_one_line(bucket: Any, directory: str) -> None:
    with pytest.raises(UserError) as caught:
        load_manifest(directory)
    assert str(caught.value) == (
        f"data.shards: found {directory} without a manifest.json, expected the URL of shards; "
        "check the URL, or index shards of others with reranker index"
    )


def test_tars_are_indexed_where_they_lie_and_read_from_the_cache(
    bucket: Any, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "index"
    assert cli.main(["index", f"shards='{SHARDS}/shard-{{00000..00002}}.tar'", f"output={output}"]) == 0
    assert capsys.readouterr().out == f"{output}: 25 groups in 3 shards\n"
    manifest, local = load_manifest(output), load_manifest(packed)
    assert [shard.url for shard in manifest.shards] == [f"{SHARDS}/{shard.name}" for shard in local.shards]
    assert [shard.sha256 for shard in manifest.shards] == [shard.sha256 for shard in local.shards]
    assert manifest.fingerprint == local.fingerprint
    assert contents(opened(str(output), tmp_path)) == contents(ShardReader(packed, local))
    missing = f"{SHARDS}/shard-00003.tar"
    assert line_of(capsys, "index", f"shards='{missing}'", f"output={tmp_path / 'other'}") == not_found(missing)
    assert not (tmp_path / "other").exists()


def test_every_byte_is_verified_and_what_is_missing_or_too_much_is_named(
    bucket: Any, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "verify", SHARDS]) == 0
    assert capsys.readouterr().out == f"{SHARDS}: 25 groups in 3 shards, every byte as it was written\n"
    bucket.Object("ko/shards/shard-00001.tar").delete()
    bucket.put_object(Key="ko/shards/shard-00003.tar", Body=b"")
    s3fs.S3FileSystem.clear_instance_cache()  # which remembers what it listed, as no other process does
    assert cli.main(["data", "verify", SHARDS]) == 2
    assert capsys.readouterr().out.splitlines() == [
        f"{SHARDS}/shard-00001.tar: found no such file, expected a file of the 3 shards in manifest.json; {AGAIN}",
        f"{SHARDS}/shard-00003.tar: found a file that manifest.json does not name, expected files of its 3 shards; "
        "move it away",
        f"{SHARDS}: 25 groups in 3 shards; damaged: 2 files, 0 members",
    ]
