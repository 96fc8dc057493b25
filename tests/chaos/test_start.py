"""A request to stop that comes before a rank can take it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.conftest import Inputs
from tests.distributed.ranks import ROOT, environment, until


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("module", [["reranker.train"], ["reranker", "train"]])
def test_a_request_to_stop_while_a_rank_still_imports_is_kept(
    inputs: Inputs, tmp_path: Path, module: list[str], name: str
) -> None:
    command = [sys.executable, "-m", *module, *inputs.overrides(tmp_path / "run", precision="fp32")]
    rank = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        maps = Path(f"/proc/{rank.pid}/maps")
        until(lambda: "libtorch" in maps.read_text() or rank.poll() is not None, lambda: "torch is not imported")
        rank.send_signal(getattr(signal, name))
        out, err = rank.communicate(timeout=300)
    finally:
        rank.kill()
    assert rank.returncode == 0, err
    assert f"stopped by {name} behind step 0 of" in out
    assert json.loads((tmp_path / "run" / "requeue").read_text("utf-8")) == {"step": 0, "signal": name}
