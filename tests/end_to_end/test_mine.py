"""`reranker mine` on the shipped corpus, as a user runs it: what BM25 finds, and what the filters leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from reranker.demo.corpus import passages, queries
from reranker.groups import read_groups
from reranker.prepare.bm25 import BM25Index
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mine")
    texts = {passage["id"]: passage["text"] for passage in passages()}
    corpus = [{key: passage[key] for key in ("id", "text", "doc")} for passage in passages()]
    groups = [
        {"id": query["qid"], "query": query["query"], "pos": [texts[query["pos"]]], "also": query["also"]}
        for query in queries() if query["split"] == "dev"
    ]  # fmt: skip
    for name, values in (("corpus", corpus), ("groups", groups)):
        lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in values]
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory


def test_bm25_with_kiwi_reaches_an_mrr_of_0_42_over_all_dev_queries() -> None:
    names = [passage["id"] for passage in passages()]
    dev = [query for query in queries() if query["split"] == "dev"]
    found = BM25Index([passage["text"] for passage in passages()], "kiwi").search([q["query"] for q in dev], 10)
    total = 0.0
    for query, hits in zip(dev, found, strict=True):
        right = {query["pos"], *query["also"]}
        total += next((1 / rank for rank, (place, _) in enumerate(hits, 1) if names[place] in right), 0.0)
    assert len(dev) == 404
    assert total / len(dev) >= 0.42


def test_the_command_mines_groups_that_train_reads_and_says_what_it_left_out(inputs: Path) -> None:
    output = inputs / "out"
    finished = subprocess.run(
        [sys.executable, "-m", "reranker", "mine", f"groups={inputs / 'groups.jsonl'}", "workers=2",
         f"corpus={inputs / 'corpus.jsonl'}", f"output={output}", "teacher=bm25", "random_share=0.25"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    groups = list(read_groups(output / "groups.jsonl"))
    rejected = (output / "rejected.jsonl").read_text("utf-8").splitlines()
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert (report["groups"], report["rejected"]) == (len(groups), len(rejected))
    assert len(groups) + len(rejected) == 404
    texts = {passage["id"]: passage["text"] for passage in passages()}
    equivalent = {query["qid"]: {texts[name] for name in query["also"]} for query in queries()}
    for group in groups:
        assert not set(group.neg) & (set(group.pos) | equivalent[str(group.id)])
        assert len(set(group.neg)) == len(group.neg) <= 8
        assert group.pos_scores is not None
        assert group.neg_scores is not None
    assert report["dropped"]["margin"] > 0
    assert report["dropped"]["equivalent"] > 0


@pytest.mark.parametrize("broken", [False, True])
def test_the_encoder_of_a_reranker_loads_without_a_word_unless_its_own_weights_are_missing(
    broken: bool, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model")
    if broken:
        weights = load_file(model / "model.safetensors")
        del weights["roberta.encoder.layer.0.output.dense.weight"]
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "groups.jsonl").write_text('{"query": "q", "pos": ["a text"], "neg": ["another text"]}\n')
    finished = subprocess.run(
        [sys.executable, "-m", "reranker", "mine", f"groups={tmp_path / 'groups.jsonl'}", f"output={tmp_path / 'out'}",
         "retriever=dense", f"dense.model={model}", "dense.device=cpu", "margin=null"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert ("LOAD REPORT" in finished.stderr) is broken, finished.stderr


def test_an_encoder_looks_at_so_many_tokens_of_a_text(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    texts = ["one two three four five six", "one two three four seven eight"]
    (tmp_path / "groups.jsonl").write_text(json.dumps({"query": "q", "pos": texts[:1], "neg": texts[1:]}) + "\n")
    scores = {}
    for length in ("null", "5"):
        finished = subprocess.run(
            [sys.executable, "-m", "reranker", "mine", f"groups={tmp_path / 'groups.jsonl'}",
             f"output={tmp_path / 'out'}", "retriever=dense", f"dense.model={model}", "dense.device=cpu",
             "margin=null", "teacher=dense", f"dense.max_length={length}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr[-3000:]
        (group,) = read_groups(tmp_path / "out" / "groups.jsonl")
        assert group.pos_scores is not None
        assert group.neg_scores is not None
        scores[length] = (group.pos_scores[0], group.neg_scores[0])
    assert scores["null"][0] != scores["null"][1]
    assert scores["5"][0] == scores["5"][1]
