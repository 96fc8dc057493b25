"""A soup is the weights between two models, and of several alphas the one that the dev groups like best."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reranker import Reranker, cli
from reranker.config.models import SoupConfig
from reranker.config.regression_gate import GateConfig
from reranker.errors import UserError
from reranker.export.soup import soup_command
from tests.tiny import tiny_model

PAIRS = [("파이썬 정렬", "list.sort()는 정렬한다"), ("튜플", "바꿀 수 없다"), ("What is it?", "A tuple.")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, tuned); the tuned model has a contract and a card."""
    directory = tmp_path_factory.mktemp("models")
    base, tuned = tiny_model(directory / "base", seed=1), tiny_model(directory / "tuned", seed=2)
    config = json.loads((tuned / "config.json").read_text())
    config["reranker"] = {"max_length": 64, "query_max_length": None, "truncation": "longest_first"}
    (tuned / "config.json").write_text(json.dumps(config))
    (tuned / "README.md").write_text(
        "---\nlicense: mit\n---\n\n# tuned\n\nA model.\n\n## Regression gate\n\nPassed once.\n\n## Usage\n\n### ONNX Runtime\n\n"
        "`onnx/model.onnx`\n"
    )
    return base, tuned


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, models: tuple[Path, Path]) -> Path:
    """Groups whose positive is what the tuned model likes best."""
    tuned, path = Reranker(models[1], device="cpu"), tmp_path_factory.mktemp("dev") / "dev.jsonl"
    passages = [text for _, text in PAIRS] + ["함수의 인자", "sort() sorts", "가나다"]
    lines = []
    for query in ("정렬", "파이썬", "list", "인자는 언제"):
        ranked = [entry.passage for entry in tuned.rerank(query, passages)]
        lines.append(json.dumps({"query": query, "pos": ranked[:1], "neg": ranked[1:]}) + "\n")
    path.write_text("".join(lines))
    return path


def soup(models: tuple[Path, Path], output: Path, **settings: Any) -> Path:
    assert soup_command(SoupConfig(str(models[0]), str(models[1]), str(output), **settings)) == 0
    return output


@pytest.mark.parametrize("alpha", [0, 0.25, 1])
def test_every_weight_lies_between_the_two_models(alpha: float, models: tuple[Path, Path], tmp_path: Path) -> None:
    output = soup(models, tmp_path / "soup", alpha=alpha)
    base, tuned, found = (load_file(one / "model.safetensors") for one in (*models, output))
    assert set(found) == set(tuned)
    for name in tuned:
        expected = (1 - alpha) * base[name].double() + alpha * tuned[name].double()
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=0 if alpha in (0, 1) else 1e-7)
    if alpha in (0, 1):
        end = Reranker(models[int(alpha)], device="cpu", max_length=64)
        assert (Reranker(output, device="cpu").score_pairs(PAIRS) == end.score_pairs(PAIRS)).all()


def test_the_best_alpha_on_the_dev_groups_is_taken_and_all_are_told(
    models: tuple[Path, Path], dev: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "soup"
    command = ["soup", f"base={models[0]}", f"tuned={models[1]}", f"output={output}", "alpha=[0,0.5,1]", f"dev={dev}"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    rows = {float(alpha): float(mrr) for alpha, mrr in re.findall(r"^\| ([\d.]+)(?: \(chosen\))? \| [\d.]+ \| ([\d.]+)",
                                                                 printed, re.MULTILINE)}  # fmt: skip
    assert set(rows) == {0.0, 0.5, 1.0}
    assert rows[1.0] == 1.0 > rows[0.0], "the tuned model made these groups"
    # The other way round the base made them: alpha 0 of the exchanged models.
    best = max(rows, key=lambda alpha: (rows[alpha], alpha))
    assert f"| {best:g} (chosen) |" in printed
    assert f"wrote {output} with alpha {best:g}" in printed
    tuned, found = (load_file(one / "model.safetensors") for one in (models[1], output))
    assert all(torch.equal(found[name], tuned[name]) for name in tuned) == (best == 1.0)
    card = (output / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n\n# tuned\n")
    assert f"Each weight is {1 - best:g} of base and {best:g} of tuned." in card.split("## Usage")[0]
    assert "Passed once" not in card, "the gate of another model"
    assert "onnx" not in card.lower(), "which is not mixed"
    assert "| alpha | has_right_in_contexts | mrr | ndcg@10 |" in card
    exchanged = tmp_path / "exchanged"
    assert (
        cli.main(
            ["soup", f"base={models[1]}", f"tuned={models[0]}", f"output={exchanged}", "alpha=[0,1]", f"dev={dev}"]
        )
        == 0
    )
    assert "| 0 (chosen) |" in capsys.readouterr().out
    found = load_file(exchanged / "model.safetensors")
    assert all(torch.equal(found[name], tuned[name]) for name in tuned)


def test_the_contract_is_the_tuned_models_and_a_head_that_the_base_lacks_too(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    base = tmp_path / "encoder"
    shutil.copytree(models[0], base)
    weights = load_file(base / "model.safetensors")
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(body, base / "model.safetensors", metadata={"format": "pt"})
    output = soup((base, models[1]), tmp_path / "soup", alpha=0.5)
    tuned, found = (load_file(one / "model.safetensors") for one in (models[1], output))
    for name in tuned:
        if name.startswith("classifier"):
            assert torch.equal(found[name], tuned[name])
    name = "roberta.encoder.layer.0.output.dense.weight"
    torch.testing.assert_close(found[name], (body[name] + tuned[name]) / 2)
    assert Reranker(output, device="cpu").contract.max_length == 64


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, models: tuple[Path, Path]) -> tuple[Path, Path]:
    """(base, a model near it): between random models that are far from each other everything is worse."""
    return models[0], soup(models, tmp_path_factory.mktemp("near") / "tuned", alpha=0.15)


@pytest.fixture(scope="module")
def liked(tmp_path_factory: pytest.TempPathFactory, near: tuple[Path, Path]) -> tuple[Path, Path]:
    """Groups whose positive is what (the base, the tuned model) likes best: what is won on one is lost on the other."""
    passages = [text for _, text in PAIRS] + ["함수의 인자", "sort() sorts", "가나다"]
    paths = []
    for model in near:
        reranker, lines = Reranker(model, device="cpu", max_length=64), []
        for query in (
            f"{first} {second}" for first in ("정렬", "파이썬", "list", "인자는") for second in ("언제", "a", "가나")
        ):
            ranked = [entry.passage for entry in reranker.rerank(query, passages)]
            lines.append(json.dumps({"query": query, "pos": ranked[:1], "neg": ranked[1:]}) + "\n")
        paths.append(tmp_path_factory.mktemp("liked") / "groups.jsonl")
        paths[-1].write_text("".join(lines))
    return paths[0], paths[1]


ALPHAS = "alpha=[0,0.1,0.2,0.3,0.5,0.7,1]"


def rows(printed: str) -> dict[float, tuple[float, float, bool, bool]]:
    """{alpha: (mrr on dev, difference on the guard set, whether it failed, whether it is chosen)} of a printed table."""
    found = re.findall(
        r"^\| ([\d.]+)( \(chosen\))? \| [\d.]+ \| ([\d.]+) \| [\d.]+ \| ([+-][\d.]+)( \(failed\))? \|$",
        printed,
        re.MULTILINE,
    )
    return {float(alpha): (float(mrr), float(lost), bool(failed), bool(chosen))
            for alpha, chosen, mrr, lost, failed in found}  # fmt: skip


def command(near: tuple[Path, Path], liked: tuple[Path, Path], output: Path, *more: str) -> list[str]:
    return ["soup", f"base={near[0]}", f"tuned={near[1]}", f"output={output}", ALPHAS, f"dev={liked[1]}",
            f"gate.sets={{old: {liked[0]}}}", *more]  # fmt: skip


def test_with_a_gate_the_best_alpha_is_the_best_of_those_that_pass(
    near: tuple[Path, Path], liked: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "soup"
    assert cli.main(command(near, liked, output, "gate.max_drop=0.2")) == 0
    found = rows(capsys.readouterr().out)
    assert set(found) == {0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0}
    assert found[0.0][1] == 0.0, "the base against itself"
    assert {alpha for alpha, (_, lost, failed, _) in found.items() if failed} == {
        alpha for alpha, (_, lost, _, _) in found.items() if lost < -0.2
    }
    passing = {alpha: mrr for alpha, (mrr, _, failed, _) in found.items() if not failed}
    best = max(passing, key=lambda alpha: (passing[alpha], alpha))
    assert [alpha for alpha, (*_, chosen) in found.items() if chosen] == [best]
    assert max(mrr for mrr, _, failed, _ in found.values() if failed) > passing[best], "nothing to be tempted by"
    assert 0 < best < 1
    written = json.loads((output / "gate.json").read_text())
    assert written["passed"]
    assert written["sets"][0]["difference"]["value"] == pytest.approx(found[best][1], abs=1e-4)
    card = (output / "README.md").read_text()
    assert "It was chosen by mrr on dev groups among those that pass the gate below:" in card
    assert "nDCG@10 may fall by 0.2 at most. **Passed.**" in card.split("## Mixed weights")[1]
    # What is written scores as what was tried.
    reranker, values = Reranker(output, device="cpu"), []
    for line in liked[0].read_text().splitlines():
        group = json.loads(line)
        ranked = [entry.passage for entry in reranker.rerank(group["query"], [*group["pos"], *group["neg"]])]
        values.append(1 / math.log2(2 + ranked.index(group["pos"][0])))
    assert sum(values) / len(values) == pytest.approx(written["sets"][0]["model"])


def test_where_no_alpha_above_0_passes_all_are_told_and_none_is_written_unless_it_is_to_be_marked(
    near: tuple[Path, Path], liked: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = "alpha=[0,0.7,1]"
    output = tmp_path / "soup"
    assert cli.main([*command(near, liked, output), few, "gate.max_drop=0"]) == 2
    out, err = capsys.readouterr()
    found = rows(out)
    assert {alpha: failed for alpha, (_, _, failed, _) in found.items()} == {0.0: False, 0.7: True, 1.0: True}
    lost = -found[1.0][1]
    assert err == (
        f"reranker: error: gate: found no alpha above 0 that passes: 1, the best of them, which loses {lost:.4f} ndcg@10 on "
        f"old (1.0000 to {1 - lost:.4f}, p {_p(err)}), expected at most 0 lost against base; try smaller alphas, or say "
        "gate.action=mark to write this one, with a card that says so\n"
    )
    assert not output.exists()
    assert cli.main([*command(near, liked, output), few, "gate.max_drop=0", "gate.action=mark"]) == 0
    assert "| 1 (chosen) |" in capsys.readouterr().out
    assert not json.loads((output / "gate.json").read_text())["passed"]
    assert "**Failed.**" in (output / "README.md").read_text()


def _p(line: str) -> str:
    return re.findall(r", p ([\d.]+)\)", line)[0]


def test_one_alpha_has_a_gate_without_dev_groups_and_another_base(
    near: tuple[Path, Path], liked: tuple[Path, Path], tmp_path: Path
) -> None:
    gate = GateConfig(sets={"old": str(liked[0])}, base=str(near[1]))
    output = soup(near, tmp_path / "soup", alpha=0, gate=gate)
    found = json.loads((output / "gate.json").read_text())
    assert found["base"] == "tuned"
    assert (found["passed"], found["sets"][0]["model"]) == (True, 1.0)
    assert found["sets"][0]["base"] < 1
    with pytest.raises(UserError, match=r"gate: found no alpha above 0 that passes: 1, which loses"):
        soup(near, tmp_path / "other", alpha=1, gate=GateConfig(sets={"old": str(liked[0])}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha": 1.5}, r"alpha: found 1\.5, expected numbers from 0"),
        ({"alpha": [0.1, 0.2]}, "alpha: found 2 values and no dev groups"),
        ({"alpha": []}, "alpha: found 0 values"),
        ({"metric": "map"}, "metric: found map"),
        ({"tuned": "nowhere"}, "tuned: found nowhere"),
        ({"base": "words"}, "base: found .*words with another tokenizer"),
        ({"base": "wide"}, r"base: found .*wide with \(\d+,.*\) numbers of"),
        ({"output": "tuned"}, "output: found .*, the tuned model"),
        ({"dev": "nowhere.jsonl"}, r"nowhere\.jsonl: found no such file"),
        ({"gate": GateConfig(sets={"old": "nowhere.jsonl"})}, r"gate\.sets\.old\.path: found nowhere\.jsonl"),
        (
            {"base": "encoder", "gate": GateConfig(sets={"old": "old.jsonl"})},
            "base: found encoder, whose score head is",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    settings: dict[str, Any], said: str, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    monkeypatch.chdir(tmp_path)
    shutil.copytree(models[1], "tuned")
    Path("old.jsonl").write_text('{"query": "q", "pos": ["p"], "neg": ["n"]}\n')
    if settings.get("base") == "encoder":
        shutil.copytree(models[0], "encoder")
        weights = load_file("encoder/model.safetensors")
        body = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
        save_file(body, "encoder/model.safetensors", metadata={"format": "pt"})
    if settings.get("base") == "words":
        tiny_model(Path("words"), vocabulary=["낱말"])
    if settings.get("base") == "wide":
        shutil.copytree(models[0], "wide")
        config = AutoConfig.from_pretrained("wide", intermediate_size=80)
        AutoModelForSequenceClassification.from_config(config).save_pretrained("wide")
    before = sorted(path.name for path in tmp_path.iterdir())
    usual = {"base": str(models[0]), "tuned": "tuned", "output": "output"}
    with pytest.raises(UserError, match=said):
        soup_command(SoupConfig(**{**usual, **settings}))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
