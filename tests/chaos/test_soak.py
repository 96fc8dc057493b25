"""Twenty random faults, one after another: nothing is lost (`bash tests/chaos/soak.sh 200` is the long form)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.soak import soak
from tests.distributed.conftest import Inputs


@pytest.mark.timeout(2400)  # some thirty trainings
def test_twenty_random_faults_lose_nothing(inputs: Inputs, tmp_path: Path) -> None:
    tally = soak(inputs, tmp_path, 20, seed=1)
    assert tally.failures == 0, tally.to_dict()
    assert tally.faults.total() >= 20
    assert tally.trainings >= 1
