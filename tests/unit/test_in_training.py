"""A training is evaluated on dev groups and sets of every form: each query once, with the metrics of an evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from reranker.checks import check_train
from reranker.config.models import EvaluateConfig
from reranker.config.training import TrainConfig
from reranker.data.collate import PackedPairs
from reranker.data.tokenize import PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.crew import Alone
from reranker.evaluate.in_training import Evaluator
from reranker.evaluate.report import evaluate_command
from reranker.model.cross_encoder import load_model, load_tokenizer, score_pairs
from reranker.model.reranker import contract_of
from tests.tiny import tiny_model
from tests.unit.test_dev import _Ranks
from tests.unit.test_guard_sets import _Crew, write

CPU = torch.device("cpu")
TEXTS = {f"p{number}": f"문서 {number} " + "가나다 " * (number % 5) for number in range(12)}
GROUPS = [
    {"query": f"질문 {number}", "pos": [f"옳은 글 {number}"], "neg": [f"다른 글 {number} {other}" for other in range(1 + number % 4)]}
    for number in range(9)
]  # fmt: skip
QUERIES = {"groups": 9, "reranking": 5, "beir": 7, "run": 7, "csv": 3}
"""Of each set: none of the numbers divides by two, and some do not by three."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a set of each form."""
    root = tmp_path_factory.mktemp("sets")
    tiny_model(root / "model", seed=2)
    write(root / "groups.jsonl", GROUPS)
    write(root / "dev.jsonl", GROUPS[:5])
    write(root / "reranking.jsonl", [{"query": one["query"], "positive": one["pos"], "negative": one["neg"]}
                                     for one in GROUPS[4:]])  # fmt: skip
    (root / "beir" / "qrels").mkdir(parents=True)
    write(root / "beir" / "corpus.jsonl", [{"_id": name, "title": "", "text": text} for name, text in TEXTS.items()])
    write(root / "beir" / "queries.jsonl", [{"_id": f"q{number}", "text": f"문서 {number}"} for number in range(7)])
    (root / "beir" / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{number}\tp{number}\t{1 + number % 2}\n" for number in range(7))
    )
    (root / "run.txt").write_text("".join(f"q{q} Q0 p{p} 1 {10 - p} r\n" for q in range(6) for p in range(q + 2)))
    with (root / "eval.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer", "doc_id", "doc"])
        writer.writerows([f"문서 {number}", "답", f"p{number}", TEXTS[f"p{number}"]] for number in range(3))
    write(root / "more.jsonl", [{"id": name, "text": text} for name, text in TEXTS.items()])
    return root


def sets_in(place: Path) -> dict[str, Any]:
    words = {"analyzer": "whitespace"}
    beir = {"path": str(place / "beir"), "depth": 6, "bm25": words}
    return {
        "groups": str(place / "groups.jsonl"), "reranking": str(place / "reranking.jsonl"), "beir": beir,
        "run": {**beir, "stage": "run", "run": str(place / "run.txt")},
        "csv": {"path": str(place / "eval.csv"), "corpus": str(place / "more.jsonl"), "depth": 6, "bm25": words},
    }  # fmt: skip


def settings(sets: Any = None, dev: Path | None = None, metric: str = "mrr") -> TrainConfig:
    config = TrainConfig()
    config.data.dev, config.data.dev_sets, config.train.metric = dev and str(dev), sets, metric
    return config


class Model:
    """The model of a place, which evaluators score with."""

    def __init__(self, place: Path) -> None:
        self.model = load_model(str(place / "model"))[0].eval()
        self.tokenizer = PairTokenizer(load_tokenizer(str(place / "model")), contract_of(self.model.config))

    def evaluate(self, config: TrainConfig, crew: Any = None) -> tuple[dict[str, float], int]:
        """(the metrics, calls of the forward) of a rank."""
        evaluator, crew, calls = Evaluator(config, self.tokenizer), crew or Alone(), 0
        evaluator.find(crew, "cpu")

        def score(pairs: PackedPairs) -> torch.Tensor:
            nonlocal calls
            calls += 1
            with torch.no_grad():
                return score_pairs(self.model, pairs)

        return evaluator.evaluate(score, crew, CPU, False)[0], calls


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return Model(place)


def test_the_metrics_of_each_set_are_those_that_evaluate_reports(place: Path, model: Model, tmp_path: Path) -> None:
    found, _ = model.evaluate(settings(sets_in(place)))
    evaluate_command(EvaluateConfig(
        model=str(place / "model"), sets=sets_in(place), output=str(tmp_path / "report"), resamples=100, permutations=100,
    ))  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "report" / "queries.jsonl").read_text("utf-8").splitlines()]
    of_sets: dict[str, list[dict[str, float]]] = {name: [] for name in QUERIES}
    for line in lines:
        of_sets[line["set"]].append(line["metrics"]["fine-tuned"])
    assert {name: len(of_queries) for name, of_queries in of_sets.items()} == QUERIES
    assert found == {
        f"{name}/{metric}": pytest.approx(sum(one[metric] for one in of_queries) / QUERIES[name], abs=1e-12)
        for name, of_queries in of_sets.items()
        for metric in ("has_right_in_contexts", "mrr", "ndcg@10")
    }
    assert 0 < found["run/mrr"] < 1


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_has_the_metrics_of_one_rank_and_calls_the_forward_equally_often(
    place: Path, model: Model, world: int
) -> None:
    config, ranks = settings(sets_in(place), place / "dev.jsonl"), _Ranks(world)
    expected, _ = model.evaluate(config)
    found = ranks.run(lambda rank: model.evaluate(config, _Crew(ranks, rank)))
    assert [metrics for metrics, _ in found] == [expected] * world
    assert len({calls for _, calls in found}) == 1


def test_the_dev_groups_keep_their_names_and_values_beside_sets(place: Path, model: Model) -> None:
    alone, _ = model.evaluate(settings(dev=place / "dev.jsonl"))
    both, _ = model.evaluate(settings(sets_in(place), place / "dev.jsonl"))
    assert set(alone) == {"has_right_in_contexts", "mrr", "ndcg@10"}
    assert {name: both[name] for name in alone} == alone
    assert set(both) - set(alone) == {f"{name}/{metric}" for name in QUERIES for metric in alone}
    # The same groups as a set are the same queries, once more.
    again, _ = model.evaluate(settings({"dev": str(place / "dev.jsonl")}, metric="dev/mrr"))
    assert again == {f"dev/{metric}": pytest.approx(value, abs=1e-12) for metric, value in alone.items()}


def test_the_sets_may_stand_in_a_yaml_file(place: Path, model: Model) -> None:
    (place / "sets.yaml").write_text(json.dumps(sets_in(place)))
    assert model.evaluate(settings(str(place / "sets.yaml"))) == model.evaluate(settings(sets_in(place)))


def test_a_score_that_is_not_finite_is_told_by_its_set(place: Path, model: Model) -> None:
    evaluator = Evaluator(settings({"old.1": str(place / "groups.jsonl")}), model.tokenizer)
    evaluator.find(Alone(), "cpu")
    with pytest.raises(UserError, match=r"data\.dev_sets\.old\.1: found \d+ scores that are not finite"):
        evaluator.evaluate(lambda pairs: torch.full((len(pairs),), float("inf")), Alone(), CPU, True)


def test_a_set_that_another_set_is_beside_keeps_its_digest_and_one_that_changes_does_not(
    place: Path, model: Model, tmp_path: Path
) -> None:
    def digests(**sets: Path) -> dict[str, str]:
        evaluator = Evaluator(settings({name: str(path) for name, path in sets.items()}), model.tokenizer)
        assert evaluator.sets is not None
        evaluator.find(Alone(), "cpu")
        return evaluator.sets.digests

    write(tmp_path / "other.jsonl", [{**GROUPS[0], "neg": ["또 다른 글"]}, *GROUPS[1:]])
    both = digests(one=place / "groups.jsonl", two=place / "dev.jsonl")
    assert both["one"] == digests(one=place / "groups.jsonl")["one"]
    assert both["one"] != digests(one=tmp_path / "other.jsonl")["one"]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"old": "nowhere.jsonl"}, r"^data\.dev_sets\.old\.path: found nowhere\.jsonl, which does not exist, expected"),
        (
            {"old": {"form": "beir"}},
            r"^data\.dev_sets\.old\.corpus: found no value.*; say data\.dev_sets\.old\.corpus=",
        ),
        ({"old": {"paht": "x"}}, r"^data\.dev_sets\.old\.paht: found .*; did you mean path\?"),
        ("nowhere.yaml", r"^data\.dev_sets: found nowhere\.yaml, which cannot be read"),
        ({}, r"^data\.dev_sets: found \{\}, expected \{name: \{path: \.\.\.\}, \.\.\.\}; name each set"),
        ({"a/b": "x"}, r"^data\.dev_sets: found a set called 'a/b'"),
    ],
)
def test_a_mistake_names_the_key_of_the_sets(sets: Any, said: str, model: Model) -> None:
    with pytest.raises(UserError, match=said):
        Evaluator(settings(sets, metric="old/mrr"), model.tokenizer)


NONE_OF_DEV = (
    "train.metric: found mrr, which is of data.dev, and no data.dev, expected a metric of a set in data.dev_sets; "
    "say train.metric=NAME/mrr with the NAME of a set, or data.dev=dev.jsonl"
)


@pytest.mark.parametrize(
    ("metric", "dev", "sets", "said"),
    [
        ("mrr", False, True, NONE_OF_DEV),
        ("faq/mrr", True, False, "train.metric: found faq/mrr without data.dev_sets, expected mrr or ndcg@10 of data.dev; "
         "say data.dev_sets={faq: ...}, or train.metric=mrr"),
        ("faq/map", True, True, "train.metric: found faq/map, expected mrr or ndcg@10, or NAME/mrr or NAME/ndcg@10 of a "
         "set in data.dev_sets; change the value"),
        ("map", True, False, "train.metric: found map, expected mrr or ndcg@10; change the value"),
        ("grops/mrr", False, True, "train.metric: found grops/mrr, and no set of that name in data.dev_sets, expected one "
         "of groups/mrr, beir/mrr; did you mean groups/mrr?"),
    ],
)  # fmt: skip
def test_a_metric_by_which_nothing_can_be_selected_is_refused(
    metric: str, dev: bool, sets: bool, said: str, place: Path, model: Model
) -> None:
    some = {name: sets_in(place)[name] for name in ("groups", "beir")}
    config = settings(some if sets else None, place / "dev.jsonl" if dev else None, metric)
    config.data.shards = "shards"
    with pytest.raises(UserError) as caught:
        check_train(config)
        Evaluator(config, model.tokenizer)
    assert str(caught.value) == said


def test_an_empty_dev_file_is_none(place: Path, model: Model) -> None:
    """`data.dev=` switches off the dev groups of a recipe."""

    def settings_of(metric: str, sets: Any) -> TrainConfig:
        config = settings(sets, metric=metric)
        config.data.dev, config.data.shards = "", "shards"
        return config

    with pytest.raises(UserError) as caught:
        check_train(settings_of("mrr", sets_in(place)))
    assert str(caught.value) == NONE_OF_DEV
    guarded = settings_of("mrr", None)
    guarded.gate.sets = {"old": str(place / "groups.jsonl")}
    with pytest.raises(UserError, match=r"^data\.dev: found no groups beside gate\.sets"):
        check_train(guarded)
    check_train(settings_of("mrr", None))
    accepted = settings_of("groups/mrr", sets_in(place))
    check_train(accepted)
    assert Evaluator(accepted, model.tokenizer).dev is None


def test_what_can_select_is_accepted(place: Path, model: Model) -> None:
    for metric, dev in (("mrr", True), ("ndcg@10", True), ("beir/ndcg@10", True), ("groups/mrr", False)):
        config = settings(sets_in(place), place / "dev.jsonl" if dev else None, metric)
        config.data.shards = "shards"
        check_train(config)
        assert Evaluator(config, model.tokenizer).sets is not None
    # Without any evaluation the metric selects nothing, and its default is no mistake.
    check_train(settings())
