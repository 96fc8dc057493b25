"""What `reranker data inspect` tells is what the shards hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from reranker.config.shards import DataInspectConfig
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.groups import Group
from reranker.prepare.inspect import Counted, inspect_command
from reranker.prepare.pack import pack
from tests.tiny import tiny_model


@given(st.lists(st.lists(st.integers(0, 300), max_size=30), min_size=1, max_size=5).filter(any))
def test_percentiles_are_those_of_the_numbers_themselves(parts: list[list[int]]) -> None:
    counted = Counted()
    for part in parts:
        counted.add(np.array(part, dtype=np.int64))
    values = [value for part in parts for value in part]
    assert (counted.total, counted.below(100)) == (len(values), sum(value < 100 for value in values))
    assert counted.mean == pytest.approx(np.mean(values))
    for percent in (0, 10, 50, 90, 99, 100):
        assert counted.share(percent) == np.percentile(values, percent, method="inverted_cdf")


def test_counts_lengths_policies_and_samples_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [Group(f"질문 {n}", (f"정답 {n}",), tuple(f"오답 {n} {i}" for i in range(n % 3 + 1))) for n in range(30)]
    pack(groups, tmp_path / "shards", {"name": "g.jsonl"}, groups_per_shard=12)
    model = tiny_model(tmp_path / "model")
    config = DataInspectConfig(str(tmp_path / "shards"), str(model), samples=2, worlds=[1, 3], max_length=32,
                               groups=8, tokens=128)  # fmt: skip
    assert inspect_command(config) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert "30 groups in 3 shards of 6 to 12 groups" in out
    assert ["positives", "1", "1", "1", "1", "1", "1", "1.0"] in lines
    assert ["negatives", "1", "1", "2", "3", "3", "3", "2.0"] in lines
    assert "10 groups have fewer than the 2 negatives of group_size=3" in out
    assert "0.0% of the pairs are cut at max_length=32" in out
    # 8 groups do not divide by 3 ranks; by tokens they are shared out all the same.
    assert sum(line[:2] == ["3", "fixed"] and "divide" in line for line in lines) == 2
    packed = next(line for line in lines if line[:3] == ["3", "tokens", "packed"])
    assert 50 < float(packed[-1].rstrip("%")) <= 100
    shown = [group for group in groups if f"  query     {group.query}\n" in out]
    assert len(shown) == 2
    assert all(f"  positive  {group.pos[0]}\n" in out for group in shown)


def test_prefixes_and_lengths_of_their_own_are_counted_as_training_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [Group("질문", ("정답",), ("글을 쓰는 방법 " * (n % 3) + "끝", "나")) for n in range(30)]
    pack(groups, tmp_path / "shards", {"name": "g.jsonl"}, groups_per_shard=12)
    model = tiny_model(tmp_path / "model")

    def shown(**more: Any) -> str:
        settings = {"samples": 0, "worlds": [1], "max_length": 64, "groups": 8, "tokens": 256, **more}
        assert inspect_command(DataInspectConfig(str(tmp_path / "shards"), str(model), **settings)) == 0
        return capsys.readouterr().out

    def least(out: str, text: str) -> int:
        return int(next(line for line in out.splitlines() if line.startswith(f"  {text} ")).split()[1])

    bare, prefixed = shown(), shown(query_prefix="물음: ", passage_prefix="글: ")
    count = PairTokenizer(AutoTokenizer.from_pretrained(model), Contract()).lengths
    assert [least(bare, "query"), least(bare, "passage")] == count(["질문", "나"])
    assert [least(prefixed, "query"), least(prefixed, "passage")] == count(["물음: 질문", "글: 나"])
    assert "  0.0% of the pairs are cut at max_length=64\n" in bare
    capped = shown(passage_max_length=6, query_max_length=9)
    tokens = count([text for group in groups for text in (*group.pos, *group.neg)])
    share = sum(number > 6 for number in tokens) / len(tokens)
    assert 0.2 < share < 0.3
    assert f"  {share:.1%} of the pairs are cut at max_length=64, query_max_length=9, passage_max_length=6\n" in capped


def test_without_a_tokenizer_it_says_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack([Group("q", ("p",), ("n",))], tmp_path / "shards", {"name": "g"}, groups_per_shard=1)
    assert inspect_command(DataInspectConfig(str(tmp_path / "shards"))) == 0
    assert "say tokenizer=MODEL" in capsys.readouterr().out
