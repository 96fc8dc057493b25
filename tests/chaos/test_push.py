"""A push that is killed while a file is on its way has changed nothing that anybody sees, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from reranker.export.huggingface import export_run
from tests.hub import OWNER, TOKEN, hub
from tests.tiny import tiny_model
from tests.unit.test_export import make_run
from tests.unit.test_push import contents

ROOT = Path(__file__).resolve().parents[2]
REPO = f"{OWNER}/model"


def test_a_push_that_is_killed_leaves_the_repository_as_it_was_and_the_same_command_goes_on(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    model = export_run(make_run(tmp_path / "run", base, load_file(base / "model.safetensors")))
    online = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    with hub() as server:
        repository = server.make(REPO, private=True, files={"README.md": b"old"})
        command = [sys.executable, "-m", "reranker", "push", f"model={model}", f"repo={REPO}", f"endpoint={server.url}"]
        server.mishaps["upload"] = ["stall"]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **online}, start_new_session=True)
        try:
            assert server.stalled.wait(120)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        server.resume.set()
        assert repository.files() == {"README.md": b"old"}
        again = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **online}, capture_output=True, text=True, timeout=120
        )
        assert again.returncode == 0, again.stderr
        assert repository.files() == contents(model)
        assert len(repository.commits) == 2
        assert TOKEN not in again.stdout + again.stderr
