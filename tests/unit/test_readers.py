"""What people have is read as it is, and what cannot be read is named and costs nothing else."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from reranker.config.reading import ReaderConfig
from reranker.errors import UserError
from reranker.groups import Group
from reranker.prepare.readers import Unreadable, read, read_chunks, read_strict

GROUP = Group("질문", ("정답",), ("오답 하나", "오답 둘"))
LINE = GROUP.to_json().encode() + b"\n"


def unreadable(path: Path, **settings: int) -> list[tuple[str, str]]:
    found = [record for record in read(path, config=ReaderConfig(**settings)) if isinstance(record, Unreadable)]
    return [(record.where.rpartition("/")[2], record.kind) for record in found]


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_groups_are_read_plain_and_compressed(tmp_path: Path) -> None:
    triplet = json.dumps(["q", "p", "n"]).encode() + b"\n"
    for name, pack in (("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbf" + LINE + b"\n" + triplet))
        assert list(read(tmp_path / name)) == [GROUP, Group("q", ("p",), ("n",))]


@pytest.mark.parametrize("indent", [None, 2])
def test_one_json_array_is_read_element_by_element(indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = [["q", "p", "n"], json.loads(LINE), {"query": "q", "pos": "p", "neg": ["n"]}] * 3000
    path.write_text(json.dumps(values, indent=indent), encoding="utf-8")
    records = list(read(path))
    assert records[:2] == [Group("q", ("p",), ("n",)), GROUP]
    assert isinstance(records[2], Unreadable)
    assert (records[2].where, records[2].kind) == (f"{path}#3", "pos_string")
    assert len(records) == 9000


def test_a_torn_array_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([["q", "p", "n"]] * 5)[:-10], encoding="utf-8")
    assert sum(isinstance(record, Group) for record in read(path)) == 4
    assert unreadable(path) == [("a.json#5", "cut_short")]


def test_what_stands_behind_an_array_is_told_and_so_is_what_a_wrong_element_hides(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content, count, where in (
        ('[["q", "p", "n"]]\n[["q2", "p2", "n2"]]\n', 1, "a.jsonl#2"),
        ('[["q", "p", "n"]]' + " \n" * 100_000 + '["q2", "p2", "n2"]', 1, "a.jsonl#2"),
        ('[["q", "p", "n"], {"query": none}' + ', ["q", "p", "n"]' * 1000 + "]", 1, "a.jsonl#2"),
        ('[["q", "p", "n"], ["' + "x" * 500_000 + '", "p", "n"], ["q", "p", "n"]]', 1, "a.jsonl#2"),
    ):
        path.write_text(content, encoding="utf-8")
        groups = [
            record for record in read(path, config=ReaderConfig(longest_line=200_000)) if isinstance(record, Group)
        ]
        assert len(groups) == count
        assert unreadable(path, longest_line=200_000) == [(where, "cut_short")]
    path.write_text('[["q", "p", "n"]]' + " \n" * 100_000, encoding="utf-8")
    assert list(read(path)) == [Group("q", ("p",), ("n",))]


def test_records_are_held_in_chunks_of_bounded_size_in_any_form(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([["q", "p", "n" * 500_000]] * 30), encoding="utf-8")
    sizes = [len(chunk.items) for chunk in read_chunks(path, ReaderConfig())]
    assert sum(sizes) == 30
    assert max(sizes) <= 9


def test_every_hostile_line_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [
        LINE,
        b"\x00" * 100 + b"\n",
        '{"query": "질문", "pos": ["정답"], "neg": ["오답"]}'.encode("cp949") + b"\n",
        LINE,
        b'{"query": "\\ud800", "pos": ["p"], "neg": ["n"]}\n',
        b'{"query": "q", "pos": "p", "neg": ["n"]}\n',
        b'{"query": "q", "pos": ["p"], "neg": ["' + b"n" * 400_000 + b'"]}\n',
        json.dumps({"query": "q", "pos": ["p"], "neg": ["n"] * 300}).encode() + b"\n",
        b'{"query": "q", "pos": [" "], "neg": ["n"]}\n',
        b'{"query": "q\\u0000", "pos": ["p"], "neg": ["n"]}\n',
        b"[" * 5000 + b"\n",
        b'{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [' + b"9" * 5000 + b"]}\n",
        LINE,
        b'{"query": "q", "pos": ["p"]',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(lines))
    assert unreadable(path, longest_line=300_000, most_negatives=200) == [
        ("a.jsonl:2", "nul"), ("a.jsonl:3", "encoding"), ("a.jsonl:5", "surrogate"), ("a.jsonl:6", "pos_string"),
        ("a.jsonl:7", "long_line"), ("a.jsonl:8", "many_negatives"), ("a.jsonl:9", "empty_text"), ("a.jsonl:10", "nul"),
        ("a.jsonl:11", "json"), ("a.jsonl:12", "json"), ("a.jsonl:14", "json"),
    ]  # fmt: skip
    records = list(read(path, config=ReaderConfig(longest_line=300_000, most_negatives=200)))
    assert [record for record in records if isinstance(record, Group)] == [GROUP] * 3
    long = records[6]
    assert isinstance(long, Unreadable)
    assert long.offset is not None
    assert long.size is not None
    with open(path, "rb") as stream:  # nothing of it is lost: it lies there
        stream.seek(long.offset)
        assert stream.read(long.size + 1) == lines[6]
    kept = [record.line for record in records if isinstance(record, Unreadable) and record.kind == "encoding"]
    assert kept == [lines[2].rstrip(b"\n")]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_of_a_file_that_is_cut_short_the_tail_is_named(suffix: str, tmp_path: Path) -> None:
    pack = gzip.compress if suffix == "gz" else zstandard.compress
    lines = b"".join(
        Group(f"질문 {n}", (f"정답 {n * 7919}",), ("오답",)).to_json().encode() + b"\n" for n in range(5000)
    )
    path = tmp_path / f"a.jsonl.{suffix}"
    whole = pack(lines)
    path.write_bytes(whole + whole[: len(whole) // 2])
    records = list(read(path))
    groups = [record for record in records if isinstance(record, Group)]
    assert len(groups) >= 5000
    assert [group.query for group in groups[:5000]] == [f"질문 {n}" for n in range(5000)]
    assert unreadable(path)[-1][1] == "cut_short"
    last = records[-1]
    assert isinstance(last, Unreadable)
    assert int(last.where.rpartition(":")[2]) >= len(groups)


def test_a_wrong_checksum_behind_the_last_line_loses_no_group(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    packed = bytearray(gzip.compress(LINE + LINE.rstrip()))
    packed[-6] ^= 1
    path.write_bytes(packed)
    assert [record for record in read(path) if isinstance(record, Group)] == [GROUP, GROUP]
    assert unreadable(path)[-1][1] == "cut_short"


COLUMNS = [
    {"anchor": "q", "positive": "p", "negative": "n"},
    {"query": "q", "positive": "p", "negative_2": "m", "negative_1": "n", "negative_10": "z"},
]


def test_triplets_are_read_from_rows_however_they_are_stored(tmp_path: Path) -> None:
    expected = [[Group("q", ("p",), ("n",))] * 3, [Group("q", ("p",), ("n", "m", "z"))] * 3]
    for row, groups in zip(COLUMNS, expected, strict=True):
        table = pyarrow.Table.from_pylist([row] * 3)
        parquet.write_table(table, tmp_path / "a.parquet")
        for name, opened in (("stream.arrow", pyarrow.ipc.new_stream), ("file.arrow", pyarrow.ipc.new_file)):
            with pyarrow.OSFile(str(tmp_path / name), "wb") as sink, opened(sink, table.schema) as writer:
                writer.write_table(table)
        write(tmp_path / "a.jsonl", *[json.dumps(row)] * 3)
        for name in ("a.parquet", "stream.arrow", "file.arrow", "a.jsonl"):
            assert list(read(tmp_path / name)) == groups, name


def test_a_null_in_a_row_is_named_by_row(tmp_path: Path) -> None:
    parquet.write_table(
        pyarrow.Table.from_pylist([COLUMNS[0], {**COLUMNS[0], "positive": None}]), tmp_path / "a.parquet"
    )
    assert unreadable(tmp_path / "a.parquet") == [("a.parquet#2", "schema")]


def test_a_torn_parquet_file_is_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(COLUMNS[:1]), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    assert unreadable(tmp_path / "a.parquet") == [("a.parquet#1", "cut_short")]


def test_a_text_of_another_encoding_costs_its_row_alone(tmp_path: Path) -> None:
    texts = [b"q0", "질문".encode("cp949"), b"q2"]
    offsets = b"".join(len(b"".join(texts[:count])).to_bytes(4, "little") for count in range(4))
    anchors = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"".join(texts))]
    )
    table = pyarrow.table({"anchor": anchors, "positive": ["p"] * 3, "negative": ["n"] * 3})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = [record.query for record in read(tmp_path / "a.parquet") if isinstance(record, Group)]
    assert found == ["q0", "q2"]
    assert unreadable(tmp_path / "a.parquet") == [("a.parquet#2", "encoding")]


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list([COLUMNS[0]] * 4)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "dev": data.select([0])}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "snapshot" / "data").mkdir(parents=True)
    for part in range(2):
        data.to_parquet(str(tmp_path / "snapshot" / "data" / f"train-0000{part}-of-00002.parquet"))
    assert len(list(read_strict(tmp_path / "one"))) == 4
    assert len(list(read_strict(tmp_path / "splits"))) == 4
    assert len(list(read_strict(tmp_path / "splits", config=ReaderConfig(split="dev")))) == 1
    assert len(list(read_strict(tmp_path / "snapshot"))) == 8
    with pytest.raises(UserError, match=r"split: found test, expected one of \['dev', 'train'\]"):
        list(read(tmp_path / "splits", config=ReaderConfig(split="test")))


@pytest.fixture
def marco(tmp_path: Path) -> Path:
    write(tmp_path / "collection.tsv", "0\tzero", "1\tone", "2\ttwo with\ta tab", "3\tthree")
    write(tmp_path / "queries.train.tsv", "10\tten", "11\televen")
    return tmp_path


def test_ms_marco_triples_are_read_as_texts_and_as_ids(marco: Path) -> None:
    texts = write(marco / "texts" / "triples.train.small.tsv", "ten\tone\tzero", "only\ttwo")
    assert next(iter(read(texts))) == Group("ten", ("one",), ("zero",))
    assert unreadable(texts.parent) == [("triples.train.small.tsv:2", "schema")]
    ids = write(marco / "qidpidtriples.train.full.2.tsv", "10\t1\t0", "11\t2\t99", "11\t2\t3")
    records = list(read(marco))
    assert records[0] == Group("ten", ("one",), ("zero",), id="10")
    assert records[2] == Group("eleven", ("two with\ta tab",), ("three",), id="11")
    assert unreadable(ids) == [("qidpidtriples.train.full.2.tsv:2", "missing_text")]


@pytest.mark.parametrize("compressed", [False, True])
def test_beir_is_read_by_split(compressed: bool, tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", '{"_id": "a", "title": "T", "text": "x"}', '{"_id": "b", "text": "y"}')
    if compressed:
        (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes()))
        corpus.unlink()
    write(tmp_path / "queries.jsonl", '{"_id": "q1", "text": "one"}', '{"_id": "q2", "text": "two"}')
    write(tmp_path / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore", "q1\ta\t1", "q1\tb\t0")
    write(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", "q2\tb\t2")
    assert list(read(tmp_path)) == [Group("one", ("T x",), ("y",), id="q1")]
    assert list(read(tmp_path, config=ReaderConfig(split="test"))) == [Group("two", ("y",), (), id="q2")]
    with pytest.raises(UserError, match="a group without negatives"):
        list(read_strict(tmp_path, config=ReaderConfig(split="test")))


def test_a_run_gives_the_negatives_of_trec_by_rank(marco: Path) -> None:
    qrels = write(marco / "qrels.txt", "10 0 1 1", "11 0 3 1", "11 0 0 0")
    run = write(marco / "run.txt", "10 Q0 2 2 1.0 t", "10 Q0 0 1 2.0 t", "10 Q0 1 3 .5 t", "11 Q0 2 1 1 t", "torn")
    settings = ReaderConfig(qrels=str(qrels), run=str(run), queries=str(marco / "queries.train.tsv"))
    records = list(read(qrels, config=settings))
    assert [record for record in records if isinstance(record, Group)] == [
        Group("ten", ("one",), ("zero", "two with\ta tab"), id="10"),
        Group("eleven", ("three",), ("zero", "two with\ta tab"), id="11"),
    ]
    assert [record.where for record in records if isinstance(record, Unreadable)] == [f"{run}:5"]


def test_an_unknown_form_lists_what_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "notes" / "notes.txt", "hello")
    for path in (tmp_path / "notes", tmp_path / "notes" / "notes.txt", tmp_path / "none"):
        with pytest.raises(UserError, match=r"MS MARCO \(triples\*.tsv") as caught:
            list(read(path))
        assert "BEIR (corpus.jsonl" in str(caught.value)


def test_the_strict_reader_raises_at_the_first_wrong_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINE + b'{"query": "q", "pos": "p", "neg": ["n"]}\n')
    with pytest.raises(UserError, match=r'a.jsonl:2: found "pos" a string'):
        list(read_strict(tmp_path / "a.jsonl"))


def test_labels_say_what_a_passage_is_and_the_rows_of_a_query_make_a_group(tmp_path: Path) -> None:
    cells = [("q", "wrong", 0), ("q", "right", 1), ("q2", "alone", 1), ("q3", "none", 0), ("q4", "half", 0.5)]
    rows = [dict(zip(("query", "answer", "label"), row, strict=True)) for row in cells]
    write(tmp_path / "a.jsonl", *(json.dumps(row) for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    floats = [{**row, "label": float(row["label"])} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(floats), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.parquet"):
        found = list(read(tmp_path / name))
        assert found[:2] == [Group("q", ("right",), ("wrong",)), Group("q2", ("alone",), ())], name
        assert [number[-1] for number, _ in unreadable(tmp_path / name)] == ["4", "5"], name
    # A label that comes late cannot be joined any more: it is named, never taken for a positive.
    write(tmp_path / "late.jsonl", '{"query": "q", "answer": "a"}', json.dumps(rows[0]))
    assert unreadable(tmp_path / "late.jsonl") == [("late.jsonl:2", "schema")]


def test_a_passage_judged_above_0_is_positive_and_no_number_is_none(marco: Path) -> None:
    qrels = write(marco / "qrels.dev.tsv", "10\t1\t0.5", "10\t0\t0.0", "11\t3\t1", "11\t0\tnan", "11\t0\tinf")
    records = list(read(qrels, config=ReaderConfig(qrels=str(qrels))))
    assert [record for record in records if isinstance(record, Group)] == [
        Group("ten", ("one",), ("zero",), id="10"), Group("eleven", ("three",), (), id="11"),
    ]  # fmt: skip
    assert [record.where[-2:] for record in records if isinstance(record, Unreadable)] == [":4", ":5"]


def test_of_a_long_run_the_best_are_kept_and_no_more_is_held(tmp_path: Path) -> None:
    write(tmp_path / "collection.tsv", *(f"{n}\ttext {n}" for n in range(9)))
    write(tmp_path / "queries.tsv", "10\tten")
    qrels = write(tmp_path / "qrels.txt", "10 0 3 1")
    run = write(tmp_path / "run.txt", *(f"10 Q0 {n} {n} 1 t" for n in (*range(20_000, 40_000), *range(20_000))))
    tracemalloc.start()
    (group,) = read(qrels, config=ReaderConfig(qrels=str(qrels), run=str(run), run_negatives=4))
    peak, _ = tracemalloc.get_traced_memory()[1], tracemalloc.stop()
    assert group == Group("ten", ("text 3",), ("text 0", "text 1", "text 2", "text 4"), id="10")
    assert peak < 3_000_000


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", ["{}", "[", '{"splits": 3, "_data_files": [{}]}', "[]"])
def test_a_broken_dataset_directory_is_told_in_one_line(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=name):
        list(read(tmp_path))


def test_the_only_split_of_a_beir_directory_is_read(tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", '{"_id": "b", "text": "y"}')
    write(tmp_path / "queries.jsonl", '{"_id": "q2", "text": "two"}')
    write(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", "q2\tb\t2")
    assert list(read(tmp_path)) == [Group("two", ("y",), (), id="q2")]


def test_unreadable_lines_of_a_corpus_are_named_by_place_and_a_wrong_file_ends_the_pass(marco: Path) -> None:
    ids = write(marco / "qidpidtriples.tsv", "10\t1\t0")
    with open(marco / "collection.tsv", "a", encoding="utf-8") as stream:
        stream.write("no tab\n")
    found = [record for record in read(ids) if isinstance(record, Unreadable)]
    places = [(one.where, one.line, one.offset, one.size) for one in found]
    assert places == [(f"{marco / 'collection.tsv'}:5", None, 38, 6)]
    write(marco / "collection.tsv", *["no tab"] * 1001, "1\tone")
    with pytest.raises(UserError, match=r"collection.tsv: found 1,000 lines"):
        list(read(ids))


def test_a_file_that_is_not_what_its_name_says_is_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINE)[:10] + b"\xff" * 50)
    assert unreadable(tmp_path / "a.jsonl.gz") == [("a.jsonl.gz:1", "cut_short")]


def test_a_byte_order_mark_costs_no_text_and_no_judgement(tmp_path: Path) -> None:
    for name, content in (
        ("collection.tsv", "1\tone\n"), ("queries.tsv", "10\tten\n"), ("qrels.txt", "10 0 1 1\n"),
        ("run.txt", "10 Q0 2 1 1 t\n"), ("more.jsonl", '{"_id": "1", "text": "one"}\n{"_id": "2", "text": "two"}\n'),
    ):  # fmt: skip
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
    qrels, run, more = (str(tmp_path / name) for name in ("qrels.txt", "run.txt", "more.jsonl"))
    assert list(read(qrels, config=ReaderConfig(qrels=qrels))) == [Group("ten", ("one",), (), id="10")]
    settings = ReaderConfig(qrels=qrels, run=run, corpus=more)
    assert list(read(qrels, config=settings)) == [Group("ten", ("one",), ("two",), id="10")]


def test_half_a_character_in_the_id_of_a_text_is_named(tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", '{"_id": "\\ud800", "text": "x"}', '{"_id": "b", "text": "y"}')
    write(tmp_path / "queries.jsonl", '{"_id": "q", "text": "two"}')
    write(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", "q\tb\t1")
    records = list(read(tmp_path))
    assert [record for record in records if isinstance(record, Group)] == [Group("two", ("y",), (), id="q")]
    assert unreadable(tmp_path) == [("corpus.jsonl:1", "schema")]
