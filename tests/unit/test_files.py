"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reranker.errors import UserError
from reranker.files import atomic_directory, atomic_open, read_json, sha256, write_json, write_text


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_open(path) as stream:
        stream.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_an_error_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_open(path) as stream:
        stream.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("writer", ["atomic_open", "atomic_directory"])
def test_a_kill_in_the_middle_leaves_the_old_content(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if writer == "atomic_open":
        path.write_text("old")
        body = "stream.write(b'half'); stream.flush()"
    else:
        path.mkdir()
        (path / "part").write_text("old")
        body = "(stream / 'part').write_text('half')"
    script = (
        "import os, signal, sys\n"
        f"from reranker.files import {writer}\n"
        f"with {writer}(sys.argv[1]) as stream:\n"
        f"    {body}\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -signal.SIGKILL
    assert (path if writer == "atomic_open" else path / "part").read_text() == "old"


def test_a_directory_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for name in ("first", "second"):
        with atomic_directory(path) as staging:
            (staging / "deep").mkdir()
            (staging / "deep" / name).write_text(name)
    assert [entry.name for entry in (path / "deep").iterdir()] == ["second"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_an_error_in_the_middle_leaves_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_directory(path) as staging:
        (staging / "weights").write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_directory(path) as staging:
        (staging / "weights").write_text("new")
        raise OSError("disk full")
    assert (path / "weights").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_an_error_in_the_last_rename_brings_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    with atomic_directory(path) as staging:
        (staging / "weights").write_text("old")
    replace, calls = os.replace, []

    def failing(source: object, target: object) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError("no")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no"), atomic_directory(path):
        pass
    assert (path / "weights").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_what_is_written_has_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "")
        with atomic_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(mask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750


def test_json_that_is_missing_or_broken_is_the_users_to_mend(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"이름": 1})
    assert read_json(tmp_path / "a.json") == {"이름": 1}
    with pytest.raises(UserError, match=r"b\.json: found no such file, expected a JSON file; pack again"):
        read_json(tmp_path / "b.json", "pack again")
    (tmp_path / "c.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"c\.json: found no JSON \(Expecting value"):
        read_json(tmp_path / "c.json")


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
