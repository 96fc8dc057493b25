from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from reranker.config.common import FirstStageConfig
from reranker.errors import UserError
from reranker.evaluate.rank import Query, fuse, read_corpus, read_queries, retrieve, sample_queries

CORPUS = [
    {"id": "a", "text": "창을 닫는 방법", "doc": "windows"},
    {"id": "b", "text": "글꼴을 바꾸는 방법"},
    {"id": 3, "text": "소리를 키우는 방법"},
]


def _lines(path: Path, *records: Any) -> Path:
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def test_the_first_wrong_line_of_a_corpus_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    for record, message in (
        (["a", "text"], f"{path}:2: found a list \"['a', 'text']\", expected a JSON object; write "),
        (
            {"id": "x", "txt": "t"},
            f'{path}:2: found keys [\'id\', \'txt\'], expected a key "text"; rename "txt" to "text"',
        ),
        (
            {"id": "a", "text": "t"},
            f'{path}:2: found a second passage "a", expected ids that differ; rename or remove one',
        ),
        ({"id": "x", "text": 5}, f"{path}:2: found \"text\" a number '5', expected a string; write it as text"),
        ({"id": 1.5, "text": "t"}, f"{path}:2: found \"id\" a number '1.5', expected a string; write it as text"),
        ("{", f"{path}:2: found '{{' (Expecting property name enclosed in double quotes at column 2), "),
    ):
        with pytest.raises(UserError) as caught:
            read_corpus(_lines(path, CORPUS[0], record))
        assert str(caught.value).startswith(message)


def test_the_first_wrong_line_of_queries_is_named(tmp_path: Path) -> None:
    corpus = read_corpus(_lines(tmp_path / "corpus.jsonl", *CORPUS))
    path = tmp_path / "queries.jsonl"
    good = {"qid": "1", "query": "창", "pos": "a"}
    for record, message in (
        ({"qid": "2", "query": "q"}, f"{path}:2: found keys ['qid', 'query'], expected a key \"pos\"; write "),
        (good, f'{path}:2: found a second query "1", expected qids that differ; rename or remove one'),
        ({"qid": "2", "query": "q", "pos": "zz"},
         f"{path}:2: found \"pos\" 'zz', expected the id of a passage in the corpus; "
         "add the passage to the corpus or leave the query out"),
        ({"qid": "2", "query": "q", "pos": "a", "also": ["zz"]},
         f"{path}:2: found \"also\" 'zz', expected the id of a passage in the corpus; "),
        ({"qid": "2", "query": "q", "pos": []},
         f'{path}:2: found an empty "pos" list, expected at least one passage id; '),
        ({"qid": "2", "query": " ", "pos": "a"}, f'{path}:2: found an empty "query", expected some text; '),
        ({"qid": "2", "query": "q", "pos": [None]}, f"{path}:2: found \"pos\"[0] a null 'None', expected a string; "),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            read_queries(_lines(path, good, record), corpus)
        assert str(caught.value).startswith(message)


def test_an_empty_file_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found an empty file"):
        read_corpus(_lines(tmp_path / "corpus.jsonl"))


def test_compressed_files_are_read_and_numbers_are_ids(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in CORPUS).encode()))
    corpus = read_corpus(path)
    assert list(corpus) == ["a", "b", "3"]
    queries = read_queries(_lines(tmp_path / "q.jsonl", {"qid": 1, "query": "소리", "pos": 3}), corpus)
    assert queries == [Query("1", "소리", ("3",), "passage 3")]


def test_queries_depend_on_each_other_through_their_document(tmp_path: Path) -> None:
    corpus = read_corpus(_lines(tmp_path / "corpus.jsonl", *CORPUS))
    records = [
        {"qid": "1", "query": "q", "pos": "b", "doc": "named"},
        {"qid": "2", "query": "q", "pos": ["a"]},
        {"qid": "3", "query": "q", "pos": "b", "also": ["a", "b"]},
    ]
    queries = read_queries(_lines(tmp_path / "q.jsonl", *records), corpus)
    assert [query.cluster for query in queries] == ["named", "windows", "passage b"]
    assert queries[2].relevant == ("b", "a")


def test_a_sample_does_not_depend_on_the_order_of_the_file_and_grows_by_adding() -> None:
    queries = [Query(f"q{number}", "text", ("a",), "d") for number in range(100)]
    small = {query.qid for query in sample_queries(queries, 10)}
    assert len(small) == 10
    assert {query.qid for query in sample_queries(queries[::-1], 10)} == small
    assert small < {query.qid for query in sample_queries(queries, 20)}
    assert sample_queries(queries, None) == sample_queries(queries, 1000) == queries


def test_the_first_stage_finds_what_shares_words_with_the_query(tmp_path: Path) -> None:
    corpus = read_corpus(_lines(tmp_path / "corpus.jsonl", *CORPUS))
    queries = [Query("1", "글꼴을 크게", ("b",), "d"), Query("2", "소리를 끄기", ("3",), "d")]
    found = retrieve(queries, corpus, FirstStageConfig(analyzer="words"), depth=2)
    assert [names[0] for names in found] == ["b", "3"]
    assert all(len(names) <= 2 for names in found)


def test_fusion_adds_reciprocal_ranks() -> None:
    # a: 1/61 + 1/63, b: 1/62 + 1/61, c: 1/63 + 1/62
    assert fuse([["a", "b", "c"], ["b", "c", "a"]], judged=["c"]) == ["b", "a", "c"]


def test_a_tie_of_the_fusion_counts_against_it() -> None:
    assert fuse([["right", "b"], ["b", "right"]], judged=["right"]) == ["b", "right"]
