"""An installed wheel holds all that the checkout holds: settings, scripts, documents, notices."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT)]
    subprocess.run(command, check=True)
    (built,) = directory.glob("*.whl")
    return built


def test_settings_scripts_documents_and_notices_are_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for directory, inside in (("conf", "reranker/conf"), ("launch", "reranker/launch")):
        carried = {path.relative_to(ROOT / directory).as_posix() for path in (ROOT / directory).rglob("*.*")}
        assert carried
        assert {f"{inside}/{name}" for name in carried} <= names
    for name in ("corpus.jsonl.gz", "queries.jsonl.gz", "NOTICE.md", "MPL-2.0.txt", "CC-BY-SA-3.0.txt"):
        assert f"reranker/demo/documents/{name}" in names
    assert {"reranker/export/card.en.yaml", "reranker/export/card.ko.yaml"} <= names
    assert not [name for name in names if name.startswith(("tests/", "runs/"))]


@pytest.mark.parametrize("script", ["demo.sh", "test.sh"])
def test_a_script_that_wants_a_checkout_says_so_in_an_installed_package(
    script: str, wheel: Path, tmp_path: Path
) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    finished = subprocess.run(
        ["bash", str(tmp_path / "reranker" / "launch" / script)], cwd="/", capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == (
        f"error: {tmp_path / 'reranker'}: found no pyproject.toml beside launch/, expected a checkout of the "
        "repository; run this script in one (an installed package has the reranker command and launch/local.sh)\n"
    )
    assert sorted(tmp_path.rglob("*")) == before  # no .venv


def test_the_command_works_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    shown = subprocess.run(
        [sys.executable, "-c", "import reranker, sys; print(reranker.__file__); from reranker.cli import main;"
         "sys.exit(main(['train', 'recipe=ko_reranker', '--cfg', 'job']))"],
        env={**os.environ, "PYTHONPATH": str(site)}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(site) in shown.stdout
    assert "lr: 5.0e-06" in shown.stdout
