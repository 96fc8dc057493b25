"""What ships and what `reranker demo` makes of it: licences, size, and no held-out text in training."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from reranker.config.models import DemoConfig
from reranker.demo import corpus, prepare
from reranker.demo.groups import (
    english_sentences,
    first_sentences,
    heading_groups,
    korean_sentences,
    sentence_groups,
)  # fmt: skip
from reranker.errors import UserError
from reranker.groups import read_groups
from reranker.prepare.bm25 import BM25Index


@pytest.fixture(scope="module")
def passages() -> list[dict[str, Any]]:
    return corpus.passages()


@pytest.fixture(scope="module")
def own(passages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [passage for passage in passages if passage["src"] == corpus.TRAIN_SOURCE]


@pytest.fixture(scope="module")
def index(own: list[dict[str, Any]]) -> BM25Index:
    return BM25Index([passage["text"] for passage in own], "bigrams")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run over all documents, with the analyzer that needs no morphological model.

    Groups of first sentences are left out: to cut all passages into sentences takes longer than everything else, and
    `few` has them.
    """
    return _demo(tmp_path_factory.mktemp("demo"), sentences=False)


@pytest.fixture(scope="module")
def few_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A twentieth of the documents, of which dev, training and held-out queries each have a part."""
    directory = tmp_path_factory.mktemp("documents")
    queries = [*corpus.training_queries()[:60], *corpus.dev_queries()[:20], *corpus.held_out_queries()[:30]]
    wanted = {name for query in queries for name in (query["pos"], *query["also"])}
    documents = {passage["doc"] for passage in corpus.passages() if passage["id"] in wanted}
    passages = [passage for passage in corpus.passages() if passage["doc"] in documents]
    for name, rows in (("corpus", passages), ("queries", queries)):
        with gzip.open(directory / f"{name}.jsonl.gz", "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return directory


@pytest.fixture(scope="module")
def few(few_documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run over few documents, groups of first sentences among it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "DOCUMENTS", few_documents)
        return _demo(tmp_path_factory.mktemp("few"))


def _demo(output: Path, **changes: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "ANALYZER", "bigrams")
        assert prepare.demo_command(_config(output, **changes)) == 0
    return output


def _config(output: Path, **changes: Any) -> DemoConfig:
    return DemoConfig(**{"output": str(output), "dev_queries": 16, "dev_negatives": 4, **changes})


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_only_two_licences_ship_each_with_its_text_and_notice(passages: list[dict[str, Any]]) -> None:
    rows = passages + corpus.queries()
    assert {row["license"] for row in rows} == {"MPL-2.0", "CC-BY-SA-3.0"}
    notice = (corpus.DOCUMENTS / "NOTICE.md").read_text("utf-8")
    for source in {row["src"] for row in rows}:
        count = sum(passage["src"] == source for passage in passages)
        assert f"| {source} | {count:,} |" in notice
        assert f"- {source}: " in notice
    assert "Mozilla Public License Version 2.0" in (corpus.DOCUMENTS / "MPL-2.0.txt").read_text("utf-8")
    assert "Attribution-ShareAlike 3.0 Unported" in (corpus.DOCUMENTS / "CC-BY-SA-3.0.txt").read_text("utf-8")


def test_the_documents_are_small_and_carry_no_title_or_time(passages: list[dict[str, Any]]) -> None:
    files = sorted(corpus.DOCUMENTS.glob("*.gz"))
    assert len(files) == 2
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    for path in files:
        assert path.read_bytes()[4:8] == bytes(4)  # gzip's modification time
        assert gzip.decompress(path.read_bytes()).endswith(b"\n")
    assert {tuple(sorted(row)) for row in passages} == {("doc", "id", "license", "src", "text", "text_en")}


def test_every_query_points_at_passages_that_ship(passages: list[dict[str, Any]]) -> None:
    by_id = {passage["id"]: passage for passage in passages}
    assert len(by_id) == len(passages) > 4_000
    queries = corpus.queries()
    assert len({query["qid"] for query in queries}) == len(queries) > 2_500
    for query in queries:
        assert by_id[query["pos"]]["src"] == query["src"]
        assert all(also in by_id for also in query["also"])


def test_training_dev_and_held_out_queries_share_no_document(passages: list[dict[str, Any]]) -> None:
    document = {passage["id"]: passage["doc"] for passage in passages}
    parts = (corpus.training_queries(), corpus.dev_queries(), corpus.held_out_queries())
    training, dev, held_out = ({document[query["pos"]] for query in part} for part in parts)
    assert min(len(training), len(dev), len(held_out)) > 50
    assert not training & dev
    assert not (training | dev) & held_out
    assert sum(map(len, parts)) == len(corpus.queries())


def test_the_source_is_english_groups_of_one_negative_without_dev_or_held_out_documents(made: Path) -> None:
    english = {row["text_en"]: row for row in corpus.passages() if row["text_en"]}
    by_id = {row["id"]: row for row in corpus.passages()}
    queries = {query["qid"]: query for query in corpus.training_queries()}
    dev_documents = {by_id[query["pos"]]["doc"] for query in corpus.dev_queries()}
    groups = list(read_groups(made / "data" / "triplets.jsonl"))
    whole = [query for query in queries.values() if query["query_en"] and by_id[query["pos"]]["text_en"]]
    assert [group.id for group in groups] == [query["qid"] for query in whole]
    assert len(groups) > 1_500
    for group in groups:
        query = queries[str(group.id)]
        assert (group.query, group.pos[0]) == (query["query_en"], by_id[query["pos"]]["text_en"])
        (negative,) = group.neg
        assert negative not in group.pos
        for text in (*group.pos, negative):
            assert english[text]["src"] == corpus.TRAIN_SOURCE
    mined_from = [by_id[row["id"]] for row in _lines(made / "data" / "passages.jsonl")]
    assert {row["src"] for row in mined_from} == {corpus.TRAIN_SOURCE}
    assert not dev_documents & {row["doc"] for row in mined_from}
    assert len(mined_from) > 2_500
    dev_texts = {row["text"] for row in by_id.values() if row["doc"] in dev_documents}
    assert not dev_texts & {row["text"] for row in mined_from}


@pytest.mark.parametrize("of", ["made", "few"])
def test_the_memory_has_the_korean_of_every_text(of: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(of)
    rows = _lines(made / "data" / "memory.jsonl")
    memory = {row["en"]: row["ko"] for row in rows}
    assert len(memory) == len(rows)
    by_id = {row["id"]: row for row in corpus.passages()}
    queries = {query["qid"]: query for query in corpus.queries()}
    translated = 0
    for group in read_groups(made / "data" / "triplets.jsonl"):
        assert {group.query, *group.pos, *group.neg} <= set(memory)
        if group.id in queries:
            query = queries[group.id]
            translated += (memory[group.query], memory[group.pos[0]]) == (query["query"], by_id[query["pos"]]["text"])
        else:
            whole = by_id[str(group.id).removeprefix("sentence:")]
            assert memory[group.query] in whole["text"]
            translated += whole["text"].split() == f"{memory[group.query]} {memory[group.pos[0]]}".split()
    # A heading that stands over several passages is translated as the first of them was.
    assert translated > 0.9 * sum(1 for _ in read_groups(made / "data" / "triplets.jsonl"))


def test_dev_groups_hold_no_held_out_text_and_no_positive_as_a_negative(made: Path) -> None:
    by_id = {row["id"]: row for row in corpus.passages()}
    own_texts = {row["text"] for row in by_id.values() if row["src"] == corpus.TRAIN_SOURCE}
    queries = {query["qid"]: query for query in corpus.dev_queries()}
    dev = list(read_groups(made / "data" / "dev.jsonl"))
    assert len(dev) == 16
    for group in dev:
        query = queries[str(group.id)]
        assert (group.query, group.pos[0]) == (query["query"], by_id[query["pos"]]["text"])
        right = {by_id[name]["text"] for name in [query["pos"], *query["also"]]}
        assert set(group.pos) == right & own_texts
        assert len(set(group.neg)) == len(group.neg) == 4
        assert set(group.neg) <= own_texts - right


def test_groups_of_first_sentences_are_of_training_documents_and_the_rest_is_the_same_as_the_whole(few: Path) -> None:
    own = {row["id"]: row for row in corpus.passages() if row["src"] == corpus.TRAIN_SOURCE}
    dev_documents = {own[query["pos"]]["doc"] for query in corpus.dev_queries()}
    memory = {row["en"]: row["ko"] for row in _lines(few / "data" / "memory.jsonl")}
    rests = {row["text"]: row for row in _lines(few / "data" / "passages.jsonl") if row["id"].endswith(" (rest)")}
    groups = [
        group for group in read_groups(few / "data" / "triplets.jsonl") if (group.id or "").startswith("sentence:")
    ]
    assert len(groups) > 30
    for group in groups:
        passage = own[str(group.id).removeprefix("sentence:")]
        assert passage["doc"] not in dev_documents
        assert passage["text_en"].startswith(group.query)
        assert not set(group.neg) & {passage["text_en"], *group.pos}
        (rest,) = group.pos
        assert rests[memory[rest]]["same"] == [passage["id"]]
    dev = [group for group in read_groups(few / "data" / "dev.jsonl") if (group.id or "").startswith("sentence:")]
    assert len(dev) > 4
    for group in dev:
        passage = own[str(group.id).removeprefix("sentence:")]
        assert passage["doc"] in dev_documents
        assert passage["text"].startswith(group.query)
        assert passage["text"] not in group.neg


def test_first_sentences_are_queries_whose_passage_does_not_hold_them(own: list[dict[str, Any]]) -> None:
    passages = own[:300]
    index = BM25Index([passage["text"] for passage in passages], "bigrams")
    sentences = first_sentences([passage["text"] for passage in passages], korean_sentences)
    groups = list(sentence_groups(passages, sentences, index, 5))
    assert len(groups) > 90
    for passage, group in groups:
        assert group.id == f"sentence:{passage['id']}"
        assert passage["text"].startswith(group.query)
        (rest,) = group.pos
        assert group.query not in rest
        assert rest.split()[-1] == passage["text"].split()[-1]
        assert 1 <= len(group.neg) <= 5
        assert passage["text"] not in group.neg
        assert not any(group.query in text for text in group.neg)


def test_a_sentence_that_stands_in_two_passages_or_is_too_short_is_no_query() -> None:
    rest = "그런 다음 파일 메뉴에서 저장을 선택하고 이름을 입력한 뒤에 확인을 누르면 문서가 디스크에 저장되고 창이 닫히며 작업이 끝나게 됩니다."
    texts = [f"문서를 디스크에 저장하는 방법입니다. {rest}", f"이 명령에 액세스하려면 다음과 같이 합니다. {rest}",
             f"이 명령에 액세스하려면 다음과 같이 합니다. 다른 {rest}", f"저장. {rest}", "문장이 하나뿐인 짧은 글입니다."]  # fmt: skip
    sentences = first_sentences(texts, korean_sentences)
    assert [(place, sentence) for place, sentence, _ in sentences] == [(0, "문서를 디스크에 저장하는 방법입니다.")]
    passages = [{"id": str(number), "text": text, "doc": f"d{number % 2}"} for number, text in enumerate(texts)]
    ((passage, group),) = sentence_groups(passages, sentences, BM25Index(texts, "words"), 2)
    assert passage == passages[0]
    assert (group.query, group.pos, len(group.neg)) == ("문서를 디스크에 저장하는 방법입니다.", (rest,), 2)


def test_english_sentences_end_where_a_mark_and_a_capital_stand() -> None:
    text = 'Opens the dialog, e.g. for fonts. You can "undo" this! (See below.) Choose File - Save 3.5 times.'
    assert english_sentences([text, "No mark"]) == [
        ["Opens the dialog, e.g. for fonts.", 'You can "undo" this!', "(See below.) Choose File - Save 3.5 times."],
        ["No mark"],
    ]


def test_negatives_are_the_best_that_bm25_finds(own: list[dict[str, Any]], index: BM25Index) -> None:
    queries = [query for query in corpus.training_queries() if query["also"]][:20]
    for query, group in zip(queries, heading_groups(queries, own, index, 8), strict=True):
        ranking = [own[found] for found, _ in index.search([query["query"]], 100)[0]]
        right = {query["pos"], *query["also"]}
        assert list(group.neg) == [passage["text"] for passage in ranking if passage["id"] not in right][:8]


def test_a_copy_of_the_right_passage_is_no_negative() -> None:
    texts = ["암호 바꾸기", "암호 바꾸기", "암호 설정", "글꼴"]
    passages = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    query = {"qid": "q", "query": "암호 바꾸기", "pos": "0", "also": ["9"]}
    (group,) = heading_groups([query], passages, BM25Index(texts, "words"), 2)
    assert group.pos == ("암호 바꾸기",)
    assert group.neg == ("암호 설정", "글꼴")


def test_the_dev_sample_does_not_depend_on_the_order() -> None:
    dev = corpus.dev_queries()
    chosen = prepare.sample(dev, 10)
    assert chosen == prepare.sample(dev[::-1], 10)
    assert chosen == prepare.sample(dev, 20)[:10]


def test_the_held_out_files_are_what_evaluation_reads(made: Path) -> None:
    rows, queries = _lines(made / "data" / "corpus.jsonl"), _lines(made / "data" / "queries.jsonl")
    document = {row["id"]: row["doc"] for row in rows}
    assert len(rows) == len(corpus.passages())
    assert len(queries) == len(corpus.held_out_queries())
    assert all(query["doc"] == document[query["pos"]] for query in queries)
    assert not any(query["doc"].startswith(corpus.TRAIN_SOURCE) for query in queries)


def test_what_is_whole_is_kept_and_what_is_damaged_is_made_again(
    few: Path, few_documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "ANALYZER", "bigrams")
    monkeypatch.setattr(corpus, "DOCUMENTS", few_documents)
    training, weights = few / "data" / "triplets.jsonl", few / "base" / "model.safetensors"
    before, time_before = training.read_bytes(), weights.stat().st_mtime_ns
    prepare.demo_command(_config(few))
    assert capsys.readouterr().out.count("already made") == 2

    training.write_bytes(before[:-100])
    prepare.demo_command(_config(few))
    assert capsys.readouterr().out.count("already made") == 1
    assert training.read_bytes() == before
    assert weights.stat().st_mtime_ns == time_before

    prepare.demo_command(_config(few, dev_negatives=6))
    assert len(next(iter(read_groups(few / "data" / "dev.jsonl"))).neg) == 6
    prepare.demo_command(_config(few, force=True))
    assert training.read_bytes() == before
    assert weights.stat().st_mtime_ns != time_before


@pytest.mark.parametrize("name", ["", "data", "data/triplets.jsonl", "base", "base/config.json"])
def test_others_files_are_not_replaced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "ANALYZER", "bigrams")
    path = tmp_path / "output" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=str(path)):
        prepare.demo_command(_config(tmp_path / "output"))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("change", [{"dev_negatives": 0}, {"dev_queries": 1_000}])
def test_impossible_settings_are_refused_by_their_key(change: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        prepare.demo_command(_config(tmp_path, **change))
    assert not any(tmp_path.iterdir())
