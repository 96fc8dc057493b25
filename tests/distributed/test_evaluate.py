"""An evaluation on real ranks: no query is dropped or doubled, and the report is that of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.conftest import WORDS
from tests.distributed.ranks import Finished, run
from tests.tiny import tiny_model

QUERIES = 23
"""Divides by no number of ranks."""
FILES = ("table.json", "queries.jsonl", "passages.jsonl", "scores/docs.fine-tuned.json", "scores/groups.base.json")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and sets of passages and queries that differ in length."""
    directory = tmp_path_factory.mktemp("sets")
    for seed, name in enumerate(("tuned", "base")):
        tiny_model(directory / name, seed=seed)
    texts = {f"p{place}": " ".join(WORDS[place % 20 :] + WORDS[: (7 * place) % 20]) for place in range(40)}
    queries = [
        {"qid": f"q{place}", "query": " ".join(WORDS[place % 20 :][: 1 + place % 5]), "pos": f"p{place}"}
        for place in range(QUERIES)
    ]
    groups = [{"query": query["query"], "pos": [texts[query["pos"]]], "neg": [texts[f"p{place}"] for place in range(30, 33 + index % 4)]}
              for index, query in enumerate(queries)]  # fmt: skip
    for name, records in {
        "corpus": [{"id": name, "text": text} for name, text in texts.items()], "queries": queries, "groups": groups,
    }.items():  # fmt: skip
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    (directory / "sets.yaml").write_text(
        f"docs: {{form: own, corpus: {directory}/corpus.jsonl, queries: {directory}/queries.jsonl}}\ngroups: {directory}/groups.jsonl\n"
    )
    return directory


def evaluate(sets: Path, world: int, output: Path, *more: str) -> list[Finished]:
    return run(world, [
        "evaluate", f"model={sets}/tuned", f"base={sets}/base", f"sets={sets}/sets.yaml", f"output={output}", "depth=9",
        "first_stage.analyzer=words", "resamples=100", "permutations=100", "batch_tokens=512", "device=cpu", *more,
    ])  # fmt: skip


def test_the_report_is_that_of_one_process_on_any_number_of_ranks(sets: Path, tmp_path: Path) -> None:
    for world in (1, 2, 3):
        ranks = evaluate(sets, world, tmp_path / str(world))
        assert [rank.code for rank in ranks] == [0] * world, "\n".join(rank.err for rank in ranks)
        assert all(rank.out == "" for rank in ranks[1:])
        lines = [json.loads(line) for line in (tmp_path / f"{world}/queries.jsonl").read_text("utf-8").splitlines()]
        assert [(line["set"], line["qid"]) for line in lines] == [
            *(("docs", f"q{place}") for place in range(QUERIES)), *(("groups", str(place + 1)) for place in range(QUERIES)),
        ]  # fmt: skip
        for file in FILES:
            assert (tmp_path / str(world) / file).read_bytes() == (tmp_path / "1" / file).read_bytes(), (world, file)
    # A report of another number of ranks is shown, and not made again.
    (first, second) = evaluate(sets, 2, tmp_path / "1")
    assert "inputs unchanged" in first.out
    assert second.out == ""


def test_a_mistake_is_told_once_and_ends_every_rank(sets: Path, tmp_path: Path) -> None:
    ranks = evaluate(sets, 2, tmp_path / "report", f"model={tmp_path}")
    assert [rank.code for rank in ranks] == [2, 2]
    assert "".join(rank.err for rank in ranks).count("reranker: error: model: found") == 1
    assert not (tmp_path / "report").exists()
