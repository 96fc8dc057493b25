"""Sets of every form: the same queries come out, and each counts once."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reranker.config.common import FirstStageConfig
from reranker.config.evaluating import SetForm
from reranker.config.models import EvaluateConfig
from reranker.errors import UserError
from reranker.evaluate.crew import Alone
from reranker.evaluate.first_stage import find
from reranker.evaluate.measures import measure
from reranker.evaluate.report import evaluate_command
from reranker.evaluate.sets import sets_of
from tests.evaluation import ACTIONS, TOPICS, texts_of
from tests.tiny import tiny_encoder

TEXTS = texts_of(TOPICS[:5], ACTIONS[:3])
ASKED = {f"q{number}": name for number, name in enumerate(TEXTS)}


def question(name: str) -> str:
    return TEXTS[name].removesuffix(" 방법을 알려 드립니다")


def lines(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The same passages and queries in every form."""
    passages = [{"id": name, "text": text} for name, text in TEXTS.items()]
    lines(tmp_path / "own/corpus.jsonl", *passages)
    lines(
        tmp_path / "own/queries.jsonl",
        *({"qid": qid, "query": question(name), "pos": name} for qid, name in ASKED.items()),
    )
    lines(tmp_path / "beir/corpus.jsonl", *({"_id": name, "title": "", "text": text} for name, text in TEXTS.items()))
    lines(tmp_path / "beir/queries.jsonl", *({"_id": qid, "text": question(name)} for qid, name in ASKED.items()),
          {"_id": "other", "text": "다른 나눔의 질문"})  # fmt: skip
    lines(
        tmp_path / "beir/qrels/test.tsv",
        "query-id\tcorpus-id\tscore",
        *(f"{qid}\t{name}\t1" for qid, name in ASKED.items()),
    )
    lines(tmp_path / "beir/qrels/train.tsv", "query-id\tcorpus-id\tscore", "other\t창문-열기\t1")
    lines(tmp_path / "trec/qrels.txt", *(f"{qid} 0 {name} 1" for qid, name in ASKED.items()))
    lines(tmp_path / "trec/corpus.tsv", *(f"{name}\t{text}" for name, text in TEXTS.items()))
    lines(tmp_path / "trec/queries.tsv", *(f"{qid}\t{question(name)}" for qid, name in ASKED.items()))
    with (tmp_path / "eval.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer", "doc_id", "doc"])
        writer.writerows([question(name), '답, "여기"\n두 줄', name, TEXTS[name]] for name in ASKED.values())
    pairs = [
        (question(name), TEXTS[name], [text for other, text in TEXTS.items() if other != name])
        for name in ASKED.values()
    ]
    lines(tmp_path / "groups.jsonl", *({"query": query, "pos": [right], "neg": rest} for query, right, rest in pairs))
    lines(
        tmp_path / "reranking.jsonl",
        *({"query": query, "positive": [right], "negative": rest} for query, right, rest in pairs),
    )
    return tmp_path


@pytest.fixture
def settings(data: Path, models: Path) -> Callable[..., EvaluateConfig]:
    def config(**changes: Any) -> EvaluateConfig:
        values: dict[str, Any] = {
            "model": str(models / "tuned"), "depth": 6, "contexts": 2, "resamples": 200, "permutations": 200,
            "first_stage": FirstStageConfig(analyzer="words"), "output": str(data / "report"),
        }  # fmt: skip
        return EvaluateConfig(**values | changes)

    return config


def candidates(config: EvaluateConfig) -> tuple[Any, list[list[str]]]:
    (one,) = sets_of(config)
    material = one.read()
    return material, find(one, material, material.queries, Alone(), "cpu")


@pytest.mark.parametrize(
    ("path", "form"),
    [("own", SetForm.own), ("beir", SetForm.beir), ("trec", SetForm.trec), ("trec/qrels.txt", SetForm.trec),
     ("eval.csv", SetForm.csv)],
)  # fmt: skip
def test_every_form_gives_the_same_queries_and_candidates(
    settings: Callable[..., EvaluateConfig], data: Path, path: str, form: SetForm
) -> None:
    more = (
        {}
        if path != "trec/qrels.txt"
        else {"corpus": str(data / "trec/corpus.tsv"), "queries": str(data / "trec/queries.tsv")}
    )
    config = settings(sets={"a": {"path": str(data / path), **more}})
    assert sets_of(config)[0].form is form
    expected, wanted = candidates(
        settings(corpus=str(data / "own/corpus.jsonl"), queries=str(data / "own/queries.jsonl"))
    )
    material, found = candidates(config)
    assert [(query.query, query.judged) for query in material.queries] == [
        (query.query, query.judged) for query in expected.queries
    ]
    assert [query.cluster for query in material.queries] == [query.cluster for query in expected.queries]
    assert found == wanted
    assert all(len(names) == 6 for names in found)


@pytest.mark.parametrize("name", ["groups", "reranking"])
def test_a_set_that_comes_with_candidates_ranks_them_all(
    settings: Callable[..., EvaluateConfig], data: Path, name: str
) -> None:
    evaluate_command(settings(sets={"a": str(data / f"{name}.jsonl")}))
    rows = json.loads((data / "report/table.json").read_text())
    assert [row["system"] for row in rows] == ["fine-tuned"]  # there is no first stage to be compared with
    queries = [json.loads(line) for line in (data / "report/queries.jsonl").read_text().splitlines()]
    assert [len(query["candidates"]) for query in queries] == [len(TEXTS)] * len(ASKED)
    assert len({query["candidates"][0] for query in queries}) == len(TEXTS)  # texts are passages, each once
    expected = []
    for query in queries:
        scores = query["scores"]["fine-tuned"]
        expected.append(1 / sum(score >= scores[0] for score in scores))  # the right one is the first of the line
    assert rows[0]["mrr"]["value"] == pytest.approx(np.mean(expected))


def test_a_run_is_ordered_by_its_scores_and_a_query_that_it_lacks_counts_as_zero(
    settings: Callable[..., EvaluateConfig], data: Path
) -> None:
    # The ranks contradict the scores: trec_eval looks at these alone.
    run = lines(
        data / "run.trec",
        "q0 Q0 창문-닫기 1 0.5 t",
        "q0 Q0 창문-열기 2 0.9 t",
        "q0 Q0 글꼴-열기 3 0.9 t",
        "q1 Q0 창문-닫기 1 2 t",
    )
    config = settings(
        sets={"a": {"path": str(data / "beir"), "run": str(run), "depth": 2}}, metrics=["mrr", "recall@2"]
    )
    _, found = candidates(config)
    assert found[:3] == [
        ["글꼴-열기", "창문-열기"],
        ["창문-닫기"],
        [],
    ]  # a tie is broken against the run, also where it is cut
    evaluate_command(config)
    row = json.loads((data / "report/table.json").read_text())[0]
    assert row["queries"] == len(ASKED)
    assert row["mrr"]["value"] == pytest.approx((1 / 2 + 1) / len(ASKED))
    assert row["recall@2"]["value"] == pytest.approx(2 / len(ASKED))


def test_an_encoder_finds_the_nearest_passages_on_any_number_of_ranks(
    settings: Callable[..., EvaluateConfig], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    from reranker.evaluate import first_stage

    encoder = tiny_encoder(data / "encoder")
    config = settings(sets={"a": {"path": str(data / "beir"), "stage": "dense", "dense": {"model": str(encoder)}}})
    monkeypatch.setattr(first_stage, "TEXTS", 4)
    material, found = candidates(config)
    model = SentenceTransformer(str(encoder), device="cpu")
    texts, asked = (
        model.encode(values, normalize_embeddings=True)
        for values in (list(TEXTS.values()), [query.query for query in material.queries])
    )
    cosines = np.round(asked @ texts.T, 5)
    for names, scores in zip(found, cosines, strict=True):
        by_name = dict(zip(TEXTS, scores.tolist(), strict=True))
        assert [by_name[name] for name in names] == pytest.approx(sorted(scores.tolist(), reverse=True)[:6], abs=2e-5)

    class Third(Alone):
        """Three ranks, one after another."""

        shares: list[Any] = []  # noqa: RUF012

        def gather(self, value: Any) -> Any:
            Third.shares.append(value)
            return list(Third.shares)

    (one,) = sets_of(config)
    for rank in range(3):
        last = find(one, material, material.queries, Third(rank=rank, world=3), "cpu")
    assert last == found


def test_several_sets_have_a_table_each_and_one_over_all_in_which_each_counts_alike(
    settings: Callable[..., EvaluateConfig], data: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = lines(data / "small.jsonl", {"qid": "s", "query": "파일 닫기", "pos": "글꼴-닫기"})
    sets = {
        "own-docs": str(data / "own"), "beir": {"path": str(data / "beir"), "depths": [3]},
        "small": {"form": "own", "corpus": str(data / "own/corpus.jsonl"), "queries": str(small)},
    }  # fmt: skip
    config = settings(sets=sets, base=str(models / "base"))
    evaluate_command(config)
    rows = json.loads((data / "report/table.json").read_text())
    details = json.loads((data / "report/details.json").read_text())
    assert [row["system"] for row in rows] == ["without-reranker", "base", "fine-tuned", "fused"]
    assert list(details["sets"]) == list(sets)
    for place, row in enumerate(rows):
        of_sets = [found["rows"][place] for found in details["sets"].values()]
        assert row["queries"] == 2 * len(ASKED) + 1
        for metric in config.metrics:
            assert row[metric]["value"] == pytest.approx(np.mean([each[metric]["value"] for each in of_sets]))
            assert row[metric]["low"] <= row[metric]["value"] <= row[metric]["high"]
    for difference in details["differences"]:
        assert 0 < difference["mrr"]["p"] <= difference["mrr"]["p_holm"] <= 1
    shallow = details["sets"]["beir"]["depths"]["3"]
    assert [row["system"] for row in shallow] == [row["system"] for row in rows]
    lines_of = [json.loads(line) for line in (data / "report/queries.jsonl").read_text().splitlines()]
    assert [line["set"] for line in lines_of] == ["own-docs"] * len(ASKED) + ["beir"] * len(ASKED) + ["small"]
    texts = [json.loads(line) for line in (data / "report/passages.jsonl").read_text().splitlines()]
    known = {(text["set"], text["id"]) for text in texts}
    assert known >= {(line["set"], name) for line in lines_of for name in (*line["candidates"], *line["judged"])}
    markdown = (data / "report/table.md").read_text()
    for heading in ("## all sets", "## own-docs", "## beir", "## small", "At depth 3:"):
        assert heading in markdown
    shown = capsys.readouterr().out
    assert "…" not in shown
    at_3 = shown[shown.index("At depth 3:") :].splitlines()
    for row in shallow:
        cells = [f"{row[metric]['value']:.3f}" for metric in config.metrics]
        assert [row["system"], *cells] in [line.split() for line in at_3[: 3 + 3 * len(shallow)]]
    evaluate_command(config)
    assert "inputs unchanged" in capsys.readouterr().out
    sets["beir"]["depths"] = [4]  # type: ignore[index]
    evaluate_command(settings(sets=sets, base=str(models / "base")))
    assert "inputs unchanged" not in capsys.readouterr().out


def test_grades_count_and_a_query_of_which_nothing_is_relevant_stays(
    settings: Callable[..., EvaluateConfig], data: Path
) -> None:
    lines(data / "beir/qrels/test.tsv", "q0\t창문-열기\t3", "q0\t글꼴-열기\t1", "q1\t창문-닫기\t0", "q2\tnowhere\t2")
    material, found = candidates(settings(sets={"a": str(data / "beir")}))
    assert [query.judged for query in material.queries] == [
        {"창문-열기": 3, "글꼴-열기": 1},
        {"창문-닫기": 0},
        {"nowhere": 2},
    ]
    evaluate_command(settings(sets={"a": str(data / "beir")}, metrics=["ndcg@2"]))
    rows = json.loads((data / "report/table.json").read_text())
    expected = measure("ndcg@2", 5).of(found[0], material.queries[0].judged)
    assert rows[0]["ndcg@2"]["value"] == pytest.approx(expected / 3)
    assert json.loads((data / "report/details.json").read_text())["sets"]["a"]["without_relevant"] == 1


def test_an_id_may_hold_a_blank_where_tabs_are_the_columns(settings: Callable[..., EvaluateConfig], data: Path) -> None:
    lines(
        data / "beir/corpus.jsonl",
        {"_id": "my doc", "title": "", "text": "창문 열기"},
        {"_id": "doc", "title": "", "text": "소리"},
    )
    lines(data / "beir/qrels/test.tsv", "query-id\tcorpus-id\tscore", "q0\tmy doc\t1")
    run = lines(data / "run.trec", "q0\tQ0\tmy doc\t1\t0.5\tt")
    material, found = candidates(settings(sets={"a": {"path": str(data / "beir"), "run": str(run)}}))
    assert [query.judged for query in material.queries] == [{"my doc": 1}]
    assert found == [["my doc"]]


def test_how_many_judged_passages_the_corpus_lacks_is_told(
    settings: Callable[..., EvaluateConfig], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_command(settings(sets={"a": str(data / "beir")}))
    assert "judged passages" not in capsys.readouterr().err
    lines(data / "beir/qrels/test.tsv", "q0\t창문-열기\t1", "q0\tgone\t0", "q1\tnowhere\t1")
    evaluate_command(settings(sets={"a": str(data / "beir")}))
    told = f"test.tsv: 2 of 3 judged passages are not in {data}/beir/corpus.jsonl and count as not found"
    assert told in capsys.readouterr().err


def test_a_query_of_rerankings_without_positives_counts_as_zero_and_one_without_negatives_as_it_is_ranked(
    settings: Callable[..., EvaluateConfig], data: Path
) -> None:
    lines(
        data / "reranking.jsonl",
        {"query": "창문", "positive": [], "negative": ["소리", "화면"]},
        {"query": "글꼴", "positive": ["글꼴 열기"], "negative": []},
        {"query": "파일", "positive": [], "negative": ["소리"]},
    )
    config = settings(sets={"a": str(data / "reranking.jsonl")})
    material, found = candidates(config)
    assert [len(names) for names in found] == [2, 1, 1]
    assert len({query.cluster for query in material.queries}) == 3
    evaluate_command(config)
    queries = [json.loads(line) for line in (data / "report/queries.jsonl").read_text().splitlines()]
    assert [query["metrics"]["fine-tuned"]["mrr"] for query in queries] == [0, 1, 0]
    assert json.loads((data / "report/details.json").read_text())["sets"]["a"]["without_relevant"] == 2


def test_a_passage_has_one_cluster_in_all_sets_that_come_with_their_candidates(
    settings: Callable[..., EvaluateConfig], data: Path
) -> None:
    lines(data / "other.jsonl", *({"query": "나", "pos": [text], "neg": ["가"]} for text in ("다", *TEXTS.values())))
    config = settings(sets={"a": str(data / "groups.jsonl"), "b": str(data / "other.jsonl")})
    first, second = ([query.cluster for query in one.read().queries] for one in sets_of(config))
    assert second[1:] == first
    assert second[0] not in first


@pytest.mark.parametrize(
    ("name", "kind"),
    [("groups.jsonl", "a groups file"), ("reranking.jsonl", "a file of form=reranking"), ("beir", "a directory")],
)
def test_a_set_without_a_name_is_told_how_to_have_one(
    name: str, kind: str, settings: Callable[..., EvaluateConfig], data: Path
) -> None:
    with pytest.raises(UserError) as caught:
        sets_of(settings(sets=str(data / name)))
    assert str(caught.value) == (
        f"sets: found {data / name}, {kind}, expected sets by their names; say sets={{NAME: {data / name}}}"
    )
    # A file of sets may be JSON in one line as well.
    (data / "sets.yaml").write_text(json.dumps({"a": str(data / name)}), "utf-8")
    assert [one.name for one in sets_of(settings(sets=str(data / "sets.yaml")))] == ["a"]


def test_a_depth_and_contexts_matter_only_where_a_first_stage_has_a_depth(
    settings: Callable[..., EvaluateConfig], data: Path
) -> None:
    (one,) = sets_of(settings(sets={"a": str(data / "groups.jsonl")}, contexts=50))
    assert one.depths == ()
    with pytest.raises(UserError, match=r"contexts: found 50, expected at most sets\.b\.depth=6"):
        sets_of(settings(sets={"a": str(data / "groups.jsonl"), "b": str(data / "beir")}, contexts=50))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.csv.gz", gzip.compress(b"question,answer,doc_id,doc\nq,a,d,text\n" * 50, mtime=0)[:-12]),
        ("false.csv.gz", b"question,answer,doc_id,doc\nq,a,d,text\n"),
    ],
    ids=["cut", "false"],
)
def test_a_set_that_cannot_be_read_to_its_end_is_told(
    settings: Callable[..., EvaluateConfig], tmp_path: Path, models: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: found a file that cannot be read to its end"):
        evaluate_command(settings(sets={"a": str(tmp_path / name)}))


def test_an_input_that_the_system_refuses_to_read_is_told(settings: Callable[..., EvaluateConfig], data: Path) -> None:
    (data / "own/queries.jsonl").unlink()
    (data / "own/queries.jsonl").symlink_to("/proc/self/mem")  # a file, and reading it is an error
    with pytest.raises(UserError, match=r"queries\.jsonl: found a file that cannot be read \("):
        evaluate_command(settings(sets={"a": {"path": str(data / "own")}}))


def test_the_time_of_a_query_is_measured_on_request(
    settings: Callable[..., EvaluateConfig], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_command(settings(sets={"a": str(data / "own")}, latency=4))
    rows = {row["system"]: row for row in json.loads((data / "report/table.json").read_text())}
    assert [name for name, row in rows.items() if "latency" in row] == ["fine-tuned"]
    found = rows["fine-tuned"]["latency"]
    assert found["queries"] == 4
    assert 0 < found["median"] <= found["p95"]
    cell = f"{1000 * found['median']:.1f} / {1000 * found['p95']:.1f}"
    assert f"| {cell} |" in (data / "report/table.md").read_text()
    assert f"fine-tuned {cell}." in " ".join(capsys.readouterr().out.split())


def test_sets_can_be_a_yaml_file(settings: Callable[..., EvaluateConfig], data: Path) -> None:
    (data / "sets.yaml").write_text(f"a:\n  path: {data}/beir\n  split: train\nb: {data}/eval.csv\n")
    found = sets_of(settings(sets=str(data / "sets.yaml")))
    assert [(one.name, one.form) for one in found] == [("a", SetForm.beir), ("b", SetForm.csv)]
    assert found[0].files["qrels"].name == "train.tsv"


MISTAKES = {
    "two ways": ({"sets": {"a": "beir"}, "corpus": "x"}, "sets: found sets= beside corpus= or queries=, expected one or the other; make the two a set of their own"),
    "none": ({}, "corpus: found no value, expected passages and queries, or sets of them; say corpus=... or sets=..."),
    "key": ({"sets": {"a": {"pth": "beir"}}}, "sets.a.pth: found Key 'pth' not in 'SetConfig', expected one of the keys path, form, corpus, queries, qrels, split, stage, run, bm25, dense, depth, depths; did you mean path?"),
    "missing": ({"sets": {"a": "nowhere"}}, "sets.a.path: found nowhere, which does not exist, expected a file or directory; check the path"),
    "split": ({"sets": {"a": {"path": "beir", "split": "dev"}}}, "sets.a.split: found ['test.tsv', 'train.tsv'] in beir, expected dev.tsv in qrels/; say sets.a.split=... or sets.a.qrels=..."),
    "stage": ({"sets": {"a": {"path": "groups.jsonl", "stage": "bm25"}}}, "sets.a.stage: found a first stage for form=groups, expected none; leave stage and run out: the candidates come with it"),
    "encoder": ({"sets": {"a": {"path": "beir", "stage": "dense"}}}, "sets.a.dense.model: found no value, expected an encoder; say sets.a.dense.model=..."),
    "form": ({"sets": {"a": "trec/corpus.tsv"}}, "sets.a.path: found trec/corpus.tsv, whose name and first line tell no form, expected groups, BEIR, TREC, MTEB's reranking, a csv, or corpus and queries; say sets.a.form=..."),
    "depth": ({"sets": {"a": {"path": "beir", "depth": 1}}}, "contexts: found 2, expected at most sets.a.depth=1; raise depth or lower it"),
    "grade": ({"sets": {"a": {"path": "beir", "qrels": "bad.tsv"}}}, "bad.tsv:2: found 'q1 창문-닫기 0.5', expected qid<tab>pid<tab>grade, or TREC's qid 0 pid grade; write whole grades"),
    "run": ({"sets": {"a": {"path": "beir", "run": "bad.trec"}}}, "bad.trec:2: found passage 창문-열기 for query q0 once more, expected each once; remove one"),
    "csv": ({"sets": {"a": "bad.csv"}}, "bad.csv, record 2: found another text of doc_id d, expected one text for each; give one another doc_id"),
    "comma": ({"sets": {"a": "comma.csv"}}, "comma.csv, record 2: found 5 columns, expected 4; quote texts that hold commas"),
    "short": ({"sets": {"a": "short.csv"}}, "short.csv, record 1: found 3 columns, expected 4; quote texts that hold commas"),
    "other corpus": ({"sets": {"a": {"path": "beir", "qrels": "other.tsv"}}}, "other.tsv: found judgements of other passages alone, such as '1', expected ids of beir/corpus.jsonl; take the judgements of this corpus"),
    "second query": ({"sets": {"a": {"path": "beir", "queries": "twice.jsonl"}}}, "twice.jsonl:2: found a second query \"q0\", expected ids that differ; rename or remove one"),
    "second passage": ({"sets": {"a": {"path": "eval.csv", "corpus": "twice.jsonl"}}}, "twice.jsonl:2: found a second passage \"q0\", expected ids that differ; rename or remove one"),
    "no passages": ({"sets": {"a": {"path": "empty.jsonl", "form": "reranking"}}}, "empty.jsonl:1: found no passages, expected at least one; add a passage or leave the query out"),
    "depth 0": ({"sets": {"a": {"path": "beir", "depth": 0}}}, "sets.a.depth: found 0, expected 1 or more; change the value"),
    "too deep": ({"sets": {"a": "deep.jsonl"}}, "sets.a.path: found deep.jsonl, whose name and first line tell no form, expected groups, BEIR, TREC, MTEB's reranking, a csv, or corpus and queries; say sets.a.form=..."),
    "columns": ({"sets": {"a": "columns.csv"}}, "columns.csv: found columns ['question', 'doc'], expected question, answer, doc_id, doc; check how the file was made"),
    "metric": ({"sets": {"a": "beir"}, "metrics": ["mrr", "ndcg@x"]}, "metrics: found 'ndcg@x', expected a number of ranks behind the @; write ndcg@10, for example"),
    "baseline": ({"sets": {"a": "groups.jsonl"}, "baseline": "base"}, "baseline: found base, expected one of without-reranker, fine-tuned, fused; choose one, or leave it out"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_set_is_one_line_that_says_what_to_do(
    settings: Callable[..., EvaluateConfig], data: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.chdir(data)
    lines(data / "bad.tsv", "q0\t창문-열기\t1", "q1\t창문-닫기\t0.5")
    lines(data / "bad.trec", "q0 Q0 창문-열기 1 0.5 t", "q0 Q0 창문-열기 2 0.4 t")
    (data / "bad.csv").write_text("question,answer,doc_id,doc\nq,a,d,text\nq,a,d,other\n")
    (data / "columns.csv").write_text("question,doc\nq,d\n")
    (data / "comma.csv").write_text("question,answer,doc_id,doc\nq,a,c,text\nq,a,d,one, two\n")
    (data / "short.csv").write_text("question,doc_id,doc,answer\nq,d,text\n")
    lines(data / "other.tsv", "q0\t1\t1", "q1\t2\t1")
    lines(data / "twice.jsonl", {"_id": "q0", "text": "하나"}, {"_id": "q0", "text": "둘"})
    lines(data / "empty.jsonl", {"query": "q", "positive": [], "negative": []})
    (data / "deep.jsonl").write_text("[" * 200_000 + "\n")
    changes, message = MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        evaluate_command(settings(**changes))
    assert str(caught.value) == message
