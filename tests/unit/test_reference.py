"""The reference's has-right-in-contexts and MRR, against a transcription of its definition, and where strict ones differ."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.config.common import FirstStageConfig
from reranker.config.models import EvaluateConfig
from reranker.evaluate.measures import measure
from reranker.evaluate.report import evaluate_command
from tests.tiny import tiny_model

TEXTS = st.sampled_from(["a", "b", "c", "d"])


def as_the_notebook_says(contexts: list[str], doc: str) -> tuple[float, float]:
    """(has_right_context, mrr) of one line: a dictionary of texts, in which a later one replaces an earlier one."""
    retrieved = {text: place + 1 for place, text in enumerate(contexts)}
    return (1.0, 1 / retrieved[doc]) if doc in retrieved else (0.0, 0.0)


@given(st.lists(TEXTS, max_size=8), TEXTS, st.integers(1, 6))
def test_the_references_measures_are_those_of_its_notebook(ranked: list[str], doc: str, k: int) -> None:
    ids = [f"{place}" for place in range(len(ranked))]
    text_of = {**dict(zip(ids, ranked, strict=True)), "right": doc}
    found = [
        measure(f"reference_{name}", k).of(ids, ["right"], text_of.__getitem__) for name in ("has_right_context", "mrr")
    ]
    assert found == list(as_the_notebook_says(ranked[:k], doc))


def both(ranked: list[str], text_of: dict[str, str], contexts: int = 3) -> list[tuple[float, float]]:
    """(strict, the reference's) of has-right-in-contexts and of MRR."""
    pairs = (("has_right_in_contexts", "reference_has_right_context"), ("mrr", "reference_mrr"))
    return [
        (measure(strict, contexts).of(ranked, ["r"]), measure(theirs, contexts).of(ranked, ["r"], text_of.__getitem__))
        for strict, theirs in pairs
    ]


def test_where_the_strict_measures_differ_from_the_references() -> None:
    texts = {"r": "옳은 글", "x": "다른 글", "y": "또 다른 글", "z": "글", "twin": "옳은 글"}
    assert both(["x", "r", "y"], texts) == [(1, 1), (1 / 2, 1 / 2)]  # where nothing of the following is, they agree
    assert both(["x", "twin", "y"], texts) == [(0, 1), (0, 1 / 2)]  # 1: another id, the same text
    assert both(["r", "x", "twin"], texts) == [(1, 1), (1, 1 / 3)]  # 2: handed on twice, ranked where it comes last
    assert both(["x", "y", "z", "r"], texts) == [(0, 0), (1 / 4, 0)]  # 3: beyond the contexts


def test_the_seeds_csv_is_evaluated_end_to_end(tmp_path: Path) -> None:
    docs = {
        "72e988a4": ".관리 모드에서는 앱 기능이 줄어듭니다. \"프로필\"을 만드세요,\n그리고 저장하세요.",
        "0e7b9978": "문제 해결.추가 작업 메뉴 아이콘을 누릅니다.", "7963a938": "스캐너 설정을 변경하려면 저장을 누르세요.",
        "323a0ce8": "구성 데이터를 배포하세요.", "copy-of": "문제 해결.추가 작업 메뉴 아이콘을 누릅니다.",
    }  # fmt: skip
    asked = [("메뉴 아이콘", "0e7b9978"), ("관리 모드 프로필", "72e988a4"), ("메뉴 아이콘을 누릅니다", "copy-of"),
             ("저장을", "323a0ce8"), ("스캐너 설정", "7963a938")]  # fmt: skip
    with (tmp_path / "eval_dataset.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer", "doc_id", "doc"])
        writer.writerows([query, "답", name, docs[name]] for query, name in asked)
    tiny_model(tmp_path / "model")
    metrics = ["has_right_in_contexts", "mrr", "reference_has_right_context", "reference_mrr"]
    evaluate_command(EvaluateConfig(
        model=str(tmp_path / "model"), sets={"seed": str(tmp_path / "eval_dataset.csv")}, metrics=metrics, depth=5,
        contexts=3, first_stage=FirstStageConfig(analyzer="bigrams"), resamples=200, output=str(tmp_path / "report"),
    ))  # fmt: skip
    rows = json.loads((tmp_path / "report/table.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "report/queries.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == [query for query, _ in asked]
    for row in rows:
        expected = []
        for line, (_, name) in zip(lines, asked, strict=True):
            ranked = [line["candidates"][place] for place in line["order"][row["system"]]]
            expected.append(as_the_notebook_says([docs[each] for each in ranked[:3]], docs[name]))
        has_right, mrr = (sum(values) / len(asked) for values in zip(*expected, strict=True))
        assert row["reference_has_right_context"]["value"] == pytest.approx(has_right)
        assert row["reference_mrr"]["value"] == pytest.approx(mrr)
    assert rows[0]["reference_mrr"]["value"] != rows[0]["mrr"]["value"]  # the copy is in it
