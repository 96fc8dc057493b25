"""Shards: plain WebDataset tars, equal for equal groups, whole or absent, and every damage is named."""

from __future__ import annotations

import filecmp
import gzip
import hashlib
import json
import resource
import shutil
import tarfile
from pathlib import Path

import pytest
import webdataset

from reranker.config.shards import PackConfig
from reranker.data.manifest import Manifest, check_shards, load_manifest
from reranker.data.reader import ShardReader
from reranker.errors import UserError
from reranker.groups import Group, write_groups
from reranker.prepare.pack import pack_command

GROUPS = [
    Group(f"질문 {n}", (f"정답 {n}",), tuple(f"오답 {n} {i}" for i in range(n % 4 + 1)), id=str(n) if n % 2 else None)
    for n in range(25)
]
AGAIN = "delete the directory and run reranker pack (or index) again"


def pack(directory: Path, groups: list[Group] = GROUPS, name: str = "groups.jsonl", **settings: object) -> Path:
    source = directory / name
    if not source.exists():
        write_groups(source, groups)
    config = PackConfig(groups=str(source), output=str(directory / "shards"), groups_per_shard=10)
    for key, value in settings.items():
        setattr(config, key, value)
    assert pack_command(config) == 0
    return Path(config.output)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def refused(directory: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        pack(directory, **settings)  # type: ignore[arg-type]
    return str(caught.value).replace(f"{directory}/", "")


def test_equal_groups_give_equal_bytes(packed: Path, tmp_path: Path) -> None:
    assert content(pack(tmp_path)) == content(packed)


def test_another_name_or_compression_of_the_file_changes_no_shard(packed: Path, tmp_path: Path) -> None:
    lines = "".join(group.to_json() + "\n" for group in GROUPS)
    (tmp_path / "other.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    mine = pack(tmp_path, name="other.jsonl.gz")
    for name in content(packed).keys() - {"manifest.json"}:
        assert filecmp.cmp(mine / name, packed / name, shallow=False)
    assert load_manifest(mine).fingerprint == load_manifest(packed).fingerprint


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [group.to_json() for group in GROUPS]
    text = "\n\n".join(lines[:11]) + "\n" + "\n".join(lines[11:])  # blank lines, none at the end
    (tmp_path / "groups.jsonl").write_text(text, encoding="utf-8")
    alone = content(pack(tmp_path, groups_per_shard=3))
    (tmp_path / "shards").rename(tmp_path / "alone")
    capsys.readouterr()
    assert content(pack(tmp_path, groups_per_shard=3, workers=3)) == alone
    assert len(alone) == 2 * 9 + 1
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'shards'}: 25 groups in 9 shards\n"
    assert "pack: 25 groups [" in err


def test_plain_webdataset_reads_all_groups_in_order(packed: Path) -> None:
    tars = sorted(str(path) for path in packed.glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{n:09d}" for n in range(25)]
    assert [sample["json"] for sample in samples] == [json.loads(group.to_json()) for group in GROUPS]


def test_members_carry_nothing_of_the_machine_that_packed_them(packed: Path) -> None:
    for path in packed.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                fields = (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode)
                assert fields == (0, 0, 0, "", "", 0o644)
                assert member.pax_headers == {}


def test_the_manifest_counts_groups_and_bytes_and_knows_every_sha256(packed: Path) -> None:
    value = json.loads((packed / "manifest.json").read_text("utf-8"))
    assert (value["schema"], value["groups"]) == (2, 25)
    assert [(shard["name"], shard["groups"]) for shard in value["shards"]] == [
        ("shard-00000.tar", 10), ("shard-00001.tar", 10), ("shard-00002.tar", 5),
    ]  # fmt: skip
    for shard in value["shards"]:
        tar, index = packed / shard["name"], packed / shard["name"].replace(".tar", ".index.safetensors")
        assert shard["bytes"] == tar.stat().st_size
        assert shard["sha256"] == hashlib.sha256(tar.read_bytes()).hexdigest()
        assert shard["index_sha256"] == hashlib.sha256(index.read_bytes()).hexdigest()
    source = packed.parent / "groups.jsonl"
    assert value["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert value["command"] == "reranker pack groups=groups.jsonl groups_per_shard=10"
    assert load_manifest(packed).groups == 25
    check_shards(packed, load_manifest(packed), digest=True)


def test_the_fingerprint_tells_other_groups_and_another_order(packed: Path, tmp_path: Path) -> None:
    prints = {load_manifest(packed).fingerprint}
    for number, groups in enumerate(
        ([*GROUPS[1:], GROUPS[0]], GROUPS[:-1], [*GROUPS[:-1], Group("q", ("p",), ("n",))])
    ):
        (tmp_path / str(number)).mkdir()
        prints.add(load_manifest(pack(tmp_path / str(number), list(groups))).fingerprint)
    assert len(prints) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_a_wrong_line_leaves_nothing_behind(workers: int, tmp_path: Path) -> None:
    lines = [group.to_json() for group in GROUPS]
    lines[22] = '{"query": "q", "pos": "p", "neg": ["n"]}'
    lines[2:2] = ["", ""]
    (tmp_path / "groups.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert refused(tmp_path, workers=workers) == (
        'groups.jsonl:25: found "pos" a string \'p\', expected a list of strings; write "pos": ["..."]'
    )
    assert [path.name for path in tmp_path.iterdir()] == ["groups.jsonl"]


@pytest.mark.parametrize("workers", [1, 2])
def test_of_several_mistakes_the_first_in_the_file_is_told(workers: int, tmp_path: Path) -> None:
    lines = [group.to_json().encode() + b"\n" for group in GROUPS]
    torn = gzip.compress(b"".join(lines) * 20, mtime=0)[:-20]
    (tmp_path / "torn.jsonl.gz").write_bytes(torn)
    assert refused(tmp_path, name="torn.jsonl.gz", groups_per_shard=4, workers=workers) == (
        "torn.jsonl.gz: found a file that cannot be read to its end (Compressed file ended before the "
        "end-of-stream marker was reached), expected a whole file; copy or make the file anew"
    )
    lines[7], lines[8], lines[20] = b"seven\n", b"eight\n", b"\xff\n"
    for name, text in (("wrong.jsonl", b"".join(lines)), ("both.jsonl.gz", gzip.compress(b"".join(lines) * 20)[:-20])):
        (tmp_path / name).write_bytes(text)
        assert refused(tmp_path, name=name, groups_per_shard=4, workers=workers) == (
            f"{name}:8: found 'seven' (Expecting value at column 1), expected one JSON value a line; "
            "write each record on one line of its own"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.jsonl.gz", "torn.jsonl.gz", "wrong.jsonl"]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "groups.jsonl").write_text("\n\n", encoding="utf-8")
    assert refused(tmp_path) == (
        'groups.jsonl: found an empty file, expected one group a line, {"query": "...", "pos": ["..."], '
        '"neg": ["..."]}; check how the file was made'
    )


def test_a_wrong_line_leaves_the_old_shards_as_they_were(shards: Path) -> None:
    before = content(shards)
    (shards.parent / "groups.jsonl").write_text("{}\n", encoding="utf-8")
    assert refused(shards.parent, overwrite=True).startswith("groups.jsonl:1: found keys []")
    assert content(shards) == before
    assert sorted(path.name for path in shards.parent.iterdir()) == ["groups.jsonl", "shards"]


def test_packing_again_says_that_it_was_done_before(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert pack(shards.parent) == shards
    assert capsys.readouterr().out == f"{shards}: 25 groups in 3 shards, packed before\n"
    assert {path.name: path.stat().st_mtime_ns for path in shards.iterdir()} == times


def test_packing_again_does_not_say_so_of_shards_that_are_not_whole(shards: Path) -> None:
    (shards / "shard-00001.tar").unlink()
    assert refused(shards.parent) == (
        f"shards/shard-00001.tar: found no such file, expected a file of the 3 shards in manifest.json; {AGAIN}"
    )
    pack(shards.parent, overwrite=True)
    check_shards(shards, load_manifest(shards), digest=True)


def test_shards_of_other_groups_stay_unless_they_may_be_overwritten(shards: Path) -> None:
    before = content(shards)
    write_groups(shards.parent / "groups.jsonl", GROUPS[:7])
    assert refused(shards.parent) == (
        "output: found shards with shards of other groups, expected a directory to make; "
        "choose another one or say overwrite=true"
    )
    assert content(shards) == before
    pack(shards.parent, overwrite=True)
    assert sorted(content(shards)) == ["manifest.json", "shard-00000.index.safetensors", "shard-00000.tar"]
    assert load_manifest(shards).groups == 7
    assert sorted(path.name for path in shards.parent.iterdir()) == ["groups.jsonl", "shards"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_something_else_is_never_replaced(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "thesis.tex").write_text("years of work", encoding="utf-8")
    expected = "a directory of shards alone or none" if overwrite else "a directory to make"
    assert refused(tmp_path, overwrite=overwrite) == (
        f"output: found shards, which holds thesis.tex, expected {expected}; move it away or choose another one"
    )
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["thesis.tex", "shard-00000.tar.bak", "shards", "fragments-00000.safetensors"])
def test_shards_with_something_else_among_them_are_not_overwritten(name: str, shards: Path) -> None:
    (shards / name).write_text("years of work", encoding="utf-8")
    before = content(shards)
    assert refused(shards.parent, overwrite=True) == (
        f"output: found shards, which holds {name}, expected a directory of shards alone or none; "
        "move it away or choose another one"
    )
    assert content(shards) == before


@pytest.mark.parametrize(
    ("manifest", "found"),
    [
        ('{"schema": 2, "files": {"state.json": {"bytes": 1}}}', "an incomplete manifest ('shards')"),
        ('{"schema": 2', "no JSON (Expecting ',' delimiter: line 1 column 13 (char 12))"),
    ],
    ids=["checkpoint", "torn"],
)
def test_a_manifest_of_something_else_is_not_overwritten(manifest: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text(manifest, encoding="utf-8")
    assert refused(tmp_path, overwrite=True) == (
        f"output: found shards, which holds a manifest.json that is not one of shards ({found}), "
        "expected a directory of shards alone or none; move it away or choose another one"
    )
    assert (tmp_path / "shards" / "manifest.json").read_text("utf-8") == manifest


def test_shards_without_their_manifest_are_not_overwritten(shards: Path) -> None:
    (shards / "manifest.json").unlink()
    assert refused(shards.parent, overwrite=True).startswith(
        "output: found shards, which holds shards without manifest"
    )


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("years of work", encoding="utf-8")
    assert "found shards, a file, expected" in refused(tmp_path, overwrite=True)
    assert (tmp_path / "shards").read_text("utf-8") == "years of work"


def test_an_output_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "groups.jsonl"
    write_groups(source, GROUPS)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for output, message in (
        (".", ".: found the directory that this command runs in"),
        ("/proc/x", "/proc/x: found a path that cannot be written"),
        (f"{source}/x", f"{source}: found a file, expected a directory"),
    ):
        with pytest.raises(UserError) as caught:
            pack_command(PackConfig(groups=str(source), output=output))
        assert str(caught.value).startswith(message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "groups.jsonl"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_full_is_told_in_one_line_and_leaves_the_old_shards(workers: int, shards: Path) -> None:
    before = content(shards)
    write_groups(shards.parent / "groups.jsonl", GROUPS * 20)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (1_000, 100_000, 520_000) if workers == 1 else (100_000,):  # the first, a middle and the last write
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))  # an OSError where a full disk has one
        try:
            message = refused(shards.parent, overwrite=True, groups_per_shard=500, workers=workers)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert message == (
            "shards: found no room to write it (File too large), expected room on the disk; "
            "make room or choose another place"
        )
        assert content(shards) == before
        assert sorted(path.name for path in shards.parent.iterdir()) == ["groups.jsonl", "shards"]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    assert load_manifest(pack(tmp_path)).groups == 25


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, groups_per_shard=0) == "groups_per_shard: found 0, expected 1 or more; change the value"
    assert refused(tmp_path, workers=0) == "workers: found 0, expected 1 or more; change the value"
    with pytest.raises(UserError) as caught:
        pack_command(PackConfig(groups="none.jsonl", output=str(tmp_path / "shards")))
    assert str(caught.value) == (
        "groups: found none.jsonl, no such file, expected groups, one JSON object a line; check the path"
    )


def test_the_reader_reads_every_member(packed: Path) -> None:
    reader = ShardReader(packed, load_manifest(packed))
    places = [(shard, index) for shard, size in enumerate((10, 10, 5)) for index in range(size)]
    assert [reader.read(*place).decode() for place in reversed(places)] == [g.to_json() for g in reversed(GROUPS)]
    assert [reader.group(*place) for place in places] == GROUPS
    assert [reader.number(*place) for place in places] == list(range(25))
    assert [reader.place(number) for number in range(25)] == places


def flip(path: Path, where: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[where] ^= 1
    path.write_bytes(damaged)


def test_a_flipped_byte_is_told_with_shard_and_member_and_harms_no_other(shards: Path) -> None:
    path = shards / "shard-00001.tar"
    flip(path, path.read_bytes().index("질문 13".encode()))
    manifest = load_manifest(shards)
    reader = ShardReader(shards, manifest, retries=0)
    with pytest.raises(UserError) as caught:
        reader.read(1, 3)
    assert str(caught.value) == (
        f"{path}:000000013.json: found bytes that differ from those packed (CRC-32), "
        f"expected an undamaged shard; copy the shard again or {AGAIN}"
    )
    others = [number for number in range(25) if number != 13]
    assert [reader.group(*reader.place(number)) for number in others] == GROUPS[:13] + GROUPS[14:]
    check_shards(shards, manifest)
    with pytest.raises(
        UserError, match=r"shard-00001\.tar: found sha256 [0-9a-f]{16}…, expected [0-9a-f]{16}…; copy it"
    ):
        check_shards(shards, manifest, digest=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("changed", "found an index that is not the one packed, expected the index of its shard"),
        ("gone", "found a file that cannot be read (No such file or directory), expected a file beside its shard"),
    ],
)
def test_an_index_that_is_not_the_one_packed_is_refused(damage: str, message: str, shards: Path) -> None:
    path = shards / "shard-00000.index.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        flip(path, path.stat().st_size - 1)
    with pytest.raises(UserError) as caught:
        ShardReader(shards, load_manifest(shards), retries=0).read(0, 0)
    assert str(caught.value) == f"{path}: {message}; {AGAIN}"


def test_a_truncated_tar_is_told_by_its_size_and_by_its_members(shards: Path) -> None:
    path = shards / "shard-00002.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:700])
    manifest = load_manifest(shards)
    with pytest.raises(UserError) as caught:
        check_shards(shards, manifest)
    assert str(caught.value) == (
        f"{path}: found a truncated tar of 700 bytes, expected {size}; copy it again or {AGAIN}"
    )
    with pytest.raises(UserError, match=r"shard-00002\.tar:000000024\.json: found bytes that differ"):
        ShardReader(shards, manifest, retries=0).read(2, 4)


def test_a_tar_that_grew_is_told_too(shards: Path) -> None:
    with open(shards / "shard-00000.tar", "ab") as stream:
        stream.write(b"more")
    with pytest.raises(UserError, match=r"shard-00000\.tar: found a tar of \d+ bytes, expected \d+; copy it again"):
        check_shards(shards, load_manifest(shards))


@pytest.mark.parametrize("name", ["shard-00001.tar", "shard-00001.index.safetensors"])
def test_a_missing_file_is_named(name: str, shards: Path) -> None:
    (shards / name).unlink()
    with pytest.raises(UserError) as caught:
        check_shards(shards, load_manifest(shards))
    assert str(caught.value) == (
        f"{shards / name}: found no such file, expected a file of the 3 shards in manifest.json; {AGAIN}"
    )


def test_a_shard_that_went_missing_later_is_named(shards: Path) -> None:
    reader = ShardReader(shards, load_manifest(shards), retries=0)
    (shards / "shard-00001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-00001\.tar: found a file that cannot be opened \(No such file"):
        reader.read(1, 0)


def manifest_refused(shards: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_manifest(shards)
    return str(caught.value).replace(f"{shards.parent}/", "")


def test_a_directory_without_a_manifest_is_refused(shards: Path) -> None:
    (shards / "manifest.json").unlink()
    wanted = "write them with reranker pack groups=FILE output=DIR, or index those of others with reranker index"
    assert manifest_refused(shards) == (
        "data.shards: found shards with 3 .tar files and no manifest.json, expected shards with a manifest.json; "
        + wanted
    )
    assert manifest_refused(shards / "none") == (
        f"data.shards: found none, no such directory, expected shards with a manifest.json; {wanted}"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, f"found schema 1, expected schema 2; {AGAIN}"),
        ({"schema": None}, f"found schema None, expected schema 2; {AGAIN}"),
        ({"shards": []}, f"found no shards, expected at least one; {AGAIN}"),
        ({"shards": [{"name": "a.tar"}]}, "found an incomplete manifest ("),
        ({"source": ...}, f"found an incomplete manifest ('source'), expected what pack writes; {AGAIN}"),
    ],
    ids=str,
)
def test_a_manifest_of_another_kind_is_refused(change: dict[str, object], message: str, shards: Path) -> None:
    value = {**json.loads((shards / "manifest.json").read_text("utf-8")), **change}
    written = {key: entry for key, entry in value.items() if entry is not ...}
    (shards / "manifest.json").write_text(json.dumps(written), encoding="utf-8")
    assert manifest_refused(shards).startswith(f"shards/manifest.json: {message}")


def test_a_torn_manifest_is_refused(shards: Path) -> None:
    path = shards / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])
    assert manifest_refused(shards).startswith("shards/manifest.json: found no JSON (")


def test_a_manifest_is_read_as_it_was_written(packed: Path) -> None:
    manifest = load_manifest(packed)
    assert isinstance(manifest, Manifest)
    assert json.loads(json.dumps(manifest.to_dict())) == json.loads((packed / "manifest.json").read_text("utf-8"))
    assert manifest.sizes == [10, 10, 5]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"groups": "20"}, "an incomplete manifest (groups '20')"),
        ({"groups": 0}, "an incomplete manifest (shard 'shard-00000.tar' of 0 groups and"),
        ({"name": "../shard-00000.tar"}, "an incomplete manifest (shard '../shard-00000.tar' of 10 groups and"),
    ],
)
def test_a_manifest_that_no_command_of_ours_wrote_is_refused(
    change: dict[str, object], told: str, shards: Path
) -> None:
    value = json.loads((shards / "manifest.json").read_text("utf-8"))
    value["shards"][0].update(change)
    (shards / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_manifest(shards)
    assert str(caught.value).startswith(f"{shards}/manifest.json: found {told}")


@pytest.mark.parametrize("url", ["pipe:touch {}", "{}", "file://{}"])
def test_a_manifest_under_a_url_names_no_command_and_no_path_of_this_machine(
    url: str, shards: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    value = json.loads((shards / "manifest.json").read_text("utf-8"))
    value["shards"][0]["url"] = url.format(target)
    (shards / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(UserError, match="under a URL, the shard"):
        load_manifest(f"local://{shards}")
    assert not target.exists()
