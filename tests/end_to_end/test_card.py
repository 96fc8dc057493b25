"""The commands of a model card do what it says: taken from the card, with only its placeholders filled in, by bash."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from reranker import Reranker
from reranker.config.common import Precision
from reranker.export.huggingface import export_run
from reranker.export.quantize import INT8_FILE
from reranker.groups import Group, write_groups
from tests.distributed.ranks import launch
from tests.evaluation import ACTIONS, TOPICS, texts_of
from tests.tiny import tiny_model
from tests.unit.test_export import make_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user stands: a base model, the run of a Korean model, a corpus with queries, dev groups."""
    root = tmp_path_factory.mktemp("place")
    trained = load_file(tiny_model(root / "trained", seed=2) / "model.safetensors")
    ours = make_run(root / "runs" / "ours", tiny_model(root / "base", seed=1), trained)
    settings = json.loads((ours / "config.json").read_text("utf-8"))
    (ours / "config.json").write_text(json.dumps(settings | {"language": "ko"}))
    texts = texts_of(TOPICS, ACTIONS)
    files = {
        "corpus": [{"id": name, "text": text} for name, text in texts.items()],
        "queries": [{"qid": name, "query": text.replace(" 방법을", ""), "pos": name} for name, text in texts.items()],
    }
    for name, records in files.items():
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (root / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    passages = list(texts.values())
    groups = [
        Group(query, (query,), tuple(passages[place + 1 : place + 4])) for place, query in enumerate(passages[:8])
    ]
    write_groups(root / "dev.jsonl", groups)
    return root


@pytest.fixture
def run(place: Path) -> Path:
    """The run directory, not evaluated yet."""
    shutil.rmtree(place / "runs" / "ours" / "report", ignore_errors=True)
    return place / "runs" / "ours"


def commands(model: Path) -> list[str]:
    """The blocks of bash in a card, which are the same in each of its languages."""
    korean, english = (model / "README.md").read_text("utf-8").split("\n# English\n")
    found, same = (re.findall(r"```bash\n(.*?)```", card, re.DOTALL) for card in (korean, english))
    assert found == same
    return found


def run_as_told(block: str, place: Path, run: Path) -> str:
    """What the block prints, run by bash in `place`, where the files of its other names lie."""
    filled = {"MODEL": run / "model", "RUN": run}
    text = re.sub(r"\b(MODEL|RUN)\b", lambda name: str(filled[name[0]].relative_to(place)), block)
    assert text != block
    (done,) = launch(["bash", "-e", "-c", text], cwd=place)
    assert done.code == 0, done.err
    return done.out


def names_in(directory: Path) -> set[Path]:
    return {path.relative_to(directory) for path in directory.rglob("*")}


def test_the_command_of_a_card_scores_as_the_framework_does(place: Path, run: Path) -> None:
    model = export_run(run)
    score, _ = commands(model)
    answer = json.loads(run_as_told(score, place, run))
    (given,) = re.findall(r"'(.*)'", score)
    asked = json.loads(given)
    expected = Reranker(model, device="cpu").score(asked["query"], asked["passages"])
    assert answer["query"] == asked["query"]
    assert answer["scores"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3, "a model that scores everything alike proves nothing"


@pytest.mark.parametrize(
    "asked",
    [{}, {"checkpoint": "last", "dtype": Precision.fp16, "onnx": True, "int8": "dev.jsonl", "int8_agreement": 0.25}],
    ids=["usual", "asked"],
)
def test_the_commands_of_a_card_put_the_table_of_its_weights_into_it(
    asked: dict[str, Any], place: Path, run: Path
) -> None:
    if "int8" in asked:
        asked = {**asked, "int8": str(place / asked["int8"])}
    model = export_run(run, **asked)
    score, evaluate = commands(model)
    weights, files = (model / "model.safetensors").read_bytes(), names_in(model)
    assert (Path(INT8_FILE) in files) == ("int8" in asked)
    run_as_told(evaluate, place, run)
    assert {"table.json", "table.md", "details.json"} <= {path.name for path in (run / "report").iterdir()}
    assert (model / "model.safetensors").read_bytes() == weights
    assert names_in(model) == files
    assert commands(model) == [score], "a card with the table says no more how to put it there"
    rows = json.loads((run / "report" / "table.json").read_text("utf-8"))
    assert [row["system"] for row in rows] == ["without-reranker", "base", "fine-tuned", "fused"]
    assert {row["queries"] for row in rows} == {len(texts_of(TOPICS, ACTIONS))}
    for language in (model / "README.md").read_text("utf-8").split("\n# English\n"):
        for row in rows:
            assert f"\n| {row['system']} | {row['has_right_in_contexts']['value']:.3f} [" in language
