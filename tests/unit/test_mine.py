"""Mining: what becomes a negative, what never does, and that nothing found is searched again."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.config.mining import Device, Draw, MineConfig, Retriever, Teacher
from reranker.config.reading import Form
from reranker.errors import UserError
from reranker.groups import read_groups
from reranker.prepare.bm25 import BM25Index
from reranker.prepare.mine import command, dense, filters
from reranker.prepare.mine.cache import QUERIES, Blocks
from reranker.prepare.mine.command import check_settings, mine_command
from reranker.prepare.mine.fuse import fuse
from reranker.prepare.mine.lexical import LexicalIndex, best, build_index
from reranker.prepare.mine.near import shingles, similarity
from reranker.prepare.mine.store import Store, build_store
from tests.tiny import tiny_model

CORPUS = [
    {"id": n, "text": f"사과 {'배 ' * (n % 3)}나무 {n}번 밭에는 과일 {n % 7}종이 자란다", "doc": f"밭{n // 10}"}
    for n in range(60)
]
GROUPS = [
    {"query": "사과 나무 3번", "pos": [CORPUS[3]["text"]], "id": "a", "prompt": "찾기"},
    {"query": "과일 5종 배", "pos": [CORPUS[5]["text"]], "neg": [CORPUS[40]["text"]]},
    {"query": "밭 밖의 사과", "pos": ["사과 밭 밖에 있는 나무"], "neg": []},
]


def lines(path: Path, values: list) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def config(directory: Path, groups: list = GROUPS, corpus: list | None = CORPUS, **settings: object) -> MineConfig:
    made = MineConfig(
        groups=str(lines(directory / "groups.jsonl", groups)),
        corpus=str(lines(directory / "corpus.jsonl", corpus)) if corpus else None,
        output=str(directory / "out"),
        negatives=4,
        margin=None,
        near_duplicates=None,
    )
    made.bm25.analyzer = "words"
    made.dense.device = made.rescore.device = Device.cpu
    for key, value in settings.items():
        part, _, name = key.rpartition("__")
        setattr(getattr(made, part) if part else made, name, value)
    return made


def mine(directory: Path, *arguments: list, **settings: object) -> list:
    made = config(directory, *arguments, **settings)
    assert mine_command(made) == 0
    return list(read_groups(Path(made.output) / "groups.jsonl"))


def test_groups_keep_what_they_had_and_gain_the_best_other_passages(tmp_path: Path) -> None:
    first, second, third = mine(tmp_path)
    texts = [passage["text"] for passage in CORPUS]
    order = [texts[place] for place, _ in BM25Index(texts, "words").search([GROUPS[0]["query"]], 9)[0]]
    assert list(first.neg) == [text for text in order if text not in first.pos][:4]
    assert (first.id, first.prompt) == ("a", "찾기")
    assert second.neg[0] == CORPUS[40]["text"]
    assert len(set(second.neg)) == 4
    assert third.pos == ("사과 밭 밖에 있는 나무",)
    assert not set(third.pos) & set(first.neg + second.neg)


def test_without_a_corpus_the_passages_of_the_groups_are_mined(tmp_path: Path) -> None:
    groups = mine(tmp_path, GROUPS, None)
    everything = {text for group in GROUPS for text in (*group["pos"], *group.get("neg", []))}
    assert all(set(group.neg) <= everything - set(group.pos) for group in groups)


def test_groups_and_corpus_may_be_in_any_form_and_mine_the_same(tmp_path: Path) -> None:
    groups = [{"id": f"q{n}", "query": f"과일 {n}종 {n}번", "pos": [CORPUS[n]["text"]]} for n in range(1, 6)]
    expected = mine(tmp_path, groups)
    (tmp_path / "collection.tsv").write_text("".join(f"{row['id']}\t{row['text']}\n" for row in CORPUS))
    (tmp_path / "queries.train.tsv").write_text("".join(f"{group['id']}\t{group['query']}\n" for group in groups))
    (tmp_path / "qrels.train.tsv").write_text("".join(f"q{n}\t0\t{n}\t1\n" for n in range(1, 6)))
    beir = tmp_path / "beir"
    beir.mkdir()
    cut = [(str(row["id"]), *str(row["text"]).split(" ", 1)) for row in CORPUS]
    lines(beir / "corpus.jsonl", [{"_id": name, "title": title, "text": text} for name, title, text in cut])
    for row in groups:
        row |= {"anchor": row["query"], "positive": row["pos"][0]}
    lines(tmp_path / "columns.jsonl", [{key: row[key] for key in ("id", "anchor", "positive")} for row in groups])
    for source, corpus in (
        (tmp_path / "qrels.train.tsv", tmp_path / "collection.tsv"),
        (tmp_path / "columns.jsonl", tmp_path / "corpus.jsonl"),
        (tmp_path / "groups.jsonl", tmp_path / "collection.tsv"),
        (tmp_path / "groups.jsonl", beir),
    ):
        made = config(tmp_path, groups)
        made.groups, made.corpus = str(source), str(corpus)
        made.reading.form = Form.trec if source.suffix == ".tsv" else Form.auto
        assert mine_command(made) == 0
        assert list(read_groups(Path(made.output) / "groups.jsonl")) == expected


@pytest.mark.parametrize(
    ("line", "said"),
    [("no tab", "without a tab, expected id<tab>text"), ("7\t ", "an empty text"), ("\ttext", "an empty id")],
)
def test_a_wrong_line_of_a_tsv_corpus_is_named(line: str, said: str, tmp_path: Path) -> None:
    made = config(tmp_path)
    made.corpus = str(tmp_path / "collection.tsv")
    Path(made.corpus).write_text(f"1\tone\n{line}\n")
    with pytest.raises(UserError, match=said) as raised:
        mine_command(made)
    assert str(raised.value).startswith(f"{made.corpus}:2: found ")


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    settings = {"random_share": 0.25, "same_document_share": 0.25, "draw": Draw.random, "teacher": Teacher.bm25}
    written = []
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        mine(tmp_path / str(workers), workers=workers, **settings)
        written.append((tmp_path / str(workers) / "out" / "groups.jsonl").read_bytes())
    assert written[0] == written[1]


def test_what_is_drawn_for_a_query_does_not_hang_on_the_others(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    together = mine(tmp_path, random_share=0.5)
    assert mine(tmp_path / "alone", GROUPS[:1], random_share=0.5)[0] == together[0]
    assert mine(tmp_path, random_share=0.5, seed=7)[0] != together[0]
    assert together[0].neg[2:] != together[2].neg[2:]


def test_the_window_skips_ranks_that_the_positives_do_not_take(tmp_path: Path) -> None:
    whole = mine(tmp_path, negatives=10)[0].neg
    assert mine(tmp_path, negatives=4, window=[3, 6])[0].neg == whole[2:6]


def test_shares_are_drawn_from_the_document_and_the_corpus_behind_the_ranked(tmp_path: Path) -> None:
    group = mine(tmp_path, same_document_share=0.5)[0]
    document = {passage["text"] for passage in CORPUS if passage["doc"] == "밭0"}
    assert set(group.neg[2:]) <= document - set(group.pos)
    assert len(set(group.neg)) == 4


def test_no_positive_of_the_same_query_and_no_equivalent_is_a_negative(tmp_path: Path) -> None:
    groups = [
        {"query": "사과", "pos": [CORPUS[1]["text"]], "also": [2]},
        {"query": "사과", "pos": [CORPUS[4]["text"]], "neg": [CORPUS[1]["text"], CORPUS[9]["text"]]},
    ]
    corpus = [*CORPUS[:6], {**CORPUS[6], "same": [4]}, *CORPUS[7:12]]
    first, second = mine(tmp_path, groups, corpus, negatives=20)
    texts = [passage["text"] for passage in corpus]
    assert not {texts[1], texts[2], texts[4]} & set(first.neg)
    assert not {texts[1], texts[4], texts[6]} & set(second.neg)
    assert (len(first.neg), len(second.neg)) == (8, 8)


def test_what_any_group_of_a_query_calls_right_is_a_negative_in_none(tmp_path: Path) -> None:
    queries = ["사과 나무", " 사과  나무\n", unicodedata.normalize("NFD", "사과 나무")]
    passages = [[CORPUS[number]["text"]] for number in (1, 4, 7)]
    groups = [{"query": query, "pos": pos} for query, pos in zip(queries, passages, strict=True)]
    groups[0]["also"] = [2]
    right = {CORPUS[number]["text"] for number in (1, 2, 4, 7)}
    found = mine(tmp_path, groups, CORPUS[:12], negatives=20)
    assert [set(group.neg) for group in found] == [{passage["text"] for passage in CORPUS[:12]} - right] * 3
    cases = [{"query": query, "pos": pos} for query, pos in zip(("US 사과", "us 사과"), passages, strict=False)]
    assert passages[1][0] in mine(tmp_path, cases, CORPUS[:12], negatives=20)[0].neg


def test_a_negative_that_came_and_is_right_elsewhere_goes_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [{"query": "사과", "pos": [CORPUS[1]["text"]], "id": "a"},
              {"query": "사과", "pos": [CORPUS[4]["text"]], "neg": [CORPUS[1]["text"], CORPUS[9]["text"]], "id": "b"}]  # fmt: skip
    assert CORPUS[1]["text"] not in mine(tmp_path, groups)[1].neg
    (line,) = (tmp_path / "out" / "removed.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line) == {
        "query": "사과", "id": "b", "negative": CORPUS[1]["text"], "reason": "right for the same query",
    }  # fmt: skip
    assert "1 negatives that groups came with are right for the same query" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["removed"] == 1


def test_a_block_of_the_cache_that_is_damaged_is_told_with_its_name(tmp_path: Path) -> None:
    mine(tmp_path)
    (block,) = (tmp_path / "out" / "cache").glob("bm25-search-*/block-000000.npz")
    whole = block.read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        block.write_bytes(content)
        with pytest.raises(UserError, match=f"^{block}: found a block that cannot be read"):
            mine(tmp_path)


def test_what_says_the_same_through_others_is_no_negative(tmp_path: Path) -> None:
    same = {0: [1, 2], 2: [3], 5: [6]}
    corpus = [{**CORPUS[n], "same": same.get(n)} for n in range(12)]
    groups = [{"query": "사과", "pos": [CORPUS[0]["text"]], "also": [6]}]
    (group,) = mine(tmp_path, groups, corpus, negatives=20)
    assert set(group.neg) == {CORPUS[n]["text"] for n in (4, 7, 8, 9, 10, 11)}


def test_a_copy_of_a_right_passage_that_is_no_positive_of_the_group_is_no_negative(tmp_path: Path) -> None:
    right = "인쇄 설정을 바꾸려면 파일 메뉴를 엽니다. 그다음 인쇄를 누르고 프린터를 고릅니다."
    texts = ["인쇄 설정은 제어판에 있다", right, right.replace(".", "!") + " 끝", "인쇄 미리 보기에서는 여백을 봅니다"]
    corpus = [{"id": n, "text": text} for n, text in enumerate(texts)]
    (group,) = mine(tmp_path, [{"query": "인쇄 설정 인쇄", "pos": texts[:1], "also": [1]}], corpus, near_duplicates=0.6)
    assert group.neg == (texts[3],)


def test_scores_stay_where_the_passages_stay_and_are_told_of_where_they_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [passage["text"] for passage in CORPUS]
    scores = {"pos_scores": [3, 2], "neg_scores": [1, 0.5, 7, 0]}
    full = {"query": "사과", "pos": texts[:2], "neg": [texts[5], texts[6], texts[1], texts[8]], **scores}
    (kept,) = mine(tmp_path, [full], negatives=3)
    assert (kept.pos_scores, kept.neg, kept.neg_scores) == ((3, 2), (texts[5], texts[6], texts[8]), (1, 0.5, 0))
    assert "scores" not in capsys.readouterr().err
    bare = {"query": "나무", "pos": texts[:1], "pos_scores": [1]}
    first, second, _ = mine(tmp_path, [full, bare, GROUPS[0]], negatives=4)
    assert (first.pos_scores, first.neg_scores, second.pos_scores) == (None, None, None)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "_scores" in line]
    assert told.startswith("2 groups came with pos_scores or neg_scores that are left out")
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["scores_dropped"] == 2
    assert told in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_any_number_of_right_passages_leaves_the_window_to_the_others(tmp_path: Path) -> None:
    texts = [f"사과 {'사과 ' * (200 - n)}{n}" for n in range(200)]
    corpus = [{"id": n, "text": text} for n, text in enumerate(texts)] + [{"id": "x", "text": "사과 " + "배 " * 300}]
    for number, groups in enumerate((
        [{"query": "사과", "pos": texts}],
        [{"query": "사과", "pos": [text]} for text in texts],
        [{"query": "사과", "pos": texts[:1], "also": list(range(1, 200))}],
    )):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        found = mine(tmp_path / str(number), groups, corpus, window=[1, 1])
        assert [group.neg for group in found] == [(corpus[-1]["text"],)] * len(groups)


def test_the_margin_drops_what_scores_above_the_share_of_the_positive(tmp_path: Path) -> None:
    kept = mine(tmp_path, margin=0.6, teacher=Teacher.bm25, negatives=20, random_share=0.2)
    for group in kept:
        assert group.pos_scores is not None
        assert group.neg_scores is not None
        scores = dict(zip(group.neg, group.neg_scores, strict=True))
        own = [score for text, score in scores.items() if text != CORPUS[40]["text"]]
        assert max(own) <= 0.6 * min(group.pos_scores) + 1e-3


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1))
def test_a_positive_never_passes_its_own_margin_and_less_never_fails_where_more_passes(
    positive: float, score: float, margin: float
) -> None:
    if abs(positive) > 1e-6 and margin < 0.999:
        assert filters.above_margin(positive, [positive], margin)
    if not filters.above_margin(score, [positive], margin):
        assert not filters.above_margin(score - 1, [positive], margin)


def test_several_positives_count_by_the_lowest() -> None:
    assert filters.above_margin(8.0, [10.0, 8.0], 0.95)
    assert not filters.above_margin(8.0, [10.0, 9.0], 0.95)


def test_rescoring_compares_probabilities_not_logits() -> None:
    assert filters.rescored_as_right(-4.0, [-5.0], 0.95, None)
    assert not filters.rescored_as_right(-6.0, [-5.0], 0.95, None)
    assert filters.rescored_as_right(1.0, [9.0], None, 0.5)
    assert filters.probability(-1000.0) == 0.0


def test_a_copy_with_other_spacing_and_order_is_a_near_duplicate(tmp_path: Path) -> None:
    text = "인쇄 설정을 바꾸려면 파일 메뉴를 엽니다. 그다음 인쇄를 누르고 프린터를 고릅니다."
    copy = "그다음 인쇄를 누르고 프린터를 고릅니다! 인쇄 설정을 바꾸려면 파일메뉴를 엽니다."
    other = "인쇄 미리 보기에서는 쪽의 여백과 방향을 확인할 수 있습니다."
    assert similarity(shingles(text), shingles(copy)) > 0.6 > similarity(shingles(text), shingles(other))
    corpus = [{"id": n, "text": value} for n, value in enumerate((text, copy, other))]
    groups = [{"query": "인쇄 설정 인쇄를", "pos": [text]}, {"query": "인쇄 미리", "pos": [other]}]
    assert copy in mine(tmp_path, groups, corpus)[0].neg + mine(tmp_path, groups, corpus)[1].neg
    found = mine(tmp_path, groups, corpus, near_duplicates=0.6, random_share=0.5)
    assert all(copy not in group.neg for group in found if text in group.pos)


def test_a_group_with_too_few_negatives_is_rejected_with_the_reason(tmp_path: Path) -> None:
    made = config(tmp_path, [{"query": "없는낱말", "pos": ["본문"]}, *GROUPS], least=2)
    mine_command(made)
    (rejected,) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert rejected["query"] == "없는낱말"
    assert rejected["reason"] == "0 of at least 2 negatives left; no other candidate in the window"
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert (report["groups"], report["rejected"], report["negatives"]) == (3, 1, 12)


def test_a_run_without_a_group_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mine_command(config(tmp_path, [{"query": "없는낱말", "pos": ["본문"]}])) == 1
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reranker: ")]
    assert told.startswith(f"reranker: {tmp_path / 'out'}: none of 1 groups came out: rejected.jsonl says why")
    assert (tmp_path / "out" / "groups.jsonl").read_bytes() == b""


def test_a_changed_filter_searches_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine(tmp_path)

    def never(*arguments: object) -> None:
        raise AssertionError("searched again")

    for module, name in ((command, "_search_block"), (command.lexical, "build_index"), (command, "build_store")):
        monkeypatch.setattr(module, name, never)
    mine(tmp_path, margin=0.8, near_duplicates=0.5)
    with pytest.raises(AssertionError, match="searched again"):
        mine(tmp_path, window=[1, 50])


def test_a_killed_search_goes_on_behind_its_last_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [{"query": f"사과 {n}번", "pos": [CORPUS[n % 60]["text"]], "id": n} for n in range(600)]
    whole = mine(tmp_path, groups)
    (search,) = (tmp_path / "out" / "cache").glob("bm25-search-*")
    (search / "block-000001.npz").unlink()
    searched = []
    original = command._search_block
    monkeypatch.setattr(command, "_search_block", lambda *call: searched.append(call[-1]) or original(*call))
    assert mine(tmp_path, groups) == whole
    assert searched == [1]


def test_the_shared_index_scores_as_bm25_does_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.lexical, "PASSAGES", 7)  # several blocks
    build_store(lines(tmp_path / "g", GROUPS), lines(tmp_path / "c", CORPUS), tmp_path / "store")
    build_index(tmp_path / "store", tmp_path / "index", "bigrams", 0.9, 0.4, 1)
    store, index = Store(tmp_path / "store"), LexicalIndex(tmp_path / "index", "bigrams")
    texts = [store.text(place) for place in range(len(store))]
    queries = [group["query"] for group in GROUPS] + ["사과 사과 나무"]
    for terms, expected in zip(
        index.terms(queries), BM25Index(texts, "bigrams").search(queries, len(texts)), strict=True
    ):
        positive = [(place, score) for place, score in expected if score > 0]
        assert index.search(terms, len(texts), len(texts)) == [place for place, _ in positive]
        scores = index.scores_of(terms, range(len(texts)))
        assert {place: float(score) for place, score in enumerate(scores) if score > 0} == dict(positive)


def test_frequent_terms_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    build_store(lines(tmp_path / "g", GROUPS), lines(tmp_path / "c", CORPUS), tmp_path / "store")
    build_index(tmp_path / "store", tmp_path / "index", "words", 0.9, 0.4, 1)
    whole, cut = (LexicalIndex(tmp_path / "index", "words", share).terms(["사과 3번", "사과"]) for share in (1, 0.5))
    assert [len(terms) for terms in whole] == [2, 1]
    assert [len(terms) for terms in cut] == [1, 1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_the_best_of_many_are_those_of_a_full_sort(seed: int, depth: int) -> None:
    generator = np.random.default_rng(seed)
    scores = np.where(generator.random(5000) < 0.2, generator.integers(1, 200, 5000), 0).astype(np.float32)
    order = [int(place) for place in np.argsort(-scores, kind="stable")[:depth] if scores[place] > 0]
    assert best(scores, depth) == order


def test_fusion_is_by_reciprocal_ranks() -> None:
    assert fuse([[1, 2, 3], [3, 4]], 60) == [3, 1, 2, 4]
    assert math.isclose(1 / 63 + 1 / 61, 0.0322, abs_tol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": [5, 2]}, r"window: found \[5, 2\]"),
        ({"negatives": 0}, "negatives: found 0"),
        ({"random_share": 0.7, "same_document_share": 0.7}, "random_share . same_document_share: found 1.4"),
        ({"retriever": Retriever.dense}, "dense.model: found none"),
        ({"teacher": Teacher.rescore}, "teacher: found rescore"),
        ({"bm25__analyzer": "word"}, "bm25.analyzer: found 'word', .* did you mean words"),
    ],
)
def test_wrong_settings_are_told_before_work_begins(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mine(tmp_path, **settings)
    assert not (tmp_path / "out").exists()
    made = config(tmp_path, **settings)
    made.groups = made.corpus = str(tmp_path / "not made yet")
    with pytest.raises(UserError, match=message):
        check_settings(made)


@pytest.mark.parametrize(
    ("groups", "corpus", "message"),
    [
        ([*GROUPS, {"query": "q", "pos": "p"}], CORPUS, r'groups.jsonl:4: found "pos" a string'),
        ([{"query": "q", "positives": ["p"]}], CORPUS, r"groups.jsonl:1: found keys"),
        ([{"query": "q", "pos": ["p"], "also": ["x"]}], CORPUS, r'groups.jsonl:1: found "also" \'x\''),
        (GROUPS, [*CORPUS, CORPUS[0]], r"corpus.jsonl:61: found a second passage"),
        (GROUPS, [{"id": 1}], r'corpus.jsonl:1: found keys .* a key "text"'),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, groups: list, corpus: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mine(tmp_path, groups, corpus)


def test_half_a_character_in_an_id_is_named(tmp_path: Path) -> None:
    made = config(tmp_path)
    with open(made.groups, "a", encoding="utf-8") as stream:
        stream.write('{"query": "q", "pos": ["p"], "id": "\\ud800"}\n')
    with pytest.raises(UserError, match=r'groups.jsonl:4: found "id" with half a character'):
        mine_command(made)


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path: Path) -> None:
    made = config(tmp_path, [{"query": "사과", "pos": ["본문"], "also": [0]}])
    made.corpus = str(tmp_path / "collection.tsv")
    Path(made.corpus).write_text("0\t사과 나무\n1\t사과 배\n", encoding="utf-8-sig")
    assert mine_command(made) == 0
    (group,) = read_groups(Path(made.output) / "groups.jsonl")
    assert group.neg == ("사과 배",)


def encoder(directory: Path) -> str:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(tiny_model(directory / "base")), max_seq_length=64)
    pooling = Pooling(32)
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(directory / "encoder"))
    return str(directory / "encoder")


def test_dense_search_is_exact_for_any_block_and_fuses_with_bm25(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    name = encoder(tmp_path)
    dense = mine(tmp_path, GROUPS[:1], retriever=Retriever.dense, dense__model=name, teacher=Teacher.dense)
    model = SentenceTransformer(name, device="cpu")
    texts = [passage["text"] for passage in CORPUS]
    cosines = model.encode(texts, normalize_embeddings=True) @ model.encode(
        GROUPS[0]["query"], normalize_embeddings=True
    )
    expected = [texts[place] for place in np.argsort(-cosines, kind="stable") if texts[place] not in dense[0].pos]
    assert list(dense[0].neg) == expected[:4]
    assert dense[0].pos_scores == (pytest.approx(float(cosines[3]), abs=1e-3),)
    (tmp_path / "again").mkdir()
    blocks = mine(
        tmp_path / "again", GROUPS[:1], retriever=Retriever.dense, dense__model=name, dense__block=7,
        teacher=Teacher.dense,
    )  # fmt: skip
    assert blocks == dense
    fused = mine(tmp_path, retriever=Retriever.fused, dense__model=name, teacher=Teacher.bm25)
    assert len(fused) == 3


@pytest.fixture
def equal_embeddings(tmp_path: Path) -> np.ndarray:
    """A store, embeddings of 3,000 passages of 4 kinds whose products are exact, and the order of a full sort."""
    groups = [{"query": f"q{n}", "pos": ["0"]} for n in range(600)]
    corpus = [{"id": n, "text": str(n)} for n in range(3000)]
    build_store(lines(tmp_path / "g", groups), lines(tmp_path / "c", corpus), tmp_path / "store")
    kinds = np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5], [1, 0, 0, 0]], np.float32)
    passages = kinds[np.random.default_rng(0).integers(0, 4, 3000)]
    queries = np.tile(np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0.5, 0.5, 0]], np.float32), (200, 1))
    for name, rows, size in (("passages", passages, dense.TEXTS), ("queries", queries, QUERIES)):
        (tmp_path / name).mkdir()
        for number in range(0, len(rows), size):
            np.save(tmp_path / name / f"block-{number // size:06d}.npy", rows[number : number + size])
    return np.argsort(-(queries @ passages.T), axis=1, kind="stable")


@pytest.mark.parametrize(("block", "places"), [(7, dense.FOUND), (100, 1), (1000, dense.FOUND), (16384, 1)])
def test_equal_embeddings_stand_by_place_for_any_block(
    equal_embeddings: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, places: int
) -> None:
    monkeypatch.setattr(dense, "FOUND", places)  # 1: a pass for each block of queries
    found = Blocks(tmp_path / "found")
    dense.search(tmp_path, tmp_path / "store", found, 50, block, "cpu")
    rows = np.concatenate([found.get(number)["places"] for number in range(3)])
    assert np.array_equal(rows, equal_embeddings[:, :51])


def test_a_query_with_many_positives_makes_no_other_search_deeper(tmp_path: Path) -> None:
    texts = [passage["text"] for passage in CORPUS]
    groups = [{"query": "사과", "pos": texts[:30]}, {"query": "나무", "pos": texts[:1]}]
    name = encoder(tmp_path)
    mine(tmp_path, groups, retriever=Retriever.fused, dense__model=name, window=[1, 5])
    for search in (tmp_path / "out" / "cache").glob("*-search-*"):
        assert (Blocks(search).get(0)["places"] >= 0).sum(axis=1).tolist() == [35, 6]


def test_a_reranker_drops_what_it_holds_for_right_and_its_scores_are_written(tmp_path: Path) -> None:
    name = str(tiny_model(tmp_path / "model", seed=3))
    free = mine(tmp_path, rescore__model=name, rescore__margin=None, teacher=Teacher.rescore, negatives=8)
    strict = mine(tmp_path, rescore__model=name, rescore__margin=0.99, teacher=Teacher.rescore, negatives=8)
    for group in strict:
        assert group.pos_scores is not None
        assert group.neg_scores is not None
        limit = 0.99 * min(map(filters.probability, group.pos_scores))
        mined = [score for text, score in zip(group.neg, group.neg_scores, strict=True) if text != CORPUS[40]["text"]]
        assert all(filters.probability(score) <= limit + 1e-4 for score in mined)
    assert sum(len(group.neg) for group in free) == 24
    assert free != strict
