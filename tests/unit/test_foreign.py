"""WebDataset tars of others: indexed where they lie, member for member, and every tar that is not whole is named."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tenacity
import webdataset

from reranker.config.shards import IndexConfig, PackConfig
from reranker.data import fetch
from reranker.data.cache import ShardCache
from reranker.data.manifest import check_shards, load_manifest
from reranker.data.reader import ShardReader
from reranker.errors import UserError
from reranker.groups import Group, write_groups
from reranker.prepare.foreign import index_command
from reranker.prepare.pack import pack_command
from tests.server import FileServer, serving

GROUPS = [Group(f"질문 {n}", (f"정답 {n}",), tuple(f"오답 {n} {i}" for i in range(n % 4 + 1))) for n in range(24)]
CONTENTS = [json.dumps(json.loads(group.to_json()), indent=1).encode() for group in GROUPS]  # not as pack writes them
LONG = "디렉터리/" * 30  # a name that only a pax header or a GNU member can hold


def write_tar(path: Path, numbers: range, key: Callable[[int], str] = "{:06d}".format) -> Path:
    """A tar as webdataset writes it, with a .txt member beside each group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as tar:
        for number in numbers:
            tar.write({"__key__": key(number), "txt": f"note {number}", "json": CONTENTS[number]})
    return path


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "WAIT", tenacity.wait_none())


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Four tars of six groups each: keys with and without directories, and with names of 450 bytes."""
    directory = tmp_path / "tars"
    keys = ["{:06d}".format, "a/b/{:06d}".format, (LONG + "{}").format, "{:06d}".format]
    for number, key in enumerate(keys):
        write_tar(directory / f"part-{number}.tar", range(6 * number, 6 * number + 6), key)
    return directory


@pytest.fixture
def server(tars: Path) -> Iterator[FileServer]:
    with serving(ranges=True) as server:
        server.files.update({path.name: path.read_bytes() for path in tars.iterdir()})
        yield server


def index(shards: object, output: Path, **settings: object) -> Path:
    config = IndexConfig(shards=shards if isinstance(shards, (str, list)) else str(shards), output=str(output))
    for key, value in settings.items():
        setattr(config, key, value)
    assert index_command(config) == 0
    return output


def refused(shards: object, output: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        index(shards, output, **settings)
    return str(caught.value).replace(f"{output.parent}/", "")


def contents(output: Path, cache: ShardCache | None = None) -> list[bytes]:
    """The bytes of all members as the reader reads them."""
    reader = ShardReader(output, load_manifest(output), cache)
    sizes = reader.manifest.sizes
    return [reader.read(shard, index) for shard, size in enumerate(sizes) for index in range(size)]


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_the_reader_reads_the_members_of_the_tars(tars: Path, tmp_path: Path) -> None:
    before = content(tars)
    output = index(tars, tmp_path / "index")
    assert contents(output) == CONTENTS
    manifest = load_manifest(output)
    reader = ShardReader(output, manifest)
    assert [reader.group(*reader.place(number)) for number in range(24)] == GROUPS
    assert content(tars) == before
    assert [shard.url for shard in manifest.shards] == [str(tars / f"part-{n}.tar") for n in range(4)]
    assert [shard.sha256 for shard in manifest.shards] == [hashlib.sha256(tar).hexdigest() for tar in before.values()]
    check_shards(output, manifest, digest=True)
    assert sorted(path.name for path in output.iterdir()) == [
        "manifest.json",
        *(f"shard-{number:05d}.index.safetensors" for number in range(4)),
    ]


def test_plain_webdataset_and_the_index_see_the_same_groups(tars: Path, tmp_path: Path) -> None:
    output = index(tars, tmp_path / "index")
    urls = [shard.location(output) for shard in load_manifest(output).shards]
    samples = webdataset.WebDataset(urls, shardshuffle=False)
    assert [sample["json"] for sample in samples] == contents(output)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_form_are_read(form: int, tmp_path: Path) -> None:
    directory = "d" * 90 if form == tarfile.USTAR_FORMAT else LONG
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        folder = tarfile.TarInfo(directory)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, member in enumerate(CONTENTS):
            entry = tarfile.TarInfo(f"{directory}/{number}.json")
            entry.size = len(member)
            tar.addfile(entry, io.BytesIO(member))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link.json")
            link.type, link.linkname = kind, "0.json"
            tar.addfile(link)
    assert contents(index(tmp_path / "a.tar", tmp_path / "index")) == CONTENTS


def test_the_last_line_counts_groups_tars_and_what_was_passed_over(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index(tars, tmp_path / "index")
    assert capsys.readouterr().out == f"{tmp_path}/index: 24 groups in 4 shards; 24 other members passed over\n"
    write_groups(tmp_path / "groups.jsonl", GROUPS)
    pack_command(PackConfig(groups=str(tmp_path / "groups.jsonl"), output=str(tmp_path / "packed")))
    capsys.readouterr()
    index(tmp_path / "packed", tmp_path / "again")
    assert capsys.readouterr().out == f"{tmp_path}/again: 24 groups in 1 shards\n"


def test_packed_shards_have_the_index_that_pack_made(tmp_path: Path) -> None:
    write_groups(tmp_path / "groups.jsonl", GROUPS)
    packed = tmp_path / "packed"
    pack_command(PackConfig(groups=str(tmp_path / "groups.jsonl"), output=str(packed), groups_per_shard=10))
    output = index(packed, tmp_path / "index")
    names = content(packed).keys() - {"manifest.json"} - {path.name for path in packed.glob("*.tar")}
    assert {name: content(output)[name] for name in names} == {name: content(packed)[name] for name in names}
    assert load_manifest(output).fingerprint == load_manifest(packed).fingerprint


@pytest.mark.parametrize(
    "shards",
    [
        "tars",
        "tars/part-{0..3}.tar",
        "file://{here}/tars",
        ["tars/part-{0,1}.tar", "tars/part-2.tar", "pipe:cat tars/part-3.tar"],
        "pipe:cat tars/part-{0..3}.tar",
        "t{a,rs}",
    ],
    ids=str,
)
def test_tars_are_named_by_directory_pattern_command_or_list(
    shards: str | list[str], tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if shards == "t{a,rs}":
        tars.rename(tmp_path / "t{a,rs}")  # a name with braces of its own
    given = shards.replace("{here}", str(tmp_path)) if isinstance(shards, str) else shards
    output = index(given, tmp_path / "index")
    assert contents(output, ShardCache(tmp_path / "cache", 1 << 30)) == CONTENTS
    urls = [shard.url or "" for shard in load_manifest(output).shards]
    assert all(url.startswith((f"{tmp_path}/", "pipe:cat tars/part-")) for url in urls)


def test_a_directory_of_an_index_can_move_and_its_command_is_known(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index(["tars/part-{0..2}.tar", "tars/part-3.tar"], Path("index"))
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(tmp_path / "index", tmp_path / "elsewhere"))
    assert contents(moved) == CONTENTS
    assert load_manifest(moved).command == "reranker index shards=[tars/part-{0..2}.tar,tars/part-3.tar]"


def test_tars_of_one_name_in_two_directories_are_told_apart(tmp_path: Path) -> None:
    write_tar(tmp_path / "x" / "0.tar", range(12))
    write_tar(tmp_path / "y" / "0.tar", range(12, 24))
    output = index(f"{tmp_path}/{{x,y}}", tmp_path / "index")
    assert contents(output) == CONTENTS


def test_tars_of_a_server_are_streamed_once_and_read_from_the_cache(server: FileServer, tmp_path: Path) -> None:
    output = index(server.url("part-{0..3}.tar"), tmp_path / "index")
    names = [f"part-{number}.tar" for number in range(4)]
    assert server.gets == names
    assert [shard.url for shard in load_manifest(output).shards] == [server.url(name) for name in names]
    assert contents(output, ShardCache(tmp_path / "cache", 1 << 30)) == CONTENTS
    assert server.gets == names * 2


@pytest.mark.parametrize("mishap", ["error", "cut"])
def test_a_server_that_fails_for_a_while_is_asked_again(mishap: str, server: FileServer, tmp_path: Path) -> None:
    server.mishaps["part-1.tar"] = [mishap] * 3
    output = index(server.url("part-{0..3}.tar"), tmp_path / "index")
    assert contents(output, ShardCache(tmp_path / "cache", 1 << 30)) == CONTENTS
    assert len(load_manifest(output).shards) == 4


def test_the_number_of_processes_changes_no_byte(tars: Path, server: FileServer, tmp_path: Path) -> None:
    shards = [str(tars), server.url("part-{0..3}.tar")]
    one = content(index(shards, tmp_path / "one"))
    assert content(index(shards, tmp_path / "three", workers=3)) == one


@pytest.mark.parametrize("workers", [1, 3])
def test_of_several_wrong_tars_the_first_is_told(workers: int, tars: Path, tmp_path: Path) -> None:
    (tars / "part-1.tar").write_bytes(b"")
    (tars / "part-3.tar").write_bytes(b"")
    assert refused(tars, tmp_path / "index", workers=workers) == (
        "tars/part-1.tar: found no tar (empty header), expected a tar; check what lies there"
    )


def test_indexing_again_says_that_it_was_done_before(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = index(tars, tmp_path / "index")
    times = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    capsys.readouterr()
    index(f"{tars}/part-{{0..3}}.tar", output)
    assert capsys.readouterr().out == f"{output}: 24 groups in 4 shards, indexed before\n"
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == times


def test_an_index_is_not_called_done_if_a_tar_has_changed(tars: Path, tmp_path: Path) -> None:
    output = index(tars, tmp_path / "index")
    write_tar(tars / "part-3.tar", range(24))
    assert refused(tars, output).startswith("tars/part-3.tar: found a tar of ")
    index(tars, output, overwrite=True)
    assert load_manifest(output).sizes == [6, 6, 6, 24]


def test_an_index_of_other_tars_stays_unless_it_may_be_overwritten(tars: Path, tmp_path: Path) -> None:
    output = index(tars, tmp_path / "index")
    before = content(output)
    write_tar(tars / "part-4.tar", range(3))
    assert refused(tars, output) == (
        "output: found index with shards of other groups, expected a directory to make; "
        "choose another one or say overwrite=true"
    )
    assert content(output) == before
    index(tars, output, overwrite=True)
    assert load_manifest(output).sizes == [6, 6, 6, 6, 3]


@pytest.mark.parametrize("overwrite", [False, True])
def test_tars_are_never_replaced_by_their_index(overwrite: bool, tmp_path: Path) -> None:
    write_groups(tmp_path / "groups.jsonl", GROUPS)
    packed = tmp_path / "packed"
    pack_command(PackConfig(groups=str(tmp_path / "groups.jsonl"), output=str(packed)))
    before = content(packed)
    (tmp_path / "link").symlink_to(packed)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "shard-00000.tar").symlink_to(packed / "shard-00000.tar")
    for shards in ("packed", "link", "tars"):
        message = refused(tmp_path / shards, packed, overwrite=overwrite)
        assert message == (
            f"output: found packed, which holds {shards}/shard-00000.tar, "
            "expected a directory apart from the tars; choose another one"
        )
    assert content(packed) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_something_else_is_never_replaced(overwrite: bool, tars: Path, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.tex").write_text("years of work", encoding="utf-8")
    expected = "a directory of shards alone or none" if overwrite else "a directory to make"
    assert refused(tars, tmp_path / "index", overwrite=overwrite) == (
        f"output: found index, which holds thesis.tex, expected {expected}; move it away or choose another one"
    )
    assert content(tmp_path / "index") == {"thesis.tex": b"years of work"}


def raw_tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, member in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(member)
            tar.addfile(entry, io.BytesIO(member))
    return stream.getvalue()


WHOLE = raw_tar({f"{n}.json": member for n, member in enumerate(CONTENTS)})
DAMAGED = bytearray(WHOLE)
DAMAGED[1024 + 148] ^= 1  # the checksum of the second header
SHORT = "found a tar that is cut short or damaged ({}), expected a whole tar; copy or make it anew"


@pytest.mark.parametrize(
    ("tar", "message"),
    [
        (raw_tar({"a.txt": b"text", "b.txt": b"text"}),
         ": found no .json member among 2, expected a .json member for each group; "
         "leave the tar out, or pack its groups with reranker pack"),
        (raw_tar({"a.json": CONTENTS[0], "x/b.json": b'{"query": "q", "pos": "p", "neg": ["n"]}'}),
         ':x/b.json: found "pos" a string \'p\', expected a list of strings; write "pos": ["..."]'),
        (raw_tar({"a.json": b'{"query": '}),
         ":a.json: found no JSON (Expecting value: line 1 column 11 (char 10)), expected a group; "
         'write {"query": "...", "pos": ["..."], "neg": ["..."]}'),
        (raw_tar({"a.json": b'"\xff"'}),
         ":a.json: found no JSON ('utf-8' codec can't decode byte 0xff in position 1: invalid start byte), "
         'expected a group; write {"query": "...", "pos": ["..."], "neg": ["..."]}'),
        (WHOLE[:700], ": " + SHORT.format("unexpected end of data")),
        (WHOLE[:1024], ": " + SHORT.format("empty header")),
        (WHOLE[:1100], ": " + SHORT.format("truncated header")),
        (WHOLE[:512 * 48], ": " + SHORT.format("empty header")),
        (bytes(DAMAGED), ": " + SHORT.format("bad checksum")),
        (WHOLE + WHOLE,
         ": found more behind the end of the tar, expected one tar; make one tar of those that were put together"),
        (gzip.compress(WHOLE),
         ": found a tar compressed with gzip, expected a plain tar, of which a member can be read by itself; "
         "decompress it"),
        (b"<html>no such page</html>" * 100, ": found no tar (invalid header), expected a tar; check what lies there"),
        (b"", ": found no tar (empty header), expected a tar; check what lies there"),
    ],
    ids=["no group", "wrong group", "no json", "no utf-8", "in a member", "between members", "in a header", "no end",
         "damaged", "two tars", "gzip", "html", "empty"],
)  # fmt: skip
@pytest.mark.parametrize("place", ["a file", "a command", "a server"])
def test_a_tar_that_is_not_whole_is_told_in_one_line(place: str, tar: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar)
    with serving() as server:
        server.files["a.tar"] = tar
        shards = {
            "a file": f"{tmp_path}/a.tar",
            "a command": f"pipe:cat {tmp_path}/a.tar",
            "a server": server.url("a.tar"),
        }[place]
        told = refused(shards, tmp_path / "index")
    assert told == f"{shards}{message}".replace(f"{tmp_path}/", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_the_whole_tar_of_these_mistakes_is_right(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(WHOLE)
    assert contents(index(tmp_path / "a.tar", tmp_path / "index")) == CONTENTS


def test_a_tar_that_cannot_be_fetched_is_told_in_one_line(server: FileServer, tmp_path: Path) -> None:
    url = server.url("none.tar")
    assert refused(url, tmp_path / "index") == (
        f"{url}: found a file that cannot be fetched (ClientResponseError: 404, message='Not Found', url='{url}'), "
        "expected a readable file; check the location, the network and the credentials"
    )


def test_a_command_that_fails_is_told_though_it_printed_a_whole_tar(tars: Path, tmp_path: Path) -> None:
    assert refused(f"pipe:cat {tars}/part-0.tar; exit 7", tmp_path / "index") == (
        "pipe:cat tars/part-0.tar; exit 7: found a file that cannot be fetched "
        "(OSError: the command ended with status 7), "
        "expected a readable file; check the location, the network and the credentials"
    )


def test_of_a_command_that_is_not_read_to_its_end_the_tar_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(os.urandom(1 << 22)))  # more than a pipe holds
    assert refused(f"pipe:cat {tmp_path}/a.tar.gz", tmp_path / "index").startswith(
        "pipe:cat a.tar.gz: found a tar compressed with gzip, expected"
    )


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert refused("/proc/self/mem", tmp_path / "index") == (
        "/proc/self/mem: found a file that cannot be read (Input/output error), expected a tar; "
        "check the path and its permissions"
    )


def test_what_names_no_tar_is_told(tars: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "compressed").mkdir()
    (tmp_path / "compressed" / "a.tar.gz").write_bytes(b"")
    kinds = "a directory, a pattern, a URL, a pipe: command or a list of these"
    for shards, message in (
        (f"{tmp_path}/nothing", "nothing, no such file, expected a tar or a directory of tars; check the path"),
        (f"{tars}/part-{{3..4}}.tar", "tars/part-4.tar, no such file, expected a tar or a directory of tars; check the path"),
        (f"{tmp_path}/none", "none with no .tar file, expected a directory of tars; check the path"),
        (f"{tmp_path}/compressed", "compressed with 1 compressed tars, expected tars; "
         "decompress them: a member of a compressed tar cannot be read by itself"),
        (f"{tars}/part-{{0..3.tar", "tars/part-{0..3.tar with a brace that has no other, expected pairs of braces; mend the pattern"),
        ([str(tars), f"{tars}/part-2.tar"], "tars/part-2.tar twice, expected each tar once; leave one of them out"),
        ([], f"'[]', expected {kinds}; name the tars"),
        ([7], f"'[7]', expected {kinds}; name the tars"),
    ):  # fmt: skip
        assert refused(shards, tmp_path / "index") == f"shards: found {message}"
    assert refused(tars, tmp_path / "index", workers=0) == "workers: found 0, expected 1 or more; change the value"
    assert not (tmp_path / "index").exists()


def test_token_lengths_are_counted_beside_the_index_when_a_tokenizer_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    from reranker.data.lengths import Lengths
    from reranker.data.tokenize import Contract, PairTokenizer
    from tests.tiny import tiny_model

    model = tiny_model(tmp_path / "model")
    group = {"query": "질문", "pos": ["정답 하나"], "neg": ["오답"]}
    (tmp_path / "tars").mkdir()
    with webdataset.TarWriter(str(tmp_path / "tars" / "a.tar")) as tar:
        tar.write({"__key__": "x", "json": group})
    config = IndexConfig(str(tmp_path / "tars"), str(tmp_path / "index"), tokenizer=str(model))
    for _ in range(2):
        assert index_command(config) == 0
        assert f"token lengths of {model}" in capsys.readouterr().out
    tokenizer = PairTokenizer(AutoTokenizer.from_pretrained(model), Contract())
    manifest = load_manifest(tmp_path / "index")
    lengths = Lengths(tmp_path / "index" / f"lengths-{tokenizer.fingerprint}", manifest, tokenizer.fingerprint)
    assert lengths.tokens(0).tolist() == tokenizer.lengths(["질문", "정답 하나", "오답"])
