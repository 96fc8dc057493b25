"""What the settings put before texts, and cut of them, is what is trained on, evaluated and exported; no more, no less."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from reranker import Reranker
from reranker.groups import Group, read_groups, write_groups
from reranker.prepare.pack import pack
from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import run as run_ranks
from tests.distributed.ranks import train
from tests.distributed.test_resume import last_checkpoint, snapshot

QUERY, PASSAGE = "물음: ", "글 |"
PREFIXES = {"data.query_prefix": f'"{QUERY}"', "data.passage_prefix": f'"{PASSAGE}"'}


def by_hand(group: Group) -> Group:
    """The group with its texts as the prefixes make them."""
    return dataclasses.replace(
        group, query=QUERY + group.query, pos=tuple(PASSAGE + text for text in group.pos),
        neg=tuple(PASSAGE + text for text in group.neg),
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The same inputs with the prefixes in their texts."""
    root = tmp_path_factory.mktemp("written")
    groups = [by_hand(group) for group in inputs.groups]
    pack(groups, root / "shards", {"name": "groups.jsonl"}, groups_per_shard=40)
    write_groups(root / "dev.jsonl", map(by_hand, read_groups(inputs.dev)))
    return Inputs(inputs.model, root / "shards", root / "dev.jsonl", groups)


def settings(inputs: Inputs, **more: Any) -> dict[str, Any]:
    """Six steps by tokens, in which some queries and most passages are cut."""
    return {
        "data.dev": inputs.dev, "precision": "fp32", "batch.policy": "tokens", "batch.tokens": 400,
        "train.epochs": 2, "data.query_max_length": 9, "data.passage_max_length": 12, **more,
    }  # fmt: skip


@pytest.mark.parametrize("world", [1, 2])
def test_a_training_with_prefixes_is_that_on_texts_that_have_them(
    world: int, inputs: Inputs, written: Inputs, tmp_path: Path
) -> None:
    told, held = tmp_path / "told", tmp_path / "held"
    train(world, inputs.overrides(told, **settings(inputs), **PREFIXES))
    train(world, written.overrides(held, **settings(written)))

    def lasting(run_dir: Path) -> list[dict[str, Any]]:
        names = ("step", "train/loss", "train/grad_norm", "eval/mrr", "eval/ndcg@10")
        return [{name: record[name] for name in names if name in record} for record in records(run_dir)]

    assert lasting(told) == lasting(held)
    assert [record["step"] for record in lasting(told) if "train/loss" in record] == [1, 2, 3, 4, 5, 6]
    assert any("eval/mrr" in record for record in lasting(told))
    one, other = (load_file(run_dir / "model" / "model.safetensors") for run_dir in (told, held))
    assert all((one[name] == other[name]).all() for name in one)
    group = inputs.groups[0]
    ours = Reranker(told / "model", device="cpu").score(group.query, group.neg)
    assert ours == Reranker(held / "model", device="cpu").score(by_hand(group).query, by_hand(group).neg)
    assert ours != Reranker(held / "model", device="cpu").score(group.query, group.neg)
    contract = json.loads((told / "model" / "config.json").read_text("utf-8"))["reranker"]
    assert (contract["query_prefix"], contract["passage_prefix"]) == (QUERY, PASSAGE)
    assert (contract["query_max_length"], contract["passage_max_length"]) == (9, 12)


def test_resume_with_other_prefixes_or_lengths_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(1, inputs.overrides(run, **settings(inputs), **PREFIXES))
    checkpoint, before = last_checkpoint(run), snapshot(run)
    for change, keys in (
        ({"data.query_prefix": '"물음:"'}, ["data.query_prefix"]),
        ({"data.passage_prefix": '""', "data.passage_max_length": "null"},
         ["data.passage_max_length", "data.passage_prefix"]),
    ):  # fmt: skip
        again = settings(inputs) | PREFIXES | {"train.epochs": 3} | change
        (rank,) = run_ranks(1, ["train", *inputs.overrides(run, **again)])
        assert rank.code == 2
        line = rank.err.splitlines()[-1]
        assert line.startswith(f"reranker: error: {keys[0]}: found ")
        assert f", but {checkpoint} was made with " in line
        assert line.endswith(f"say train.accept=[{','.join(keys)}]")
    assert snapshot(run) == before
    accepted = settings(inputs) | PREFIXES | {"train.epochs": 3, "data.query_prefix": '"물음:"',
                                              "train.accept": "[data.query_prefix]"}  # fmt: skip
    train(1, inputs.overrides(run, **accepted))
    assert json.loads((run / "model" / "config.json").read_text("utf-8"))["reranker"]["query_prefix"] == "물음:"


def test_a_prefix_that_leaves_no_room_ends_a_training_before_it_begins(inputs: Inputs, tmp_path: Path) -> None:
    more = settings(inputs) | {"data.query_prefix": '"아주 긴 물음 앞에 서는 말 "'}
    (rank,) = run_ranks(1, ["train", *inputs.overrides(tmp_path / "run", **more)])
    assert rank.code == 2
    assert (
        " tokens, expected fewer than the 9 that a query has in a long pair; shorten it or raise data.max_length"
        in (rank.err.splitlines()[-1])
    )
    assert rank.err.splitlines()[-1].startswith("reranker: error: data.query_prefix: found ")
    assert not (tmp_path / "run").exists()
