"""Where a training goes on, and what it refuses to go on with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from reranker.config.training import TrainConfig
from reranker.data.plan import Cursor
from reranker.errors import UserError
from reranker.train.resume import move, refuse, stored

STORED = Cursor(seed=42, epoch=1, position=70, groups=10, fingerprint="abc")


def test_without_differences_it_goes_on_where_it_stood() -> None:
    assert move(STORED, Cursor(42, 0, 0, 10, "abc"), {}) == STORED


def test_with_another_batch_it_goes_on_at_the_last_border_of_its_steps() -> None:
    for groups, position in ((16, 64), (7, 70), (35, 70), (100, 0)):
        moved = move(STORED, Cursor(42, 0, 0, groups, "abc"), {"batch.groups": (10, groups)})
        assert moved == Cursor(42, 1, position, groups, "abc")
        assert 0 <= STORED.position - position < groups


@pytest.mark.parametrize("key", ["data.shards", "train.seed", "data.shuffle_block"])
def test_with_other_groups_or_another_order_the_epoch_begins_anew(key: str) -> None:
    assert move(STORED, Cursor(7, 0, 0, 10, "xyz"), {key: (1, 2)}) == Cursor(7, 1, 0, 10, "xyz")


def test_a_setting_that_a_checkpoint_does_not_know_has_its_default() -> None:
    usual = asdict(TrainConfig().data.negatives)
    config = {"data": {"negatives": {"warmup": 0.25}, "group_size": 5}}
    assert stored(config, "data", "negatives") == usual | {"warmup": 0.25}
    assert stored(config, "data", "group_size") == 5
    assert stored(config, "data", "positives") == 1
    assert stored(config, "loss", "by_label") == "listwise"


def test_everything_that_differs_is_named_and_can_be_accepted() -> None:
    differences = {"data.shards": ("abc", "xyz"), "tokenizer": ("t1", "t2"), "data.group_size": (3, 5)}
    path = Path("runs/x/checkpoints/step-00000007")
    with pytest.raises(UserError) as caught:
        refuse(differences, [], path)
    assert str(caught.value) == (
        f"data.shards: found xyz, but {path} was made with abc; tokenizer t2, but t1; data.group_size 5, but 3, expected "
        "the same values; restore them, choose another run_dir, or say "
        "train.accept=[data.shards,tokenizer,data.group_size]"
    )
    with pytest.raises(UserError) as caught:
        refuse(differences, ["data.shards", "data.group_size"], path)
    assert str(caught.value) == (
        f"tokenizer: found t2, but {path} was made with t1, expected the same value; restore it, choose another run_dir, or "
        "say train.accept=[tokenizer]"
    )
    refuse(differences, list(differences), path)
    refuse({}, [], path)
