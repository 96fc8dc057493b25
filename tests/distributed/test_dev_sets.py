"""A training that is evaluated on sets beside its dev groups: the same metrics on any number of ranks, and a set of them
may select the best checkpoint.

The training teaches that a right passage shares the query's words. The set `old` has other right passages, those that
the untrained model ranks first: the more is learnt the less of it is left.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reranker.data.tokenize import Contract
from reranker.evaluate.crew import Alone
from reranker.evaluate.guard_sets import GuardSets
from reranker.evaluate.regression_gate import Rule
from reranker.train.checkpoint import read_state
from tests.distributed.conftest import Inputs, make_groups, records
from tests.distributed.ranks import run, train
from tests.distributed.test_gate import last_state, write_favourites
from tests.distributed.test_resume import rewound
from tests.distributed.test_tracking import offline_run

STEPS = (2, 4, 6, 8, 10, 12)
METRICS = ("has_right_in_contexts", "mrr", "ndcg@10")


@dataclass(frozen=True)
class Sets:
    """Paths of groups, and of a directory of BEIR whose candidates a first stage finds. 11 and 7 queries."""

    old: Path
    beir: Path

    def __str__(self) -> str:
        return f"{{old.1: {self.old}, beir: {{path: {self.beir}, depth: 6, bm25: {{analyzer: whitespace}}}}}}"


@pytest.fixture(scope="module")
def sets(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    root = tmp_path_factory.mktemp("sets")
    beir = root / "beir"
    (beir / "qrels").mkdir(parents=True)
    groups = make_groups(7, 3, seed=5)
    texts = [text for group in groups for text in (*group.pos, *group.neg)]
    for name, lines in (("corpus", texts), ("queries", [group.query for group in groups])):
        written = ({"_id": f"{name[0]}{place}", "title": "", "text": text} for place, text in enumerate(lines))
        (beir / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    judged = "".join(f"q{place}\tc{4 * place}\t1\n" for place in range(7))
    (beir / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return Sets(write_favourites(inputs, root / "old.jsonl", 11), beir)


def overrides(inputs: Inputs, sets: Any, run_dir: Path, **more: Any) -> list[str]:
    values = {
        "batch.per_gpu": 8, "precision": "fp32", "train.epochs": 4, "train.eval_every": 2, "train.keep_last": 99,
        "optim.warmup": 1, "data.dev": inputs.dev, "data.dev_sets": sets, "train.metric": "old.1/mrr", **more,
    }  # fmt: skip
    return inputs.overrides(run_dir, **values)


def evaluated(run_dir: Path) -> list[dict[str, Any]]:
    """{step, eval/...} of each evaluation."""
    return [{key: value for key, value in record.items() if key == "step" or key.startswith("eval/")}
            for record in records(run_dir) if any(key.startswith("eval/") for key in record)]  # fmt: skip


@pytest.fixture(scope="module")
def trained(inputs: Inputs, sets: Sets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks at ZeRO stage 3, whose forwards are collectives: one too many on a rank would wait for ever."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    train(2, overrides(inputs, sets, run_dir, deepspeed="zero3"))
    return run_dir


def test_the_best_checkpoint_is_that_of_the_set_that_the_metric_names(trained: Path) -> None:
    found = evaluated(trained)
    assert [record["step"] for record in found] == list(STEPS)
    names = {f"eval/{name}{metric}" for name in ("", "old.1/", "beir/") for metric in METRICS}
    assert all(set(record) == {"step", *names} for record in found)
    best = max(found, key=lambda record: record["eval/old.1/mrr"])
    assert best["eval/mrr"] < max(record["eval/mrr"] for record in found), "the dev groups would select the same"
    chosen = last_state(trained)["best"]
    assert (chosen["step"], chosen["value"], chosen["metric"]) == (best["step"], best["eval/old.1/mrr"], "old.1/mrr")
    for record in found:
        state = read_state(trained / "checkpoints" / f"step-{record['step']:08d}")
        assert {"step": record["step"], **state["metrics"]} == record
    card = (trained / "model" / "README.md").read_text()
    assert f"| steps of this checkpoint | {best['step']} |" in card
    assert f"| MRR on old.1 | {best['eval/old.1/mrr']:.4f} |" in card
    assert "The checkpoint was chosen by its MRR on the evaluation set old.1, which flatters it" in card
    (listed,) = run(1, ["checkpoint", "list", str(trained)])
    assert f"* {best['eval/old.1/mrr']:.4f}" in listed.out
    assert "*: the best by old.1/mrr\n" in listed.out
    (replayed,) = run(1, ["replay", str(trained / "checkpoints" / "step-00000004")])
    assert replayed.code == 0, replayed.err


@pytest.mark.parametrize("world", [1, 2])
def test_no_query_is_dropped_or_doubled_and_sets_need_no_dev_groups(
    inputs: Inputs, sets: Sets, tmp_path: Path, world: int
) -> None:
    """At a learning rate of 0: what is evaluated is the model that the training began with."""
    run_dir = tmp_path / "run"
    words = {
        "optim.lr": 0, "train.max_steps": 4, "train.metric": "beir/ndcg@10", "data.dev": "null",
        "tracking": "offline", "tracking.tensorboard": "true", "gate.sets": f"{{old: {sets.old}}}",
    }  # fmt: skip
    train(world, overrides(inputs, sets, run_dir, **words))
    given = {
        "old.1": str(sets.old),
        "beir": {"path": str(sets.beir), "depth": 6, "bm25": {"analyzer": "whitespace"}},
    }
    expected = {}
    for metric in METRICS:
        found = GuardSets(given, Rule(metric, 0.01))
        found.find(Alone(), "cpu")
        values = found.values_of(str(inputs.model), "gate.base", Alone(), "cpu", contract=Contract(48))
        assert {name: len(of_queries) for name, of_queries in values.items()} == {"old.1": 11, "beir": 7}
        expected |= {f"eval/{name}/{metric}": float(np.mean(of_queries)) for name, of_queries in values.items()}
    assert [expected["eval/old.1/mrr"], 0 < expected["eval/beir/ndcg@10"] < 1] == [1.0, True]
    assert evaluated(run_dir) == [{"step": step, **expected} for step in (2, 4)]
    assert last_state(run_dir)["best"]["step"] == 2, "of equal ones the earlier"
    assert last_state(run_dir)["gate"]["passed"], "a gate wants something to select by: a set will do"

    # What is drawn in W&B and TensorBoard is the same, over the same steps.
    tracked = offline_run(run_dir)
    defined = {metric.name.replace("\\.", "."): metric.step_metric for metric in tracked.of("metric")}
    assert {name: defined.get(name) for name in expected} == dict.fromkeys(expected, "step")
    assert {name: tracked.summary[name] for name in expected} == {
        name: {"max": value, "last": value} for name, value in expected.items()
    }
    assert set(tracked.config["resolved"]["dev_sets"]) == {"old.1", "beir"}
    read = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for name, value in expected.items():
        shown = [(event.step, event.value) for event in read.Scalars(name)]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step in (2, 4)]


def test_a_resume_goes_on_with_the_ranking_unless_the_set_that_selects_is_another(
    trained: Path, inputs: Inputs, sets: Sets, tmp_path: Path
) -> None:
    again = rewound(trained, tmp_path / "again", step=4)
    train(2, overrides(inputs, sets, again, deepspeed="zero3"))
    assert evaluated(again) == evaluated(trained)
    assert last_state(again)["ranking"] == last_state(trained)["ranking"]

    # Another set beside it changes nothing of what was found on the one that selects.
    other = rewound(trained, tmp_path / "other", step=4)
    train(2, overrides(inputs, f"{{old.1: {sets.old}, more: {inputs.dev}}}", other, deepspeed="zero3"))
    assert last_state(other)["ranking"] == last_state(trained)["ranking"]
    last = evaluated(other)[-1]
    assert {metric: last[f"eval/more/{metric}"] for metric in METRICS} == {
        metric: pytest.approx(last[f"eval/{metric}"]) for metric in METRICS
    }

    # One query less: what was best on the others is not compared with what comes.
    (tmp_path / "old.jsonl").write_text("".join(sets.old.read_text().splitlines(keepends=True)[1:]))
    third = rewound(trained, tmp_path / "third", step=4)
    train(2, overrides(inputs, Sets(tmp_path / "old.jsonl", sets.beir), third, deepspeed="zero3"))
    entries = last_state(third)["ranking"]
    assert entries
    assert all(entry["step"] > 4 for entry in entries)
    assert last_state(trained)["best"]["step"] <= 4


def test_a_dry_run_tells_of_the_sets_and_of_what_they_lack_and_writes_nothing(
    inputs: Inputs, sets: Sets, tmp_path: Path
) -> None:
    shutil.copytree(sets.beir, tmp_path / "beir")
    with open(tmp_path / "beir" / "qrels" / "test.tsv", "a") as qrels:
        qrels.write("q0\tnowhere\t1\n")
    lacking = Sets(sets.old, tmp_path / "beir")
    (told,) = run(1, ["train", *overrides(inputs, lacking, tmp_path / "run"), "train.dry_run=true"])
    assert "evaluation sets  old.1, beir: 18 queries\n" in told.out
    assert f"{tmp_path}/beir/qrels/test.tsv: 1 of 8 judged passages are not in {tmp_path}/beir" in told.err
    assert not (tmp_path / "run").exists()
