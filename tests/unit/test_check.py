"""`reranker check` finds what was put in, and what it mends is free of errors with nothing lost."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from reranker.config.checking import CheckConfig
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.groups import Group, write_groups
from reranker.prepare.check import command, inspect
from reranker.prepare.check.command import check_command, check_settings
from reranker.prepare.check.near import WIDTH, Near
from reranker.prepare.check.texts import is_error, script

LONG = "한국어 문서를 검색하고 다시 정렬하는 모델은 질문과 문서를 함께 읽는다. "


def check(directory: Path, groups: list[Group] | bytes, **options: Any) -> tuple[int, dict[str, Any]]:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "groups.jsonl"
    if isinstance(groups, bytes):
        path.write_bytes(groups)
    else:
        write_groups(path, groups)
    config = CheckConfig(groups=str(path), output=str(directory / "out"))
    for name, value in options.items():
        setattr(config, name, value)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = check_command(config)
    return code, json.loads((directory / "out" / "report.json").read_text("utf-8"))


def counts(report: dict[str, Any]) -> dict[str, int]:
    return {found["kind"]: found["count"] for found in report["findings"]}


def places(report: dict[str, Any], kind: str) -> list[str]:
    (found,) = (found for found in report["findings"] if found["kind"] == kind)
    return [Path(example["where"]).name for example in found["examples"]]


CLEAN = [Group(f"{n}번째 질문입니다", (f"{n}번째 정답",), (f"{n}번째 오답", f"{n}번째 다른 오답")) for n in range(20)]


def test_clean_groups_have_no_findings(tmp_path: Path) -> None:
    code, report = check(tmp_path, CLEAN)
    assert (code, report["findings"], report["groups"], report["schema"]) == (0, [], 20, 1)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("error_text", [Group("q", ("err",), ("n", "m"))]),
        ("no_negatives", [Group("q", ("p",), ())]),
        ("duplicate_group", [Group("q", ("p",), ("n", "m")), Group("q ", ("p",), ("m", "n"))]),
        ("positive_among_negatives", [Group("q", ("a  b",), ("a b", "m"))]),
        ("positive_elsewhere_negative", [Group("q", ("pp",), ("nn", "m")), Group("q", ("nn",), ("o", "o2"))]),
        ("duplicate_passage", [Group("q", ("pp",), ("nn", "nn"))]),
        ("duplicate_query", [Group("q", ("pp",), ("nn", "mm")), Group("q", ("p2",), ("n2", "m2"))]),
        ("query_equals_positive", [Group("qq", ("qq",), ("nn", "mm"))]),
        ("too_few_negatives", [Group("q", ("pp",), ("nn",))]),
        ("score_order", [Group("q", ("pp",), ("nn", "mm"), (1.0,), (0.0, 2.0))]),
        ("other_script", [Group("질문", ("an answer",), ("nn", "mm"))]),
        ("html_leftovers", [Group("q", ("a<br/>b",), ("nn", "mm"))]),
        ("odd_length", [Group("q", ("p",), ("nn", "mm"))]),
        ("mixed_prompts", [Group("q", ("pp",), ("nn", "mm"), prompt="search")]),
        ("mixed_scores", [Group("q", ("pp",), ("nn", "mm"), (1.0,), (0.0, 0.0))]),
        ("leak_exact", [Group("q", ("held  out",), ("nn", "mm"))]),
        ("leak_near", [Group("q", (LONG * 3 + "끝",), ("nn", "mm"))]),
        ("leak_negative", [Group("q", ("pp",), ("held out", "mm"))]),
        ("leak_negative", [Group("q", ("pp",), (LONG * 3 + "끝", "mm"))]),
    ],
)
def test_each_kind_is_found_where_it_is(kind: str, extra: list[Group], tmp_path: Path) -> None:
    write_groups(tmp_path / "dev.jsonl", [Group("개발 질문", ("held out", LONG * 3), ("x", "y"))])
    code, report = check(tmp_path, [*CLEAN, *extra], evaluation=str(tmp_path / "dev.jsonl"))
    assert counts(report)[kind] == 1
    if not kind.startswith("mixed"):
        assert places(report, kind)[0] in ("groups.jsonl:21", "groups.jsonl:22")
    severity = next(found["severity"] for found in report["findings"] if found["kind"] == kind)
    assert code == (severity == "error")
    assert check(tmp_path, [*CLEAN, *extra], evaluation=str(tmp_path / "dev.jsonl"), strict=True)[0] == 1


def test_pos_as_a_string_is_told_with_its_line_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    lines = b'{"query": "q", "pos": "p", "neg": ["n"]}\n' + b"".join(g.to_json().encode() + b"\n" for g in CLEAN)
    code, report = check(tmp_path, lines)
    assert (code, report["groups"], report["unreadable"]) == (1, 20, {"pos_string": 1})
    assert places(report, "unreadable") == ["groups.jsonl:1"]


def test_lengths_are_counted_in_tokens_against_max_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("[SEP]", 1)]
    words.post_processor = processors.TemplateProcessing("$A [SEP]", "$A [SEP] $B [SEP]", special)
    tokenizer = PairTokenizer(SimpleNamespace(backend_tokenizer=words, pad_token_id=0), Contract(64))
    for module in (command, inspect):
        monkeypatch.setattr(module, "load", lambda name, max_length: tokenizer)
    groups = [*CLEAN, Group("질문", ("가 " * 50,), ("나 " * 100, "다"))]
    code, report = check(tmp_path, groups, tokenizer="words", max_length=64)
    assert code == 0
    assert counts(report)["too_long"] == 1
    assert report["lengths"]["unit"].startswith("tokens")
    assert report["lengths"]["pair"]["p100"] == 103


texts = st.sampled_from(["가", "나", "다 라", "다  라", "err", "null", "마바사", LONG, LONG + "끝", LONG.strip()])
groups = st.builds(
    lambda q, p, n, s: Group(q, tuple(p), tuple(n), *((tuple(range(len(p))), tuple(range(len(n)))) if s else ())),
    texts, st.lists(texts, min_size=1, max_size=3), st.lists(texts, max_size=5), st.booleans(),
)  # fmt: skip


@settings(max_examples=15)
@given(
    st.lists(groups, min_size=1, max_size=12),
    st.lists(st.sampled_from([b"{", b"[1]", b"\xff", b'{"query":"\\ud800"}'])),
)
def test_a_mended_copy_has_no_errors_and_nothing_is_lost(made: list[Group], junk: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_groups(directory / "dev.jsonl", [Group("마바사", (LONG,), ("가",))])
        lines = b"".join(line + b"\n" for line in (*(group.to_json().encode() for group in made), *junk))
        dev = str(directory / "dev.jsonl")
        _, report = check(directory, lines, fix=True, evaluation=dev)
        assert (directory / "groups.jsonl").read_bytes() == lines
        out = directory / "out"
        written, removed, unreadable = (
            [json.loads(line) for line in (out / f"{name}.jsonl").read_bytes().splitlines()]
            for name in ("groups", "removed", "unreadable")
        )
        assert len(made) == len(written) + sum("group" in line for line in removed)
        assert len(unreadable) == len(junk) == report["fixed"]["unreadable"]
        # Every text that came is in one of the two files.
        before = sorted(text for group in made for text in (*group.pos, *group.neg))
        whole = [*written, *(line["group"] for line in removed if "group" in line)]
        after = [text for group in whole for text in (*group["pos"], *group["neg"])]
        assert sorted([*after, *(line["passage"] for line in removed if "passage" in line)]) == before
        if not written:
            return
        again, clean = check(directory / "again", (out / "groups.jsonl").read_bytes(), evaluation=dev)
        assert (again, clean["errors"], clean["unreadable"]) == (0, 0, {})


def test_scores_go_with_their_passages(tmp_path: Path) -> None:
    group = Group("q", ("pp", "err"), ("nn", "pp", "mm"), (9.0, 8.0), (1.0, 7.0, 2.0))
    check(tmp_path, [group], fix=True)
    line = json.loads((tmp_path / "out" / "groups.jsonl").read_text("utf-8"))
    assert (line["pos_scores"], line["neg_scores"]) == ([9.0], [1.0, 2.0])


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    many = [*CLEAN, *CLEAN[:3], Group("q", ("err",), ("n",))] * 100
    reports = [check(tmp_path, many, workers=workers)[1] for workers in (1, 2)]
    for report in reports:
        del report["settings"]
    assert reports[0] == reports[1]


# Parts of one text: alike to every degree.
pieces = st.builds(
    lambda start, size, tail: (LONG * 2)[start : start + size] + tail,
    st.integers(0, 40), st.integers(0, 60), st.text("가나 ", max_size=12),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(pieces, max_size=8), st.lists(pieces, max_size=8))
def test_the_near_join_finds_what_comparing_all_pairs_finds(known: list[str], asked: list[str]) -> None:
    def shingles(text: str) -> set[str]:
        plain = " ".join(text.split())
        return {plain[place : place + WIDTH] for place in range(len(plain) - WIDTH + 1)}

    found = Near(known, 0.6).find(asked)
    for text, near in zip(asked, found, strict=True):
        of = shingles(text)
        likeness = [len(of & shingles(other)) / max(1, len(of | shingles(other))) for other in known]
        best = max(likeness, default=0.0)
        assert (near is not None) == (best >= 0.6)
        if near:
            assert near[1] == pytest.approx(best)
            assert likeness[near[0]] == pytest.approx(best)


def test_case_and_width_do_not_hide_a_near_text() -> None:
    assert Near(["The Quick Brown Fox"], 0.9).find(["the quick  ｂｒｏｗｎ fox"]) == [(0, 1.0)]
    assert Near([], 0.9).find(["text that is long"]) == [None]


@pytest.mark.parametrize("text", ["err", "ERROR", " NaN ", "#NAME?", "502 Bad Gateway", "HTTP 429 Too Many Requests",
                                  "MYMEMORY WARNING: YOU USED ALL", "As an AI language model, I cannot",
                                  "Translation error: timeout", "translation failed", "Translation failed (code 5)",
                                  "Rate limit reached for model x in organization y", "Quota exceeded.",
                                  "You exceeded your current quota, please check your plan"])  # fmt: skip
def test_messages_of_tools_are_error_texts(text: str) -> None:
    assert is_error(text, ())


@pytest.mark.parametrize("text", ["error handling in Go", "404 pages", "오류", "none of the above", "null hypothesis",
                                  "Translation errors in medical documents cost lives.", "translation error analysis",
                                  "Rate limit exceeded means that a client asked too often."])  # fmt: skip
def test_texts_about_errors_are_none(text: str) -> None:
    assert not is_error(text, ())
    assert is_error(text, (".*",))


def test_scripts_are_told() -> None:
    assert [script(text) for text in ("한국어 a", "english", "漢字", "かなカナ", "12 %")] == [
        "hangul", "latin", "cjk", "japanese", "none",
    ]  # fmt: skip


def test_evaluations_are_read_in_the_forms_they_come_in(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"qid": "1", "query": "held query", "pos": "a"}\n', encoding="utf-8")
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "held passage"}\n', encoding="utf-8")
    (tmp_path / "queries.tsv").write_text("1\theld too\n", encoding="utf-8")
    paths = [str(tmp_path / name) for name in ("queries.jsonl", "corpus.jsonl", "queries.tsv")]
    leaks = [Group("held query", ("pp",), ("nn", "mm")), Group("q2", ("held passage",), ("n2", "m2")),
             Group("held too", ("p3",), ("n3", "m3"))]  # fmt: skip
    assert counts(check(tmp_path, leaks, evaluation=paths)[1]) == {"leak_exact": 3}


def test_the_answers_and_titles_of_an_evaluation_are_guarded_as_well(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"query": "held q", "answer": "held answer"}\n', encoding="utf-8")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "title": "Held", "text": "text"}\n', encoding="utf-8")
    leaks = [Group("q1", ("held answer",), ("n1", "m1")), Group("q2", ("Held text",), ("n2", "m2")),
             Group("q3", ("text",), ("n3", "m3"))]  # fmt: skip
    paths = [str(tmp_path / name) for name in ("answers.jsonl", "corpus.jsonl")]
    assert counts(check(tmp_path, leaks, evaluation=paths)[1])["leak_exact"] == 3


def test_of_a_directory_every_split_but_train_is_guarded(tmp_path: Path) -> None:
    beir, marco, data = (tmp_path / name for name in ("beir", "marco", "data"))
    for directory in (beir / "qrels", marco, data):
        directory.mkdir(parents=True)
    splits = ("train", "dev", "test")
    for file, key in (("corpus", "passage"), ("queries", "query")):
        lines = [json.dumps({"_id": split, "text": f"{key} of {split}"}) + "\n" for split in splits]
        (beir / f"{file}.jsonl").write_text("".join(lines))
    (marco / "collection.tsv").write_text("".join(f"{split}\tpassage of {split}\n" for split in splits))
    for split in splits:
        (beir / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{split}\t{split}\t1\n")
        (marco / f"qrels.{split}.tsv").write_text(f"{split}\t0\t{split}\t1\n")
        (marco / f"queries.{split}.tsv").write_text(f"{split}\tquery of {split}\n")
        row = {"anchor": f"query of {split}", "positive": f"passage of {split}", "negative": "n"}
        parquet.write_table(pyarrow.Table.from_pylist([row]), data / f"{split}-00000-of-00001.parquet")
    (marco / "triples.train.small.tsv").write_text("query of train\tpassage of train\tn\n")
    groups = [Group(f"query of {split}", (f"other {split}",), ("nn", "mm")) for split in splits]
    for directory in (beir, marco, data):
        _, report = check(tmp_path, groups, evaluation=str(directory), near=1.0)
        assert places(report, "leak_exact") == ["groups.jsonl:2", "groups.jsonl:3"], directory


def test_an_evaluation_that_is_not_utf_8_is_refused_and_guards_nothing_less(tmp_path: Path) -> None:
    (tmp_path / "queries.tsv").write_bytes("1\t지킬 질문\n".encode("cp949"))
    with pytest.raises(UserError, match=r"queries.tsv:1: found bytes that are not UTF-8"):
        check(tmp_path, CLEAN, evaluation=str(tmp_path / "queries.tsv"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near": 0.0}, "near: found 0.0"),
        ({"workers": 0}, "workers: found 0"),
        ({"fix": True, "output": None}, "output: found no value"),
        ({"error_texts": ["("]}, "error_texts: found"),
        ({"evaluation": "none.jsonl"}, "evaluation: found none.jsonl, no such file"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check(tmp_path, CLEAN, **options)
    assert str(caught.value).startswith(message)


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"which would overwrite the input groups.jsonl"):
        check(tmp_path, CLEAN, fix=True, output=str(tmp_path))
    lines = (tmp_path / "groups.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["query"] for line in lines] == [group.query for group in CLEAN]


def test_before_mining_groups_without_negatives_stay_and_are_counted(tmp_path: Path) -> None:
    mendable = Group("q2", ("p2", "err"), ("p2",), (2.0, 1.0), (0.0,))
    groups = [Group("q", ("p1",), ()), mendable, Group("q3", ("p3",), ("n3",))]
    code, report = check(tmp_path, groups, fix=True, negatives=False)
    out = [json.loads(line) for line in (tmp_path / "out" / "groups.jsonl").read_text("utf-8").splitlines()]
    assert [(line["query"], line["neg"]) for line in out] == [("q", []), ("q2", []), ("q3", ["n3"])]
    assert (report["without_negatives"], report["fixed"]["without_negatives"]) == (1, 2)
    assert not {"no_negatives", "too_few_negatives"} & set(counts(report))
    assert sum(report["fixed"]["groups_removed"].values()) == 0
    mended = (tmp_path / "out" / "groups.jsonl").read_bytes()
    assert check(tmp_path / "again", mended, negatives=False)[0] == 0
    assert check(tmp_path / "strict", mended)[0] == 1
    assert code == 1  # of the input: the error text and the positive among the negatives


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_a_mistake(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"groups.jsonl: found no records"):
        check(tmp_path, content, fix=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_file_that_cannot_be_read_to_its_end_is_an_error(suffix: str, tmp_path: Path) -> None:
    pack = gzip.compress if suffix == "gz" else zstandard.compress
    path = tmp_path / f"groups.jsonl.{suffix}"
    path.write_bytes(pack(b"".join(group.to_json().encode() + b"\n" for group in CLEAN))[:-30])
    with contextlib.redirect_stdout(io.StringIO()):
        assert check_command(CheckConfig(groups=str(path), output=str(tmp_path / "out"))) == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["unreadable"]["cut_short"] == 1


def test_a_tsv_evaluation_is_guarded_as_queries_and_passages_unless_its_name_tells(tmp_path: Path) -> None:
    (tmp_path / "collection.tsv").write_text("1\theld passage\n", encoding="utf-8")
    (tmp_path / "queries.tsv").write_text("1\theld passage\n", encoding="utf-8")
    leaks = [Group("q1", ("held passage",), ("n1", "m1")), Group("held passage", ("p2",), ("n2", "m2"))]
    for name, found in (("collection.tsv", 2), ("queries.tsv", 1)):
        assert counts(check(tmp_path, leaks, evaluation=str(tmp_path / name))[1])["leak_exact"] == found


def test_settings_are_checked_before_there_are_groups(tmp_path: Path) -> None:
    check_settings(CheckConfig(groups=str(tmp_path / "not-yet.jsonl"), output=str(tmp_path / "out"), fix=True))
    (tmp_path / "file").touch()
    for wrong in ({"near": 2.0}, {"evaluation": "none.jsonl"}, {"fix": True}, {"output": str(tmp_path / "file")}):
        with pytest.raises(UserError):
            check_settings(CheckConfig(**wrong))
