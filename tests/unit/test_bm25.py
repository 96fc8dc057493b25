"""The lexical first stage: what it finds, in which order, and what it says about a wrong analyzer."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest

from reranker.errors import UserError
from reranker.prepare.bm25 import ANALYZERS, BM25Index, analyze

TEXTS = [
    "파일 관리자를 열고 폴더를 선택합니다.",
    "네트워크 설정에서 암호를 바꿀 수 있습니다.",
    "글꼴 크기는 Writer 문서의 서식 메뉴에 있습니다.",
    "압축 파일에 암호를 걸면 다른 사람이 열 수 없습니다.",
]


@pytest.mark.parametrize("analyzer", ANALYZERS)
def test_the_passage_about_the_query_comes_first(analyzer: str) -> None:
    rankings = BM25Index(TEXTS, analyzer).search(["압축 파일에 암호", "writer 글꼴 크기"], depth=4)
    assert [ranking[0][0] for ranking in rankings] == [3, 2]
    for ranking in rankings:
        scores = [score for _, score in ranking]
        assert len(ranking) == 4
        assert scores == sorted(scores, reverse=True)


def test_kiwi_matches_a_verb_under_another_ending_where_words_do_not() -> None:
    assert BM25Index(TEXTS, "kiwi").search(["폴더 선택하기"], 1)[0][0][0] == 0
    assert BM25Index(TEXTS, "words").search(["선택하기"], 1)[0][0][1] == 0.0
    assert BM25Index(TEXTS, "kiwi").search(["선택하기"], 1)[0][0][1] > 0.0


def test_analyzers_keep_what_they_promise() -> None:
    text = "LibreOffice 7.4에서 표를 만들었습니다."
    kiwi, words, bigrams = (analyze([text], name)[0] for name in ("kiwi", "words", "bigrams"))
    assert {"libreoffice", "표", "만들"} <= set(kiwi)
    assert not {"에서", "를", "습니다", "."} & set(kiwi)
    assert words == ["libreoffice", "7", "4에서", "표를", "만들었습니다"]
    assert bigrams == ["libreoffice", "7", "4", "에서", "표를", "만들", "들었", "었습", "습니", "니다"]


@pytest.mark.parametrize("analyzer", ANALYZERS)
def test_decomposed_hangul_matches_composed(analyzer: str) -> None:
    decomposed = unicodedata.normalize("NFD", TEXTS[1])
    assert decomposed != TEXTS[1]
    assert analyze([decomposed], analyzer) == analyze([TEXTS[1]], analyzer)


def test_equal_scores_keep_the_order_of_the_indices() -> None:
    texts = ["사과 바나나", "배 포도", "사과 바나나", "사과 바나나"]
    index = BM25Index(texts, "words")
    assert [found for found, _ in index.search(["사과"], 2)[0]] == [0, 2]
    assert [found for found, _ in index.search(["사과"], 4)[0]] == [0, 2, 3, 1]


def test_a_query_without_a_known_token_scores_zero_in_the_order_of_the_indices() -> None:
    index = BM25Index(TEXTS, "words")
    for query in ("알수없음", "", "?!"):
        assert index.search([query], 3)[0] == [(0, 0.0), (1, 0.0), (2, 0.0)]


def test_depth_is_bounded_by_the_number_of_texts() -> None:
    assert len(BM25Index(TEXTS, "words").search(["암호"], 100)[0]) == 4
    assert BM25Index([], "words").search(["암호"], 5) == [[]]
    assert BM25Index(["", "..."], "words").search(["암호"], 5) == [[(0, 0.0), (1, 0.0)]]


def test_scores_are_those_of_the_bm25_formula() -> None:
    import math

    texts, k1, b = ["a b b", "a c", "d e f g"], 0.9, 0.4
    ((first, score), *_) = BM25Index(texts, "words", k1=k1, b=b).search(["b"], 1)[0]
    inverse_frequency = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = inverse_frequency * 2 / (2 + k1 * (1 - b + b * 3 / 3))
    assert first == 0
    assert score == pytest.approx(expected, rel=1e-6)


def test_an_unknown_analyzer_is_told_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"first_stage.analyzer: found 'kiwii', expected one of kiwi, .* mean kiwi\?"):
        BM25Index(TEXTS, "kiwii")


def test_importing_the_module_loads_no_morphological_model() -> None:
    code = "import sys, reranker.prepare.bm25; sys.exit(any(m in sys.modules for m in ('kiwipiepy', 'bm25s', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
