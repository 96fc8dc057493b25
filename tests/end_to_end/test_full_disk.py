"""A real disk that is full while a checkpoint is written: a small tmpfs, in a mount namespace of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.distributed.ranks import launch
from tests.end_to_end.small_disk import STEPS


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    # As root of a namespace: whoever runs this may mount there, and nothing of it is left outside.
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    (ended,) = launch([*command, sys.executable, "-m", "tests.end_to_end.small_disk", str(tmp_path)])
    assert ended.code == 0, ended.err
    told = json.loads(ended.out.splitlines()[-1])
    assert told["codes"] == [0, 0], told["err"]
    assert "not saved, no room to write it (No space left on device); the training goes on" in told["err"]
    assert len(told["whole_meanwhile"]) == 1
    # Every record is there, those of the full disk as well, and the last checkpoint and the model are whole.
    assert told["steps"] == list(range(1, STEPS + 1))
    assert (told["left"], told["damage"], told["model"]) == ([f"step-{STEPS:08d}"], [None], True)
