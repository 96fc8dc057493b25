"""What loses too much against its base is not exported, or exported with a card that says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from reranker import Reranker, cli
from reranker.config.common import Precision
from reranker.config.regression_gate import ExportGateConfig, GateAction
from reranker.config.training import DataConfig, TrainConfig
from reranker.errors import UserError
from reranker.evaluate.measures import measure
from reranker.evaluate.metrics import ranking
from reranker.evaluate.regression_gate import Paired, Rule, judge
from reranker.export.huggingface import export_run
from reranker.train import checkpoint
from reranker.train.fragments import MASTER, Fragment
from tests.tiny import tiny_model
from tests.unit.test_export import OneRank

PASSAGES = ["list.sort()는 정렬한다", "바꿀 수 없다", "A tuple.", "함수의 인자", "sort() sorts", "가나다라 마바사"]
QUERIES = ["정렬", "파이썬", "list", "인자는 언제", "튜플", "What is it?", "함수", "a"]


def favourites(model: Path, path: Path) -> Path:
    """Groups whose positive is what a model ranks first."""
    reranker, lines = Reranker(model, device="cpu", max_length=64), []
    for query in QUERIES:
        ranked = [entry.passage for entry in reranker.rerank(query, PASSAGES)]
        lines.append(json.dumps({"query": query, "pos": ranked[:1], "neg": ranked[1:]}) + "\n")
    path.write_text("".join(lines))
    return path


def values(model: Path, path: Path) -> list[float]:
    """nDCG@10 of each group, with the library's own scores."""
    reranker, found = Reranker(model, device="cpu", max_length=64), []
    for line in path.read_text().splitlines():
        group = json.loads(line)
        names = [str(number) for number in range(len(PASSAGES))]
        ranked = ranking(names, reranker.score(group["query"], [*group["pos"], *group["neg"]]), ["0"])
        found.append(measure("ndcg@10", 5).of(ranked, ["0"]))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, the weights of another model, and guard sets of what either of them likes."""
    root = tmp_path_factory.mktemp("gate")
    for seed, name in ((1, "base"), (2, "tuned")):
        favourites(tiny_model(root / name, seed=seed), root / f"{name}.jsonl")
    return root


def make_run(place: Path, run: Path, gate: dict[str, Any] | None = None, kept: dict[str, Any] | None = None) -> Path:
    """A run directory as a training leaves it, with one checkpoint; `kept` is the verdict in its state."""
    settings = asdict(
        TrainConfig(run_dir=str(run), name="tiny", data=DataConfig(shards=str(run / "shards"), max_length=64))
    )
    settings["model"]["name"] = str(place / "base")
    settings["gate"] |= gate or {}
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(settings, default=lambda member: member.name))
    shutil.copytree(place / "base", run / "initial", ignore=shutil.ignore_patterns("*.safetensors"))
    fragments = [Fragment(name, MASTER, tuple(tensor.shape), 0, tensor.flatten())
                 for name, tensor in load_file(place / "tuned" / "model.safetensors").items()]  # fmt: skip
    entry = {"checkpoint": checkpoint.name_of(120), "passed": kept is None or kept["passed"]}
    best = entry if entry["passed"] else None
    state = {"best": best, "ranking": [entry], "metrics": {"eval/mrr": 0.5}, "gate": kept}
    checkpoint.save(run, 120, fragments, state, OneRank(), checkpoint.Retention(2))  # type: ignore[arg-type]
    return run


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A run without a gate of its own."""
    return make_run(place, tmp_path / "run")


def verdict_of(place: Path, *names: str, max_drop: float = 0.01) -> dict[str, Any]:
    """The verdict by hand, on the groups of these names."""
    paired = [
        Paired(name, *(values(place / model, place / f"{name}.jsonl") for model in ("base", "tuned")),
               [json.loads(line)["pos"][0] for line in (place / f"{name}.jsonl").read_text().splitlines()])
        for name in names
    ]  # fmt: skip
    return judge(Rule("ndcg@10", max_drop), "base", "by hand", paired).to_dict()


def section(directory: Path) -> str:
    """That section of the card."""
    return (directory / "README.md").read_text("utf-8").split("## Regression gate\n")[1].split("\n## ")[0]


def test_a_model_that_loses_too_much_is_refused_in_one_line_and_nothing_is_written(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = verdict_of(place, "base")["sets"][0]
    assert (expected["base"], expected["passed"]) == (1.0, False)
    before = sorted(run.rglob("*"))
    assert cli.main(["export", f"run={run}", f"gate.sets={{old: {place}/base.jsonl, new: {place}/tuned.jsonl}}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("reranker: error")]
    assert line == (
        f"reranker: error: gate: found step-00000120, which loses {1 - expected['model']:.4f} ndcg@10 on old (1.0000 to "
        f"{expected['model']:.4f}, p {2 * expected['p']:.3f}), expected at most 0.01 lost against base; reranker export "
        f"run={run} gate.action=mark exports it all the same, with a card that says so, and reranker soup mixes that with "
        "its base; all checkpoints stay"
    )
    assert sorted(run.rglob("*")) == before


def test_one_that_is_to_be_marked_is_written_and_its_card_says_what_it_loses(run: Path, place: Path) -> None:
    settings = [f"gate.sets={{old: {place}/base.jsonl, new: {place}/tuned.jsonl}}", "gate.action=mark"]
    assert cli.main(["export", f"run={run}", *settings]) == 0
    written = json.loads((run / "model" / "gate.json").read_text())
    assert not written["passed"]
    text = section(run / "model")
    assert "nDCG@10 may fall by 0.01 at most. **Failed.**" in text
    # Numbers of the exported directory itself, set by set, as the library scores with it.
    for name, of_set, passed in (("old", "base", False), ("new", "tuned", True)):
        theirs, ours = (values(model, place / f"{of_set}.jsonl") for model in (place / "base", run / "model"))
        (found,) = [one for one in written["sets"] if one["name"] == name]
        assert found["base"] == pytest.approx(sum(theirs) / len(theirs))
        assert found["model"] == pytest.approx(sum(ours) / len(ours))
        assert found["difference"]["value"] == pytest.approx(found["model"] - found["base"])
        assert found["passed"] == passed
        difference = found["difference"]
        cell = f"{difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
        told = "passed" if passed else "**failed**"
        row = f"| {name} | 8 | {found['base']:.4f} | {found['model']:.4f} | {cell} | {found['p_holm']:.3f} | {told} |"
        assert row in text.splitlines()
    assert written["sets"][1]["model"] == 1.0, "its own favourites"
    card = (run / "model" / "README.md").read_text("utf-8")
    assert card.index("## Regression gate") < card.index("## Usage"), "before anybody uses it"


def test_one_that_passes_is_exported_with_its_table(run: Path, place: Path) -> None:
    output = export_run(run, gate=ExportGateConfig(sets={"new": str(place / "tuned.jsonl")}))
    assert "**Passed.**" in section(output)
    assert json.loads((output / "gate.json").read_text())["passed"]
    # Another rule, by its settings.
    lenient = ExportGateConfig(sets={"old": str(place / "base.jsonl")}, max_drop=1.0, metric="mrr")
    assert "MRR" in section(export_run(run, gate=lenient)).upper()
    with pytest.raises(UserError, match="which loses"):
        export_run(run, gate=ExportGateConfig(sets={"old": str(place / "base.jsonl")}, max_drop=0.0))
    assert "**Passed.**" in section(output), "an export that is refused leaves the earlier one"


def test_without_a_gate_nothing_is_said_of_one(run: Path) -> None:
    output = export_run(run)
    assert "gate" not in (output / "README.md").read_text("utf-8")
    assert not (output / "gate.json").exists()


def test_what_is_tried_is_what_is_written(run: Path, place: Path) -> None:
    sets = {"new": str(place / "tuned.jsonl"), "old": str(place / "base.jsonl")}
    output = export_run(run, dtype=Precision.bf16, gate=ExportGateConfig(sets=sets, max_drop=1.0))
    found = json.loads((output / "gate.json").read_text())["sets"]
    for one, of_set in zip(found, ("tuned", "base"), strict=True):
        ours = values(output, place / f"{of_set}.jsonl")
        assert one["model"] == pytest.approx(sum(ours) / len(ours))


def test_another_reranker_can_be_the_base(run: Path, place: Path) -> None:
    sets = {"new": str(place / "tuned.jsonl")}
    output = export_run(run, gate=ExportGateConfig(sets=sets, base=str(place / "tuned")))
    found = json.loads((output / "gate.json").read_text())
    assert (found["base"], found["sets"][0]["difference"]["value"]) == ("tuned", 0.0)


def test_what_the_training_found_of_a_checkpoint_counts_without_trying_it_again(place: Path, tmp_path: Path) -> None:
    kept, gate = verdict_of(place, "base", "tuned"), {"sets": {"base": "gone.jsonl"}}
    run = make_run(place, tmp_path / "run", gate, kept)
    for asked, what in (("best", "no checkpoint that passes: step-00000120, the best of them"),
                        ("step-00000120", "step-00000120")):  # fmt: skip
        with pytest.raises(UserError, match=f"gate: found {what}, which loses .* on base"):
            export_run(run, asked)
    assert not (run / "model").exists()
    output = export_run(run, gate=ExportGateConfig(action=GateAction.mark))
    assert json.loads((output / "gate.json").read_text()) == kept
    assert "Measured by hand." in section(output)

    # A training that marks: so does every export of it.
    marking = make_run(place, tmp_path / "marking", gate | {"action": "mark"}, kept)
    assert "**Failed.**" in section(export_run(marking))
    with pytest.raises(UserError, match="which loses"):
        export_run(marking, gate=ExportGateConfig(action=GateAction.refuse))
    passing = make_run(place, tmp_path / "passing", gate, verdict_of(place, "tuned"))
    assert "**Passed.**" in section(export_run(passing))


def test_a_checkpoint_that_the_training_did_not_try_is_tried_by_its_gate(place: Path, tmp_path: Path) -> None:
    gate = {"sets": {"old": str(place / "base.jsonl")}, "max_drop": 0.02}
    with pytest.raises(
        UserError, match=r"found step-00000120, which loses .* expected at most 0\.02 lost against base"
    ):
        export_run(make_run(place, tmp_path / "run", gate))
    lenient = make_run(place, tmp_path / "lenient", gate | {"max_drop": 1.0})
    assert "may fall by 1 at most. **Passed.**" in section(export_run(lenient))


def test_a_base_that_never_learnt_to_rank_is_told(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "place")
    weights = load_file(tmp_path / "place" / "base" / "model.safetensors")
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(body, tmp_path / "place" / "base" / "model.safetensors", metadata={"format": "pt"})
    run = make_run(tmp_path / "place", tmp_path / "run")
    with pytest.raises(UserError, match=r"model\.name: found .*base, whose score head is freshly drawn"):
        export_run(run, gate=ExportGateConfig(sets={"old": str(place / "base.jsonl")}))
    assert not (run / "model").exists()
