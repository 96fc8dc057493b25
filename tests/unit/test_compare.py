"""`reranker evaluate compare`: queries won and lost, with texts, of two reports or of two systems of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from reranker import cli
from reranker.config.common import FirstStageConfig
from reranker.config.evaluating import CompareConfig
from reranker.config.models import EvaluateConfig
from reranker.errors import UserError
from reranker.evaluate.compare import _short, compare_command
from reranker.evaluate.report import evaluate_command
from tests.tiny import tiny_model

TEXTS = {
    f"{topic}-{action}": f"{topic} {action} 방법을 알려 드립니다"
    for topic in ("창문", "글꼴", "소리", "화면", "파일") for action in ("열기", "닫기", "바꾸기", "지우기")
}  # fmt: skip


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports `a` (with a base) and `b` of two models on two sets, and `part` of one of them on fewer queries."""
    directory = tmp_path_factory.mktemp("reports")
    passages = [{"id": name, "text": text} for name, text in TEXTS.items()]
    queries = [{"qid": name, "query": text[:-13], "pos": name} for name, text in TEXTS.items()]
    for name, records in (("corpus", passages), ("queries", queries), ("few", queries[3:9])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for seed in range(2):
        tiny_model(directory / f"model-{seed}", seed=seed)

    def own(queries: str) -> dict[str, str]:
        return {
            "form": "own",
            "corpus": str(directory / "corpus.jsonl"),
            "queries": str(directory / f"{queries}.jsonl"),
        }

    def evaluate(report: str, model: int, sets: dict[str, Any], **more: Any) -> None:
        evaluate_command(EvaluateConfig(
            model=str(directory / f"model-{model}"), sets=sets, depth=8, resamples=100, permutations=100,
            first_stage=FirstStageConfig(analyzer="words"), output=str(directory / report), **more,
        ))  # fmt: skip

    both = {"all": own("queries"), "few": own("few")}
    evaluate("a", 0, both, base=str(directory / "model-1"))
    evaluate("b", 1, both)
    evaluate("part", 1, {"few": own("few")})
    evaluate("deep", 1, {"few": own("few") | {"depth": 12}}, max_length=16)
    evaluate("one", 1, both, contexts=1)
    return directory


def values(report: Path, system: str, metric: str = "mrr") -> dict[tuple[str, str], float]:
    lines = [json.loads(line) for line in (report / "queries.jsonl").read_text().splitlines()]
    return {(line["set"], line["qid"]): line["metrics"][system][metric] for line in lines}


def test_queries_won_and_lost_are_listed_with_their_texts(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = reports / "compared.jsonl"
    config = CompareConfig(
        str(reports / "a"), str(reports / "b"), show=2, output=str(output), permutations=200, resamples=200
    )
    assert compare_command(config) == 0
    a, b = values(reports / "a", "fine-tuned"), values(reports / "b", "fine-tuned")
    won = [name for name in a if a[name] > b[name]]
    lost = [name for name in a if a[name] < b[name]]
    assert won
    assert lost
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert {(record["set"], record["qid"]) for record in records} == {*won, *lost}
    assert [record["A"] > record["B"] for record in records] == [True] * len(won) + [False] * len(lost)
    gaps = [abs(record["A"] - record["B"]) for record in records]
    assert gaps[: len(won)] == sorted(gaps[: len(won)], reverse=True)
    for record in records:
        (right,) = record["right"]
        assert right["text"] == TEXTS[record["qid"]]
        assert [1 / rank for rank in right["ranks"].values()] == pytest.approx([record["A"], record["B"]])
        for side in ("A", "B"):
            top = record["first"][side]
            assert top["text"] == TEXTS[top["id"]]
            assert (record[side] == 1) == (top["id"] == record["qid"])
    out = capsys.readouterr().out
    assert f"26 queries: {len(won)} won by A, {len(a) - len(won) - len(lost)} tied, {len(lost)} lost\n" in out
    of_sets = [np.mean([a[name] - b[name] for name in a if name[0] == which]) for which in ("all", "few")]
    assert f"A minus B {np.mean(of_sets):+.3f} [" in out
    assert "the mean over 2 sets" in out
    assert out.count("won by A  mrr") == min(2, len(won))
    assert TEXTS[records[0]["qid"]] in out


def test_two_systems_of_one_report_are_two_models_of_two(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*sides: str) -> list[str]:
        assert cli.main(["evaluate", "compare", *sides, "show=3"]) == 0
        return capsys.readouterr().out.splitlines()[2:]

    # The base of `a` is the model of `b`.
    assert told(f"{reports}/a", f"{reports}/a:base") == told(f"{reports}/a:fine-tuned", f"{reports}/b")
    assert told(f"{reports}/a", f"{reports}/b") != told(f"{reports}/b", f"{reports}/a")


def test_queries_that_one_report_has_alone_are_counted(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_command(CompareConfig(str(reports / "a"), str(reports / "part"), metric="ndcg@10")) == 0
    out = capsys.readouterr().out
    assert "6 queries: " in out
    assert "; 20 only in A, 0 only in B" in out
    assert "sets" not in out


def test_settings_that_differ_are_told(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_command(CompareConfig(str(reports / "a"), str(reports / "deep"))) == 0
    assert capsys.readouterr().out.splitlines()[2:5] == [
        "   other max_length: A None, B 16", "   other depth of few: A 8, B 12", "",
    ]  # fmt: skip
    assert compare_command(CompareConfig(str(reports / "a"), str(reports / "one"))) == 0  # mrr looks at all ranks
    assert "other" not in capsys.readouterr().out


def test_a_long_text_is_cut_to_the_width_of_the_terminal_whether_it_has_blanks_or_not() -> None:
    for text in ("가" * 300, "가나 다라 " * 80, "x" * 300):
        line = _short("query", text, 80)
        assert line.endswith(" …")
        assert 74 <= cell_len(line) <= 80
        assert text.startswith(line.split("  ", 2)[-1].strip().removesuffix(" …"))
    assert _short("query", "짧은\n글", 80) == "  query                 짧은 글"


def test_evaluate_stays_a_command_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "corpus=c", "queries=q"]) == 2
    assert "model: found no value" in capsys.readouterr().err
    assert cli.main(["evaluate", "--help"]) == 0
    assert "usage: reranker evaluate key=value" in capsys.readouterr().out
    assert cli.main(["evaluate", "compare", "a"]) == 2
    assert "second: found no value" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(reports: Path, tmp_path: Path) -> None:
    def refusal(first: Path | str, second: Path | str, **more: Any) -> str:
        with pytest.raises(UserError) as caught:
            compare_command(CompareConfig(str(first), str(second), **more))
        return str(caught.value)

    a = reports / "a"
    assert refusal("no_such_report", a).startswith("no_such_report/details.json: found no such file")
    assert refusal(a, reports / "one", metric="has_right_in_contexts") == (
        f"{reports}/one: found has_right_in_contexts among contexts=1, expected 5, as in {a}; evaluate both with the "
        "same contexts, or has_right_in_contexts@k"
    )
    before = (reports / "b/queries.jsonl").read_bytes()
    for output in (a / "queries.jsonl", reports / "b/queries.jsonl", reports / "b/new/compared.jsonl"):
        assert "within the report" in refusal(a, reports / "b", output=str(output))
    assert (reports / "b/queries.jsonl").read_bytes() == before
    assert refusal(a, tmp_path) == (
        f"{tmp_path}/details.json: found no such file, expected a JSON file; name a directory that reranker evaluate has written"
    )
    assert (
        refusal(a, f"{a}:bsae")
        == f"{a}: system: found bsae, expected one of without-reranker, base, fine-tuned, fused; did you mean base?"
    )
    assert (
        refusal(a, reports / "b", metric="map")
        == f"{a}: metric: found map, expected one of has_right_in_contexts, mrr, ndcg@10; choose one"
    )
    shutil.copytree(a, tmp_path / "torn")
    path = tmp_path / "torn/queries.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    assert "queries.jsonl: found another file than the report's" in refusal(a, tmp_path / "torn")
