"""One command by many tasks: their merge is what one process writes, and a task that is lost is named."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.config.mining import Device, MineConfig, Retriever
from reranker.config.reading import ReaderConfig
from reranker.config.shards import PackConfig
from reranker.config.translation import TranslateConfig
from reranker.errors import UserError
from reranker.groups import Group, write_groups
from reranker.prepare.mine import dense
from reranker.prepare.mine.cache import QUERIES
from reranker.prepare.mine.command import mine_command
from reranker.prepare.pack import pack_command
from reranker.prepare.part import Part, parse_part
from reranker.prepare.translate.command import translate_command
from tests.amazon import translating
from tests.unit.test_mine import encoder

COUNT = 2 * QUERIES + 9
"""Groups: three blocks of mining."""


def english(number: int) -> Group:
    return Group(f"about {number}", (f"says {number}",), (f"says {number + 1}", f"says {number + 7}"), id=str(number))


def sources(directory: Path) -> None:
    """Groups in English and Korean, a corpus, and the memory between the languages."""
    write_groups(directory / "english.jsonl", map(english, range(40)))
    texts = sorted({text for n in range(40) for text in (english(n).query, *english(n).pos, *english(n).neg)})
    memory = [{"en": text, "ko": text.replace("about", "질문은").replace("says", "대답은")} for text in texts]
    corpus = [{"id": n, "text": f"대답은 {n} 번 {'과일' * (n % 3)}", "doc": f"{n // 10}"} for n in range(COUNT + 50)]
    wanted = [{"query": f"질문은 {n} 번", "pos": [corpus[n]["text"]]} for n in range(COUNT)]
    for name, values in (("memory", memory), ("corpus", corpus), ("wanted", wanted)):
        content = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        (directory / f"{name}.jsonl").write_text(content, encoding="utf-8")
    korean = [Group(f"질문은 {n}", (f"대답은 {n}",), (f"대답은 {n + 1}",)) for n in range(57)]
    write_groups(directory / "korean.jsonl", korean)


def translate(directory: Path, output: Path, part: str | None, **settings: Any) -> int:
    memory = {"class": "reranker.prepare.translate.memory:Memory", "files": [str(directory / "memory.jsonl")]}
    config = TranslateConfig(groups=str(directory / "english.jsonl"), output=str(output), backend=memory, part=part)
    config.gates.language = None
    for key, value in settings.items():
        setattr(config, key, value)
    return translate_command(config)


def mine(directory: Path, output: Path, part: str | None, **settings: Any) -> int:
    config = MineConfig(groups=str(directory / "wanted.jsonl"), corpus=str(directory / "corpus.jsonl"),
                        output=str(output), negatives=3, margin=None, part=part)  # fmt: skip
    config.bm25.analyzer = "words"
    for key, value in settings.items():
        setattr(config, key, value)
    return mine_command(config)


def pack(directory: Path, output: Path, part: str | None, **settings: Any) -> int:
    config = PackConfig(groups=str(directory / "korean.jsonl"), output=str(output), groups_per_shard=10, part=part)
    for key, value in settings.items():
        setattr(config, key, value)
    return pack_command(config)


Command = Callable[..., int]
COMMANDS = [translate, mine, pack]
OTHERS: dict[Command, dict[str, Any]] = {
    translate: {"reading": ReaderConfig(most_negatives=9)},
    mine: {"negatives": 2},
    pack: {"groups_per_shard": 5},
}
_NOT_COMPARED = ("ledger.sqlite", "report.json", "report.md", "report.png", "cache")


def written(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.iterdir()) if path.name not in _NOT_COMPARED}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("parts", [1, 2, 5, 9])
def test_any_number_of_parts_in_any_turn_writes_the_same_bytes_as_one_process(
    command: Command, parts: int, tmp_path: Path
) -> None:
    sources(tmp_path)
    assert command(tmp_path, tmp_path / "whole", None) == 0
    for number in reversed(range(parts)):
        assert command(tmp_path, tmp_path / "out", f"{number}/{parts}") == 0
        assert not any((tmp_path / "out" / name).exists() for name in ("groups.jsonl", "manifest.json"))
    assert command(tmp_path, tmp_path / "out", f"merge/{parts}") == 0
    assert written(tmp_path / "out") == written(tmp_path / "whole")
    assert command(tmp_path, tmp_path / "out", f"merge/{parts}") == 0, "it was done, and is no mistake"


def test_a_merged_mining_reports_what_a_whole_one_does(tmp_path: Path) -> None:
    sources(tmp_path)
    mine(tmp_path, tmp_path / "whole", None)
    for part in ("0/2", "1/2", "merge/2"):
        mine(tmp_path, tmp_path / "out", part)
    whole, merged = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "out"))
    assert whole.pop("settings") | {"output": ""} == merged.pop("settings") | {"output": ""}
    assert merged == whole
    assert filecmp.cmp(tmp_path / "out/report.md", tmp_path / "whole/report.md", shallow=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_parts_that_are_lost_are_named_and_run_again_by_themselves(command: Command, tmp_path: Path) -> None:
    sources(tmp_path)
    command(tmp_path, tmp_path / "whole", None)
    for number in (0, 2):
        command(tmp_path, tmp_path / "out", f"{number}/4")
    with pytest.raises(UserError) as caught:
        command(tmp_path, tmp_path / "out", "merge/4")
    assert str(caught.value) == (
        f"{tmp_path}/out.parts: found no record of part=1/4, part=3/4, expected one of each of 4 tasks; "
        "run what is missing again by itself"
    )
    for part in ("1/4", "3/4", "merge/4"):
        assert command(tmp_path, tmp_path / "out", part) == 0
    assert written(tmp_path / "out") == written(tmp_path / "whole")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_part_with_other_settings_or_inputs_is_not_merged(command: Command, tmp_path: Path) -> None:
    sources(tmp_path)
    command(tmp_path, tmp_path / "out", "0/2")
    command(tmp_path, tmp_path / "out", "1/2", **OTHERS[command])
    with pytest.raises(UserError, match=r"out\.parts: found part=1/2 from other inputs or settings, expected those of"):
        command(tmp_path, tmp_path / "out", "merge/2")
    command(tmp_path, tmp_path / "out", "1/2")
    name = {translate: "english", mine: "wanted", pack: "korean"}[command]
    path = tmp_path / f"{name}.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0].replace(b"0", b"00"))
    with pytest.raises(UserError, match=r"out\.parts: found part=0/2, part=1/2 from other inputs"):
        command(tmp_path, tmp_path / "out", "merge/2")


def assert_not_merged(command: Command, directory: Path, path: Path, found: str) -> None:
    """The merge names a file of part 1 of 2, as it is and once it is gone."""
    for what in (found, "no such file"):
        with pytest.raises(UserError, match=f"^{path}: found {what}, .*; run part=1/2 again$"):
            command(directory, directory / "out", "merge/2")
        path.unlink(missing_ok=True)


def test_a_shard_of_a_part_that_is_damaged_or_gone_is_named(tmp_path: Path) -> None:
    sources(tmp_path)
    for number in range(2):
        pack(tmp_path, tmp_path / "out", f"{number}/2")
    shard = tmp_path / "out.parts/00001-of-00002/shard-00003.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"x")
    assert_not_merged(pack, tmp_path, shard, "other bytes than its task wrote")
    assert not (tmp_path / "out").exists()


def test_what_another_run_of_a_part_of_mining_has_found_is_not_merged(tmp_path: Path) -> None:
    sources(tmp_path)
    for number in range(2):
        mine(tmp_path, tmp_path / "out", f"{number}/2")
    path, record = (tmp_path / f"out.parts/00001-of-00002{suffix}" for suffix in (".jsonl", ".json"))
    before = record.read_bytes()
    mine(tmp_path, tmp_path / "out", "1/2", negatives=2)
    record.write_bytes(before)  # as if it had been killed between the two
    assert_not_merged(mine, tmp_path, path, "other bytes than its task recorded")
    assert not (tmp_path / "out/groups.jsonl").exists()


@pytest.fixture
def amazon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "eu-west-1")):
        monkeypatch.setenv(f"AWS_{name}", value)


def memory_of(directory: Path) -> dict[str, str]:
    lines = (directory / "memory.jsonl").read_text("utf-8").splitlines()
    return {row["en"]: row["ko"] for row in map(json.loads, lines)}


@pytest.mark.usefixtures("amazon")
def test_no_text_is_paid_twice_by_any_number_of_parts_one_after_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources(tmp_path)
    with translating(memory_of(tmp_path)) as server:
        backend = {"class": "reranker.prepare.translate.amazon:Amazon", "endpoint_url": server.url}

        def run(part: str | None, **settings: Any) -> None:
            assert translate(tmp_path, tmp_path / "out", part, backend=backend, **settings) == 0

        for part in ("0/2", "1/2", "merge/2", "0/3", "1/3", "2/3", "merge/3", None, "0/1", "merge/1"):
            run(part)
        assert set(server.served.values()) == {1}
        shutil.rmtree(tmp_path / "out.parts")
        shutil.rmtree(tmp_path / "out")
        server.served.clear()
        for part in (None, "0/2", "1/2", "merge/2"):  # the parts have nothing left to do
            run(part)
        assert set(server.served.values()) == {1}
        capsys.readouterr()
        for part in ("0/2", "merge/2", None):
            run(part, dry_run=True)
            assert ", 0 new of 0 characters: $0.00" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_directory_one_is_in_may_be_the_output(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert command(tmp_path, Path(), "0/1") == 0
    assert (tmp_path / "here.parts/00000-of-00001.json").is_file()


def test_a_ledger_of_its_own_and_a_source_that_is_none_are_told_of_a_part(tmp_path: Path) -> None:
    sources(tmp_path)
    with pytest.raises(
        UserError, match=r"^ledger: found l\.sqlite, expected none beside part: each task has one in OUTP"
    ):
        translate(tmp_path, tmp_path / "out", "0/2", ledger="l.sqlite")
    (tmp_path / "english.jsonl").unlink()
    with pytest.raises(UserError, match=r"^groups: found .*english\.jsonl, no such file"):
        translate(tmp_path, tmp_path / "out", "0/2")


@pytest.mark.usefixtures("amazon")
def test_a_merge_sends_nothing_and_tells_what_failed_in_a_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources(tmp_path)
    pairs = memory_of(tmp_path)
    known = {text: translation for text, translation in pairs.items() if text != "about 3"}
    with translating(known) as server:
        backend = {"class": "reranker.prepare.translate.amazon:Amazon", "endpoint_url": server.url}
        codes = [translate(tmp_path, tmp_path / "out", f"{number}/3", backend=backend) for number in range(3)]
        assert sorted(codes) == [0, 0, 1]
        assert set(server.served) == set(known)
        sent = server.requests
        capsys.readouterr()
        assert translate(tmp_path, tmp_path / "out", "merge/3", backend=backend) == 1
        assert server.requests == sent
    told = f"reranker: {tmp_path}/out: 1 texts failed: their parts send them again, retry=none goes on without them\n"
    assert capsys.readouterr().err.endswith(told)
    assert json.loads((tmp_path / "out/report.json").read_text())["groups"]["out"] == 39


def test_each_part_embeds_its_own_passages_first_and_then_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "TEXTS", 100)
    sources(tmp_path)
    settings = {"retriever": Retriever.dense}
    model = encoder(tmp_path / "encoder")
    embedded: list[int] = []
    embed = dense.embed

    def noted(model: Any, texts: list[str], batch_tokens: int) -> Any:
        embedded.append(int(texts[0].split()[1]) // 100 if texts[0].startswith("대답은") else -1)
        return embed(model, texts, batch_tokens)

    monkeypatch.setattr(dense, "embed", noted)

    def run(output: str, part: str | None) -> None:
        config = MineConfig(groups=str(tmp_path / "wanted.jsonl"), corpus=str(tmp_path / "corpus.jsonl"),
                            output=str(tmp_path / output), negatives=3, margin=None, part=part, **settings)  # fmt: skip
        config.dense.model, config.dense.device = model, Device.cpu
        assert mine_command(config) == 0

    run("whole", None)
    embedded.clear()
    run("out", "1/2")
    # Six blocks of passages, two of the three blocks of queries; the other task's last block comes first.
    assert embedded == [3, 4, 5, -1, -1, 2, 1, 0]
    embedded.clear()
    run("out", "0/2")
    assert embedded == [-1]
    run("out", "merge/2")
    assert written(tmp_path / "out") == written(tmp_path / "whole")


@given(st.integers(0, 500), st.integers(1, 40))
def test_the_ranges_of_all_parts_are_everything_once(total: int, parts: int) -> None:
    ranges = [Part(number, parts).of_range(total) for number in range(parts)]
    assert [number for own in ranges for number in own] == list(range(total))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("value", ["", "3", "1-8", "8/8", "0/0", "merge", "merge/0", "-1/8", "1/8 ", "a/8"])
def test_a_part_that_cannot_be_is_told(value: str) -> None:
    with pytest.raises(UserError, match=r"^part: found .*; (say part=0/8, for example|parts are counted from 0)$"):
        parse_part(value)
    assert (str(parse_part("3/8")), str(parse_part("merge/8"))) == ("3/8", "merge/8")
