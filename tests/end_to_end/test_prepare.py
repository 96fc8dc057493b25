"""`reranker prepare` runs command after command, checks all of them first, and does nothing twice."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reranker import cli
from reranker.groups import Group, read_groups, write_groups

ENGLISH = {
    "how do files get permissions": "파일 권한은 어떻게 정하나요",
    "the chmod command changes the permissions of a file": "chmod 명령은 파일의 권한을 바꾼다",
    "the calendar shows the days of the month": "달력은 그 달의 날을 보여 준다",
    "how are windows closed": "창은 어떻게 닫나요",
    "a window is closed with the button at its corner": "창은 모서리에 있는 단추로 닫는다",
    "printers are added in the settings": "프린터는 설정에서 추가한다",
    "where are printers added": "프린터는 어디에서 추가하나요",
    "the menu of printers has a button to add one": "프린터 메뉴에는 추가하는 단추가 있다",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    texts = list(ENGLISH)
    groups = [
        Group(texts[0], (texts[1],), (texts[2],), id="files"),
        Group(texts[3], (texts[4],), (texts[5],), id="windows"),
        Group(texts[6], (texts[7],), (texts[2],), id="printers"),
    ]
    write_groups(tmp_path / "en.jsonl", groups)
    memory = [json.dumps({"en": english, "ko": korean}, ensure_ascii=False) for english, korean in ENGLISH.items()]
    (tmp_path / "memory.jsonl").write_text("\n".join(memory) + "\n", "utf-8")
    return tmp_path


@pytest.fixture
def prepare(source: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        stages = [argument for argument in arguments if argument.startswith("stages=")] or [
            "translate.backend=memory", f"translate.backend.files={source}/memory.jsonl",
            "mine.bm25.analyzer=words", "mine.margin=null", "mine.negatives=2",
        ]  # fmt: skip
        others = [argument for argument in arguments if argument not in stages]
        return cli.main(["prepare", f"source={source}/en.jsonl", f"output={source}/out", *stages, *others])

    return run


def lines(printed: str, word: str) -> list[str]:
    """The names of the stages of which the plan says `word`."""
    return [line.split()[0] for line in printed.splitlines() if line.startswith("  ") and word in line]


def test_english_triplets_become_korean_shards_with_mined_negatives(prepare: Callable[..., int], source: Path) -> None:
    assert prepare() == 0
    groups = list(read_groups(source / "out" / "4-check" / "groups.jsonl"))
    assert [group.id for group in groups] == ["files", "windows", "printers"]
    korean = set(ENGLISH.values())
    for group, english in zip(groups, list(ENGLISH)[::3], strict=False):
        assert group.query in korean
        assert {*group.pos, *group.neg} <= korean, english
    # The triplet's own negative, and one more that shares a word with the query.
    assert groups[2].neg == ("달력은 그 달의 날을 보여 준다", "프린터는 설정에서 추가한다")
    manifest = json.loads((source / "out" / "shards" / "manifest.json").read_text("utf-8"))
    assert sum(shard["groups"] for shard in manifest["shards"]) == 3


def test_a_stage_that_is_done_is_not_run_again_until_something_before_it_changes(
    prepare: Callable[..., int], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare() == 0
    assert lines(capsys.readouterr().out, "done before") == []
    assert prepare() == 0
    every = ["1-translate", "2-check", "3-mine", "4-check", "5-pack"]
    assert lines(capsys.readouterr().out, "done before") == every
    assert prepare("mine.negatives=1", "dry_run=true") == 0
    printed = capsys.readouterr().out
    assert (lines(printed, "done before"), lines(printed, "to do")) == (every[:2], every[2:])
    (source / "out" / "2-check" / "groups.jsonl").write_text("{}\n", "utf-8")
    assert prepare("dry_run=true") == 0
    assert lines(capsys.readouterr().out, "to do") == every[1:]
    write_groups(source / "en.jsonl", list(read_groups(source / "en.jsonl"))[:2])
    assert prepare() == 0
    assert lines(capsys.readouterr().out, "to do") == every
    manifest = json.loads((source / "out" / "shards" / "manifest.json").read_text("utf-8"))
    assert sum(shard["groups"] for shard in manifest["shards"]) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pack.workers=many"], "workers: found 'many', expected int"),
        (["mine.negativs=3"], "negativs: found an unknown key"),
        (["mine.output=there"], "mine.output: found output=there, expected a key that prepare does not set; leave it out"),
        (["stages=[translate,chek]"], "stages: found chek, expected some of translate, check, mine, pack; did you mean check?"),
        (["stages=[pack,check]"], "stages: found check behind pack, expected pack as the last stage; move it"),
        (["stages=[check]", "mine.negatives=3"], "mine.negatives=3: found mine, which is no stage, expected one of check; "
                                                 "leave it out"),
        (["translate.part=0/2"], "translate.part: found part=0/2, expected a key that prepare does not set; leave it out"),
        (["mine.retriever=dense"], "dense.model: found "),
        (["source=nowhere"], "source: found nowhere, no such file, expected groups or triplets; check the path"),
    ],
)  # fmt: skip
def test_every_argument_is_checked_before_the_first_stage_begins(
    prepare: Callable[..., int], source: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert prepare(*arguments) == 2
    assert capsys.readouterr().err.startswith(f"reranker: error: {told}")
    assert not (source / "out").exists()


def test_what_stands_where_a_stage_writes_is_not_replaced(
    prepare: Callable[..., int], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = list(read_groups(source / "en.jsonl"))
    write_groups(source / "others.jsonl", groups[:1])
    assert cli.main(["pack", f"groups={source}/others.jsonl", f"output={source}/out/shards"]) == 0
    before = (source / "out" / "shards" / "manifest.json").read_bytes()
    for _ in range(2):  # however often it is tried
        assert prepare() == 2
        assert "with shards of other groups" in capsys.readouterr().err
        assert (source / "out" / "shards" / "manifest.json").read_bytes() == before


def test_what_is_gone_or_changed_at_equal_size_is_made_again(
    prepare: Callable[..., int], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = source / "corpus"
    corpus.mkdir()
    evaluation = corpus / "dev.jsonl"
    write_groups(evaluation, [Group("하나", ("둘",), ("셋",))])
    arguments = (f"check.evaluation={evaluation}", f"translate.ledger={source}/ledger.sqlite")
    assert prepare(*arguments) == 0
    (source / "out" / "shards" / "shard-00000.tar").unlink()
    capsys.readouterr()
    assert prepare(*arguments) == 0
    assert lines(capsys.readouterr().out, "to do") == ["5-pack"]
    assert (source / "out" / "shards" / "shard-00000.tar").is_file()
    write_groups(evaluation, [Group("넷짜", ("둘",), ("셋",))])
    assert prepare(*arguments) == 0
    assert lines(capsys.readouterr().out, "to do")[0] == "2-check"


def test_texts_that_failed_are_sent_again_by_the_same_command(
    prepare: Callable[..., int], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = source / "memory.jsonl"
    whole = memory.read_text("utf-8")
    memory.write_text("\n".join(whole.splitlines()[:-1]) + "\n", "utf-8")
    assert prepare() == 1
    assert not (source / "out" / "2-check").exists()
    memory.write_text(whole, "utf-8")
    assert prepare() == 0
    assert len(list(read_groups(source / "out" / "4-check" / "groups.jsonl"))) == 3


def test_groups_without_negatives_are_mined(prepare: Callable[..., int], source: Path) -> None:
    groups = [json.loads(line) for line in (source / "en.jsonl").read_text("utf-8").splitlines()]
    korean = [{"query": ENGLISH[group["query"]], "pos": [ENGLISH[text] for text in group["pos"]], "neg": []}
              for group in groups]  # fmt: skip
    passages = [{"id": str(place), "text": text} for place, text in enumerate(ENGLISH.values())]
    for name, rows in (("bare.jsonl", korean), ("corpus.jsonl", passages)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (source / name).write_text(lines, "utf-8")
    arguments = [f"source={source}/bare.jsonl", f"output={source}/out", "stages=[check,mine,check,pack]",
                 f"mine.corpus={source}/corpus.jsonl", "mine.bm25.analyzer=words", "mine.margin=null"]  # fmt: skip
    assert cli.main(["prepare", *arguments]) == 0
    mined = list(read_groups(source / "out" / "3-check" / "groups.jsonl"))
    assert ["프린터는 설정에서 추가한다" in group.neg for group in mined if group.query.startswith("프린터")] == [True]


def test_judgements_go_the_whole_way_and_again_when_texts_beside_them_change(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, marco = list(ENGLISH), source / "marco"
    marco.mkdir()
    (marco / "queries.train.tsv").write_text(f"q0\t{texts[0]}\nq3\t{texts[3]}\n")
    (marco / "qrels.train.tsv").write_text("q0 0 p1 1\nq3 0 p4 1\n")
    collection = "".join(f"p{number}\t{text}\n" for number, text in enumerate(texts))
    (marco / "collection.tsv").write_text(collection)
    arguments = [
        "prepare", f"source={marco}/qrels.train.tsv", "translate.reading.form=trec", f"output={source}/out",
        "translate.backend=memory", f"translate.backend.files={source}/memory.jsonl", "mine.bm25.analyzer=words", "mine.margin=null",
        "mine.negatives=1", "mine.random_share=1",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    groups = list(read_groups(source / "out" / "4-check" / "groups.jsonl"))
    assert [(group.id, group.query, group.pos) for group in groups] == [
        ("q0", ENGLISH[texts[0]], (ENGLISH[texts[1]],)), ("q3", ENGLISH[texts[3]], (ENGLISH[texts[4]],)),
    ]  # fmt: skip
    assert all(len(group.neg) == 1 for group in groups)
    capsys.readouterr()
    assert cli.main(arguments) == 0
    assert len(lines(capsys.readouterr().out, "done before")) == 5
    (marco / "collection.tsv").write_text(collection.replace("p4\t" + texts[4], "p4\t" + texts[5]))
    assert cli.main(arguments) == 0
    assert not lines(capsys.readouterr().out, "done before")
    changed = list(read_groups(source / "out" / "4-check" / "groups.jsonl"))
    assert changed[1].pos == (ENGLISH[texts[5]],)


def test_a_dry_run_tells_the_cost_and_writes_nothing(
    prepare: Callable[..., int], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare("dry_run=true") == 0
    assert "8 distinct texts" in capsys.readouterr().out
    assert not (source / "out").exists()


def test_a_source_that_is_cut_short_stops_what_comes_after(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = gzip.compress((source / "en.jsonl").read_bytes())
    arguments = ["prepare", f"source={source}/en.jsonl.gz", f"output={source}/out", "stages=[check,pack]"]
    (source / "en.jsonl.gz").write_bytes(whole + whole[:40])
    for _ in range(2):
        assert cli.main(arguments) == 1
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reranker: ")]
        assert len(told) == 1
        assert told[0].startswith(f"reranker: {source}/en.jsonl.gz: the file is cut short")
        assert not (source / "out" / "shards").exists()
    (source / "en.jsonl.gz").write_bytes(whole)
    assert cli.main(arguments) == 0


@pytest.mark.parametrize("content", ["[]", '{"schema": 1, "stages": []}', '{"schema": 1, "stages": {"1-check": 3}}'])
def test_a_record_of_stages_that_is_none_is_told(
    content: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "out").mkdir()
    (source / "out" / "prepare.json").write_text(content)
    assert cli.main(["prepare", f"source={source}/en.jsonl", f"output={source}/out", "stages=[check]"]) == 2
    assert capsys.readouterr().err.startswith(f"reranker: error: {source}/out/prepare.json: found no record of stages")
