"""`reranker data verify`: every damage is named by file and member, and whole shards pass."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reranker import cli
from reranker.config.shards import DataVerifyConfig, PackConfig
from reranker.data.lengths import lengths_name
from reranker.data.manifest import load_manifest
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.files import sha256
from reranker.groups import Group, write_groups
from reranker.prepare.pack import pack_command
from reranker.prepare.verify import verify_command
from tests.tiny import tiny_model

GROUPS = [Group(f"질문 {n}", (f"정답 {n}",), tuple(f"오답 {n} {i}" for i in range(n % 4 + 1))) for n in range(25)]
AGAIN = "copy it again or delete the directory and run reranker pack (or index) again"
REMAKE = "delete the directory: whoever needs it makes it again"
CRC = f"found bytes that differ from those packed (CRC-32), expected an undamaged shard; {AGAIN}"
TARS = [f"shard-0000{n}.tar" for n in range(3)]
INDEXES = [f"shard-0000{n}.index.safetensors" for n in range(3)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packed")
    write_groups(directory / "groups.jsonl", GROUPS)
    model = str(tiny_model(directory / "model"))
    config = PackConfig(str(directory / "groups.jsonl"), str(directory / "shards"), 10, tokenizer=model)
    assert pack_command(config) == 0
    return directory / "shards"


@pytest.fixture(scope="module")
def lengths(packed: Path) -> str:
    """The name of the directory of lengths."""
    from transformers import AutoTokenizer

    tokenizer = PairTokenizer(AutoTokenizer.from_pretrained(packed.parent / "model"), Contract())
    return lengths_name(tokenizer.fingerprint)


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(packed, tmp_path / "shards"))


Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Run:
    """The exit code of the command and the lines that it prints, without the directory of the shards."""

    def run(directory: Path | str, **settings: int) -> tuple[int, list[str]]:
        code = verify_command(DataVerifyConfig(str(directory), **settings))
        out, err = capsys.readouterr()
        assert "error" not in err
        return code, out.replace(f"{directory}/", "").replace(f"{directory}:", "shards:").splitlines()

    return run


def flip(path: Path, where: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[where] ^= 1
    path.write_bytes(damaged)


def told(damage: str) -> str:
    return f"shards: 25 groups in 3 shards, token lengths of 1 tokenizer; damaged: {damage}"


WHOLE = "shards: 25 groups in 3 shards, token lengths of 1 tokenizer, every byte as it was written"


@pytest.mark.parametrize("workers", [1, 4])
def test_whole_shards_pass(workers: int, packed: Path, verify: Run) -> None:
    assert verify(packed, workers=workers) == (0, [WHOLE])


def test_the_bar_counts_the_bytes_of_the_tars(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum((packed / name).stat().st_size for name in TARS)
    assert cli.main(["data", "verify", str(packed)]) == 0
    out, err = capsys.readouterr()
    assert out == WHOLE.replace("shards:", f"{packed}:", 1) + "\n"
    assert f"verify: 100%|██████████| {size / 1000:.1f}k/{size / 1000:.1f}k [" in err


def test_a_flipped_bit_is_named_by_its_member(shards: Path, verify: Run) -> None:
    path = shards / TARS[1]
    content = path.read_bytes()
    for text in ("질문 17", "오답 13 0"):
        flip(path, content.index(text.encode()) + 8)
    assert verify(shards) == (2, [
        f"{TARS[1]}: found sha256 {sha256(path)[:16]}…, expected {load_manifest(shards).shards[1].sha256[:16]}…; {AGAIN}",
        f"{TARS[1]}:000000013.json: {CRC}",
        f"{TARS[1]}:000000017.json: {CRC}",
        told("1 file, 2 members"),
    ])  # fmt: skip


def test_a_flipped_bit_between_the_members_is_found_as_well(shards: Path, verify: Run) -> None:
    path = shards / TARS[2]
    flip(path, path.stat().st_size - 1)
    code, lines = verify(shards)
    assert code == 2
    assert lines[0].startswith(f"{TARS[2]}: found sha256 ")
    assert lines[1:] == [told("1 file, 0 members")]


def test_a_truncated_tar_is_named_with_the_members_that_it_lost(shards: Path, verify: Run) -> None:
    path = shards / TARS[2]
    size, end = path.stat().st_size, path.read_bytes().index("질문 23".encode())
    os.truncate(path, end)
    assert verify(shards) == (2, [
        f"{TARS[2]}: found a truncated tar of {end} bytes, expected {size}; {AGAIN}",
        f"{TARS[2]}:000000023.json: {CRC}",
        f"{TARS[2]}:000000024.json: {CRC}",
        told("1 file, 2 members"),
    ])  # fmt: skip
    os.truncate(path, 0)
    assert verify(shards) == (2, [
        f"{TARS[2]}: found a truncated tar of 0 bytes and none of its 5 members whole, expected {size}; {AGAIN}",
        told("1 file, 0 members"),
    ])  # fmt: skip


def test_a_tar_that_grew_is_named(shards: Path, verify: Run) -> None:
    path = shards / TARS[0]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"more")
    assert verify(shards) == (2, [
        f"{TARS[0]}: found a tar of {size + 4} bytes, expected {size}; {AGAIN}",
        told("1 file, 0 members"),
    ])  # fmt: skip


def swap(one: Path, other: Path) -> None:
    one.rename(one.with_name("x"))
    other.rename(one)
    one.with_name("x").rename(other)


def test_swapped_files_are_named_by_whose_content_they_hold(shards: Path, verify: Run) -> None:
    swap(shards / TARS[0], shards / TARS[2])
    swap(shards / INDEXES[0], shards / INDEXES[1])
    assert verify(shards) == (2, [
        f"{INDEXES[0]}: found the index of {TARS[1]}, expected that of {TARS[0]}; {AGAIN}",
        f"{TARS[0]}: found the content of {TARS[2]}, expected its own; {AGAIN}",
        f"{INDEXES[1]}: found the index of {TARS[0]}, expected that of {TARS[1]}; {AGAIN}",
        f"{TARS[2]}: found the content of {TARS[0]}, expected its own; {AGAIN}",
        told("4 files, 0 members"),
    ])  # fmt: skip


def test_missing_and_surplus_files_are_named(shards: Path, lengths: str, verify: Run) -> None:
    shutil.copy(shards / TARS[0], shards / "shard-00003.tar")
    (shards / TARS[1]).unlink()
    (shards / INDEXES[2]).unlink()
    (shards / lengths / "shard-00000.safetensors").unlink()
    missing = "found no such file, expected a file of the 3 shards in"
    assert verify(shards) == (2, [
        f"{lengths}/shard-00000.safetensors: {missing} lengths.json; {REMAKE}",
        f"{TARS[1]}: {missing} manifest.json; {AGAIN}",
        f"{INDEXES[2]}: {missing} manifest.json; {AGAIN}",
        "shard-00003.tar: found a file that manifest.json does not name, expected files of its 3 shards; move it away",
        told("4 files, 0 members"),
    ])  # fmt: skip


def test_a_damaged_index_is_named_and_its_tar_is_still_compared(shards: Path, verify: Run) -> None:
    path = shards / INDEXES[0]
    flip(path, path.stat().st_size - 1)
    first = f"{INDEXES[0]}: found sha256 {sha256(path)[:16]}…, expected {load_manifest(shards).shards[0].index_sha256[:16]}…; {AGAIN}"
    assert verify(shards) == (2, [first, told("1 file, 0 members")])
    flip(shards / TARS[0], 600)
    code, lines = verify(shards)
    assert (code, lines[0], lines[-1]) == (2, first, told("2 files, 0 members"))
    assert lines[1].startswith(f"{TARS[0]}: found sha256 ")


def change(shards: Path, number: int, **entries: object) -> None:
    """Change the entry of a shard in the manifest."""
    value = json.loads((shards / "manifest.json").read_text("utf-8"))
    value["shards"][number].update(entries)
    (shards / "manifest.json").write_text(json.dumps(value), encoding="utf-8")


def test_an_index_that_does_not_fit_its_tar_is_named_though_every_checksum_fits(shards: Path, verify: Run) -> None:
    shutil.copy(shards / INDEXES[1], shards / INDEXES[0])
    change(shards, 0, index_sha256=sha256(shards / INDEXES[0]))
    again = "delete the directory and run reranker pack (or index) again"
    code, lines = verify(shards)
    assert code == 2
    assert lines[0].startswith(f"{INDEXES[0]}: found an index that does not fit {TARS[0]}: ")
    assert lines[0].endswith(f" of 10 members differ, expected the index of its tar; {again}")
    shutil.copy(shards / INDEXES[2], shards / INDEXES[0])
    change(shards, 0, index_sha256=sha256(shards / INDEXES[0]))
    assert verify(shards)[1][0] == f"{INDEXES[0]}: found 5 members, expected the 10 in manifest.json; {again}"
    (shards / INDEXES[0]).write_bytes(b"an index?")
    change(shards, 0, index_sha256=sha256(shards / INDEXES[0]))
    assert verify(shards)[1][0].startswith(f"{INDEXES[0]}: found no index (")


def test_damaged_lengths_are_named(shards: Path, lengths: str, verify: Run) -> None:
    paths = [shards / lengths / f"shard-0000{n}.safetensors" for n in range(3)]
    swap(paths[0], paths[1])
    flip(paths[2], paths[2].stat().st_size - 1)
    value = json.loads((shards / lengths / "lengths.json").read_text("utf-8"))
    lines = [
        f"{lengths}/shard-0000{n}.safetensors: found sha256 {sha256(paths[n])[:16]}…, "
        f"expected {value['shards'][n]['sha256'][:16]}…, as in lengths.json; {REMAKE}"
        for n in range(3)
    ]
    assert verify(shards) == (2, [*lines, told("3 files, 0 members")])


def test_lengths_of_other_texts_and_of_another_tokenizer_are_named(shards: Path, lengths: str, verify: Run) -> None:
    place, other = shards / lengths, shards / lengths_name("0" * 16)
    shutil.copytree(place, other)
    value = json.loads((place / "lengths.json").read_text("utf-8"))
    value["shards"][0].update({key: value["shards"][2][key] for key in ("texts", "sha256")})
    shutil.copy(place / "shard-00002.safetensors", place / "shard-00000.safetensors")
    (place / "lengths.json").write_text(json.dumps(value), encoding="utf-8")
    texts = sum(len(group.pos) + len(group.neg) + 1 for group in GROUPS[:10])
    lines = [
        f"{lengths}/shard-00000.safetensors: found {value['shards'][2]['texts']} texts, expected the {texts} of the shard's index; {REMAKE}",
        f"{other.name}/lengths.json: found lengths of tokenizer {value['tokenizer']}, expected those of {'0' * 16}; {REMAKE}",
    ]
    summary = told("2 files, 0 members").replace("1 tokenizer", "2 tokenizers")
    assert verify(shards) == (2, [*sorted(lines), summary])


def test_a_file_that_cannot_be_read_is_named(shards: Path, verify: Run) -> None:
    (shards / TARS[1]).unlink()
    (shards / TARS[1]).mkdir()
    assert verify(shards) == (2, [
        f"{TARS[1]}: found a file that cannot be read (Is a directory), expected a readable file; "
        "check the path, its permissions and the network",
        told("1 file, 0 members"),
    ])  # fmt: skip


def test_a_file_longer_than_a_block_is_compared_member_by_member(
    tmp_path: Path, verify: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "가" * 300_000  # a block holds a member and a part of the next
    groups = [Group(f"질문 {n}", (text,), (f"끝 {n}",)) for n in range(9)]
    write_groups(tmp_path / "groups.jsonl", groups)
    assert pack_command(PackConfig(str(tmp_path / "groups.jsonl"), str(tmp_path / "shards"))) == 0
    capsys.readouterr()
    assert verify(tmp_path / "shards") == (0, ["shards: 9 groups in 1 shards, every byte as it was written"])
    path = tmp_path / "shards" / TARS[0]
    content = path.read_bytes()
    for n in (0, 4, 8):
        flip(path, content.index(f"끝 {n}".encode()))
    code, lines = verify(tmp_path / "shards")
    assert code == 2
    assert lines[1:4] == [f"{TARS[0]}:00000000{n}.json: {CRC}" for n in (0, 4, 8)]


def test_remote_shards_are_compared_and_fill_no_cache(
    shards: Path, lengths: str, tmp_path: Path, verify: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert verify(f"local://{shards}") == (0, [WHOLE])
    flip(shards / TARS[1], (shards / TARS[1]).read_bytes().index("질문 13".encode()))
    (shards / INDEXES[0]).unlink()
    (shards / lengths / "shard-00002.safetensors").write_bytes(b"")
    code, lines = verify(f"local://{shards}")
    assert code == 2
    assert lines[0].startswith(f"{lengths}/shard-00002.safetensors: found sha256 e3b0c44298fc1c14…, expected ")
    assert lines[1].startswith(f"{INDEXES[0]}: found no such file, expected a file of the 3 shards in manifest.json; ")
    assert lines[2].startswith(f"{TARS[1]}: found sha256 ")
    assert lines[3:] == [f"{TARS[1]}:000000013.json: {CRC}", told("3 files, 1 member")]
    assert not (tmp_path / "cache").exists()


def test_shards_that_lie_elsewhere_are_compared_there(shards: Path, tmp_path: Path, verify: Run) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    urls = [str(elsewhere / "a.tar"), f"local://{elsewhere}/b.tar", f"pipe:cat {elsewhere}/c.tar"]
    for number, (name, url) in enumerate(zip(TARS, urls, strict=True)):
        (shards / name).rename(elsewhere / f"{'abc'[number]}.tar")
        change(shards, number, url=url)
    assert verify(shards) == (0, [WHOLE])
    flip(elsewhere / "b.tar", (elsewhere / "b.tar").read_bytes().index("질문 13".encode()))
    (elsewhere / "a.tar").unlink()
    (elsewhere / "c.tar").unlink()
    code, lines = verify(shards)
    assert code == 2
    again = "copy it again or index the shards again: reranker index"
    assert lines[0] == f"{urls[0]}: found no such file, expected a file of the 3 shards in manifest.json; {again}"
    assert lines[1].startswith(f"{urls[1]}: found sha256 ")
    assert lines[2] == f"{urls[1]}:member 3: {CRC.replace(AGAIN, again)}"
    assert lines[3].startswith(f"{urls[2]}: found ")
    assert lines[4:] == [told("3 files, 1 member")]


def test_a_directory_without_shards_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "verify", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == (
        f"reranker: error: shards: found {tmp_path}/none, no such directory, expected shards with a manifest.json; "
        "write them with reranker pack groups=FILE output=DIR, or index those of others with reranker index\n"
    )
    assert cli.main(["data", "verify", str(tmp_path), "workers=0"]) == 2
    assert capsys.readouterr().err == "reranker: error: workers: found 0, expected 1 or more; change the value\n"


def is_open(process: int, file: str) -> bool:
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(entry) == file:
                return True
    return False


def test_an_interrupt_ends_it_in_one_line(shards: Path) -> None:
    change(shards, 1, url="/dev/zero")  # never ends
    process = subprocess.Popen(
        [sys.executable, "-m", "reranker", "data", "verify", str(shards)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        while not is_open(process.pid, "/dev/zero"):
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.endswith("reranker: interrupted\n")
    assert "Traceback" not in err
