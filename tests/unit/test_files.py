"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from reranker.errors import UserError
from reranker.files import atomic_directory, atomic_open, make_directory, read_json, sha256, write_json, write_text

Writer = Callable[[Path | str], AbstractContextManager[Any]]
both = pytest.mark.parametrize("writer", [atomic_open, atomic_directory])


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
    with pytest.raises(UserError, match=r"model: found a path that cannot be written \(no\)"), atomic_directory(path):
        pass
    assert (path / "weights").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("killed_before", [1, 2, 3])
def test_a_kill_between_the_renames_loses_no_directory(killed_before: int, tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_directory(path) as staging:
        (staging / "weights").write_text("old")
    script = (
        "import os, signal, sys\n"
        "from reranker.files import atomic_directory\n"
        "replace, calls = os.replace, []\n"
        "def killing(source, target):\n"
        "    calls.append(source)\n"
        f"    if len(calls) == {killed_before}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, target)\n"
        "os.replace = killing\n"
        "with atomic_directory(sys.argv[1]) as staging:\n"
        "    (staging / 'weights').write_text('new')\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -signal.SIGKILL
    assert path.exists() == (killed_before != 2)
    with pytest.raises(KeyboardInterrupt), atomic_directory(path):
        raise KeyboardInterrupt
    assert (path / "weights").read_text() == ("new" if killed_before == 3 else "old")


@pytest.fixture
def no_privileges() -> Iterator[None]:
    """Not even root may write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def refused(writer: Writer, path: Path | str) -> str:
    with pytest.raises(UserError) as caught, writer(path):
        pass
    return str(caught.value)


def cannot_be_written(path: Path | str, reason: str) -> str:
    return f"{path}: found a path that cannot be written ({reason}), expected one that can be; choose another one"


@both
def test_a_path_below_a_file_is_refused(writer: Writer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = (
        f"{tmp_path / 'file'}: found a file, expected a directory or nothing; move it away or choose another output"
    )
    assert refused(writer, tmp_path / "file" / "x") == message
    assert refused(writer, tmp_path / "file" / "deep" / "x") == message
    with pytest.raises(UserError, match="found a file, expected a directory or nothing"):
        make_directory(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@both
def test_a_path_that_the_system_refuses_is_named_with_the_reason(writer: Writer) -> None:
    assert refused(writer, "/proc/x") == cannot_be_written("/proc/x", "No such file or directory")


@both
def test_a_path_without_permission_is_named_with_the_reason(
    writer: Writer, tmp_path: Path, no_privileges: None
) -> None:
    for path in ("/usr/x", "/usr/deep/x"):
        assert refused(writer, path) == cannot_be_written(path, "Permission denied")
    with pytest.raises(UserError, match="Permission denied"):
        make_directory("/usr/deep")


@both
def test_without_room_one_line_is_told_and_nothing_is_left(writer: Writer, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "deeper" / "x"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))  # an OSError where a full disk has one
    try:
        with pytest.raises(UserError) as caught, writer(path) as output:
            if isinstance(output, Path):
                write_text(output / "part", "a" * 20_000)
            else:
                output.write(b"a" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    where = path / "part" if writer is atomic_directory else path
    assert str(caught.value) == (
        f"{where}: found no room to write it (File too large), expected room on the disk; "
        "make room or choose another place"
    )
    assert not list(tmp_path.iterdir())


def test_a_library_without_room_is_told_apart(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"model: found no room"), atomic_directory(tmp_path / "model") as staging:
            save_file({"weights": numpy.zeros(20_000)}, staging / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


@both
def test_an_error_about_another_file_stays_what_it_is(writer: Writer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writer(tmp_path / "x"):
        (tmp_path / "input").read_text()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_replaced_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "expected a directory to make or to replace; name another one"
    for name in (".", "..", "/", str(tmp_path)):
        assert refused(atomic_directory, name) == (
            f"{name}: found the directory that this command runs in, or one above it, {expected}"
        )
    assert refused(atomic_directory, "/proc") == f"/proc: found a mount point, {expected}"
    Path("file").write_text("mine")
    assert refused(atomic_directory, "file") == f"file: found a file, {expected}"
    Path("directory").mkdir()
    expected = "expected a file or nothing; name another one"
    assert refused(atomic_open, "directory") == f"directory: found a directory, {expected}"
    assert refused(atomic_open, "/dev/null") == f"/dev/null: found a device or pipe, {expected}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file"]


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    for name in ("file", "directory"):
        (tmp_path / name).symlink_to(tmp_path / "far" / name)
    write_text(tmp_path / "file", "new")
    for text in ("old", "new"):
        with atomic_directory(tmp_path / "directory") as staging:
            (staging / "part").write_text(text)
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "directory").is_symlink()
    assert (tmp_path / "far" / "file").read_text() == (tmp_path / "far" / "directory" / "part").read_text() == "new"


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
