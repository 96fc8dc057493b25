"""Copies of remote files: whole or absent, fetched once for all processes, within the limit, at home in a fork."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import fsspec
import pytest
import tenacity
from filelock import FileLock

from reranker.data import fetch
from reranker.data.cache import ShardCache
from reranker.errors import UserError
from tests.server import FileServer, serving

KIB = 1 << 10
CONTENT = {name: random.Random(name).randbytes(100 * KIB) for name in "abcdef"}
fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "WAIT", tenacity.wait_none())


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as server:
        server.files.update(CONTENT)
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 350 * KIB)


def digest(name: str) -> str:
    return hashlib.sha256(CONTENT[name]).hexdigest()


def file(server: FileServer, name: str) -> tuple[str, str, int]:
    return server.url(name), digest(name), len(CONTENT[name])


def read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as stream:
        return stream.read()


def fetched(cache: ShardCache, server: FileServer, name: str) -> bool:
    content = read(cache.open(*file(server, name)))
    assert content == CONTENT[name]
    return True


def copies(cache: ShardCache) -> str:
    """Names of the files that the cache holds, in order."""
    names = {digest(name): name for name in CONTENT}
    return "".join(sorted(names[path.name] for path in cache.directory.glob("*") if path.name in names))


def parts(cache: ShardCache) -> list[str]:
    return [path.name for path in cache.directory.glob("*.part")]


def refused(cache: ShardCache, location: str, name: str, size: int | None = 100 * KIB) -> str:
    with pytest.raises(UserError) as caught:
        cache.open(location, digest(name), size)
    return str(caught.value)


def in_fork(function: Callable[[], object]) -> int | None:
    """The exit code of a forked process that calls `function`; it is killed if it hangs."""
    process = fork.Process(target=function)
    process.start()
    process.join(20)
    process.kill()
    process.join()
    return process.exitcode


def test_a_file_is_fetched_once_and_read_from_its_copy_afterwards(cache: ShardCache, server: FileServer) -> None:
    for _ in range(3):
        assert fetched(cache, server, "a")
    assert fetched(ShardCache(cache.directory, cache.limit), server, "a")
    assert server.gets == ["a"]


def test_a_copy_is_not_read_again_to_be_verified(cache: ShardCache, server: FileServer) -> None:
    fetched(cache, server, "a")
    path = cache.directory / digest("a")
    path.write_bytes(b"x" * (100 * KIB))
    assert read(cache.open(*file(server, "a"))) == b"x" * (100 * KIB)


def test_equal_files_of_two_urls_are_one_copy(cache: ShardCache, server: FileServer) -> None:
    server.files["same"] = CONTENT["a"]
    fetched(cache, server, "a")
    os.close(cache.open(server.url("same"), digest("a"), 100 * KIB))
    assert server.gets == ["a"]


def test_a_descriptor_is_for_reading_only(cache: ShardCache, server: FileServer) -> None:
    descriptor = cache.open(*file(server, "a"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"x")
    os.close(descriptor)


def test_a_file_of_unknown_size_is_fetched(cache: ShardCache, server: FileServer) -> None:
    assert read(cache.open(server.url("a"), digest("a"))) == CONTENT["a"]


def test_a_server_of_ranges_is_read_in_ranges(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(12_000_000)  # fsspec asks for 5 MiB at a time
    with serving(ranges=True) as server:
        server.files["big"] = content
        cache = ShardCache(tmp_path, 1 << 30)
        descriptor = cache.open(server.url("big"), hashlib.sha256(content).hexdigest(), len(content))
        assert read(descriptor) == content
        assert len(server.gets) > 1


def test_a_file_may_take_longer_than_the_five_minutes_of_aiohttp(
    cache: ShardCache, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiohttp.client, "DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    fsspec.get_filesystem_class("http").clear_instance_cache()
    server.mishaps["a"] = ["stall"]
    threading.Timer(0.25, server.resume.set).start()
    assert fetched(cache, server, "a")
    assert server.gets == ["a"]


def test_what_a_command_prints_is_a_file(cache: ShardCache, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT["a"])
    assert read(cache.open(f"pipe:cat {tmp_path}/a", digest("a"), 100 * KIB)) == CONTENT["a"]


@pytest.mark.parametrize("size", [100 * KIB, None])
def test_a_command_that_fails_after_it_printed_everything_is_a_failed_fetch(
    size: int | None, cache: ShardCache, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(CONTENT["a"])
    location = f"pipe:cat {tmp_path}/a; exit 7"
    assert refused(cache, location, "a", size) == (
        f"{location}: found a file that cannot be fetched (OSError: the command ended with status 7), "
        "expected a readable file; check the location, the network and the credentials"
    )
    assert (copies(cache), parts(cache)) == ("", [])


@pytest.mark.parametrize("mishap", ["error", "cut", "changed", "longer"])
@pytest.mark.parametrize("size", [100 * KIB, None])
def test_a_fetch_that_fails_is_tried_again(
    size: int | None, mishap: str, cache: ShardCache, server: FileServer
) -> None:
    server.mishaps["a"] = [mishap] * 3
    assert read(cache.open(server.url("a"), digest("a"), size)) == CONTENT["a"]
    assert server.gets == ["a"] * 4
    assert parts(cache) == []


@pytest.mark.parametrize(
    ("mishap", "reason"),
    [
        ("error", "ClientResponseError: 503, message='Service Unavailable', url='URL'"),
        ("cut", "ContentLengthError: 400, message:"),
    ],
)
def test_a_fetch_that_goes_on_failing_is_told_in_one_line(
    mishap: str, reason: str, cache: ShardCache, server: FileServer
) -> None:
    server.mishaps["a"] = [mishap] * 99
    message = refused(cache, server.url("a"), "a").replace(server.url("a"), "URL")
    assert message.startswith(f"URL: found a file that cannot be fetched ({reason}")
    assert message.endswith("), expected a readable file; check the location, the network and the credentials")
    assert "\n" not in message
    assert server.gets == ["a"] * 4
    assert (copies(cache), parts(cache)) == ("", [])


def test_no_file_no_server_and_no_file_system_are_told_in_one_line(cache: ShardCache, server: FileServer) -> None:
    message = refused(cache, server.url("none"), "a").replace(server.url("none"), "URL")
    assert message == (
        "URL: found a file that cannot be fetched (ClientResponseError: 404, message='Not Found', url='URL'), "
        "expected a readable file; check the location, the network and the credentials"
    )
    assert "Connect call failed" in refused(cache, "http://127.0.0.1:9/a", "a")
    message = refused(cache, "nosuch://bucket/a", "a")
    assert message.startswith("nosuch://bucket/a: found ")
    assert "expected a URL that an installed fsspec file system opens" in message


@pytest.mark.parametrize(
    ("mishap", "size", "difference"),
    [
        ("changed", 100 * KIB, "(sha256 {}…), expected {}…"),
        ("changed", None, "(sha256 {}…), expected {}…"),
        ("longer", None, "(sha256 {}…), expected {}…"),
        ("longer", 100 * KIB, "(102401 bytes), expected 102400"),
    ],
)
def test_a_file_that_is_not_the_one_of_the_manifest_is_refused(
    mishap: str, size: int | None, difference: str, cache: ShardCache, server: FileServer
) -> None:
    server.mishaps["a"] = [mishap] * 99
    wrong = bytes([CONTENT["a"][0] ^ 1]) + CONTENT["a"][1:] if mishap == "changed" else CONTENT["a"] + b"!"
    difference = difference.format(hashlib.sha256(wrong).hexdigest()[:16], digest("a")[:16])
    assert refused(cache, server.url("a"), "a", size) == (
        f"{server.url('a')}: found bytes that differ from the manifest {difference}; "
        "if the file was changed on purpose, pack or index the shards again"
    )
    assert (copies(cache), parts(cache)) == ("", [])


def test_a_manifest_cannot_name_a_path_of_this_node(cache: ShardCache, server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine", encoding="utf-8")
    expected = "found sha256 '../secret', expected 64 hexadecimal digits; make the manifest anew"
    for use in (cache.open, cache.drop):
        with pytest.raises(UserError, match=expected):
            use(server.url("a"), "../secret")
    assert (tmp_path / "secret").read_text("utf-8") == "mine"


def test_the_copies_not_used_for_longest_make_room(cache: ShardCache, server: FileServer) -> None:
    seen = []
    for name in "abcadbe":  # three fit
        fetched(cache, server, name)
        seen.append(copies(cache))
    assert seen == ["a", "ab", "abc", "abc", "acd", "abd", "bde"]
    assert server.gets == list("abcdbe")


def test_one_that_fits_alone_makes_all_others_go(cache: ShardCache, server: FileServer) -> None:
    content = bytes(340 * KIB)
    server.files["big"] = content
    for name in "abc":
        fetched(cache, server, name)
    os.close(cache.open(server.url("big"), hashlib.sha256(content).hexdigest(), len(content)))
    assert copies(cache) == ""
    assert sum(path.stat().st_size for path in cache.directory.iterdir()) == len(content)


def test_files_of_others_in_the_directory_are_left_alone(cache: ShardCache, server: FileServer) -> None:
    cache.directory.mkdir()
    others = ["thesis.tex", digest("f")[:-1], f"{digest('f')}.bak", "x.part"]
    for name in others:
        (cache.directory / name).write_bytes(bytes(400 * KIB))
    for name in "abcde":
        fetched(cache, server, name)
    assert all((cache.directory / name).stat().st_size == 400 * KIB for name in others)


def test_an_evicted_copy_can_be_read_on_by_who_holds_it_open(cache: ShardCache, server: FileServer) -> None:
    descriptor = cache.open(*file(server, "a"))
    for name in "bcd":
        fetched(cache, server, name)
    assert copies(cache) == "bcd"
    assert read(descriptor) == CONTENT["a"]
    assert fetched(cache, server, "a")


@pytest.mark.parametrize("size", [100 * KIB, None])
def test_a_file_larger_than_the_limit_is_refused(size: int | None, server: FileServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 50 * KIB)
    assert refused(cache, server.url("a"), "a", size) == (
        f"data.cache.gib: found 4.77e-05, too little for the 9.54e-05 GiB of {server.url('a')}, "
        "expected room for the largest file at least; raise it"
    )
    assert server.gets == ([] if size else ["a"])
    assert (copies(cache), parts(cache)) == ("", [])


def test_a_disk_that_is_full_is_told_with_the_directory(cache: ShardCache, server: FileServer, tmp_path: Path) -> None:
    cache.limit = 10_000 * KIB
    (tmp_path / "big").write_bytes(bytes(5_000 * KIB))  # a command that prints more than a pipe holds
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50 * KIB, limit[1]))  # an OSError where a full disk has one
    try:
        for location in (server.url("a"), f"pipe:cat {tmp_path}/big"):
            for size in (100 * KIB, None):
                assert refused(cache, location, "a", size) == (
                    f"{cache.directory}: found no room to write it (File too large), expected room on the disk; "
                    "make room or choose another place"
                )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert server.gets == ["a"]  # room for 100 KiB is not even there at the start, and nothing is tried again
    assert (copies(cache), parts(cache)) == ("", [])


def test_a_file_that_is_too_long_does_not_fill_the_disk(cache: ShardCache, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(5_000 * KIB))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (cache.limit, limit[1]))
    try:
        messages = [refused(cache, f"pipe:cat {tmp_path}/big", "a", size) for size in (100 * KIB, None)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "found bytes that differ from the manifest (5120000 bytes), expected 102400" in messages[0]
    assert messages[1].startswith("data.cache.gib: found 0.000334, too little for the 0.00477 GiB of pipe:cat")


def test_a_directory_that_cannot_be_made_is_told(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for directory, reason in ((tmp_path / "file" / "cache", "Not a directory"), ("/proc/cache", "No such file")):
        assert refused(ShardCache(directory, 1 << 30), server.url("a"), "a").startswith(
            f"{directory}: found a path that cannot be written ({reason}"
        )


def test_a_dropped_copy_is_fetched_again(cache: ShardCache, server: FileServer) -> None:
    fetched(cache, server, "a")
    (cache.directory / digest("a")).write_bytes(bytes(100 * KIB))
    cache.drop(*file(server, "a")[:2])
    assert fetched(cache, server, "a")
    cache.drop(*file(server, "b")[:2])  # never there
    assert server.gets == ["a", "a"]


def test_a_copy_of_another_size_is_fetched_again(cache: ShardCache, server: FileServer) -> None:
    fetched(cache, server, "a")
    os.truncate(cache.directory / digest("a"), 10)
    assert fetched(cache, server, "a")


def test_two_processes_that_want_one_file_fetch_it_once(cache: ShardCache, server: FileServer) -> None:
    server.mishaps["a"] = ["stall"]
    first = fork.Process(target=fetched, args=(cache, server, "a"))
    first.start()
    assert server.stalled.wait(20)
    others = [fork.Process(target=fetched, args=(cache, server, "a")) for _ in range(3)]
    for process in others:
        process.start()
    server.resume.set()
    for process in (first, *others):
        process.join(20)
    assert [process.exitcode for process in (first, *others)] == [0] * 4
    assert server.gets == ["a"]


def test_many_processes_of_many_files_stay_within_the_limit(cache: ShardCache, server: FileServer) -> None:
    """Three files fit, so six processes evict what the others fetch, and wait for the room that they take."""

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for name in chance.choices("abcdef", k=20):
            size = chance.choice([None, 100 * KIB])
            assert read(cache.open(server.url(name), digest(name), size)) == CONTENT[name]
            with FileLock(cache.directory / "directory.lock"):  # so that none comes or goes while they are counted
                assert len(copies(cache)) <= 3

    processes = [fork.Process(target=work, args=(seed,)) for seed in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert parts(cache) == []


def test_a_fetch_waits_for_the_room_that_another_one_takes(server: FileServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 150 * KIB)
    server.mishaps["a"] = ["stall"]
    first = fork.Process(target=fetched, args=(cache, server, "a"))
    first.start()
    assert server.stalled.wait(20)
    seconds = [threading.Thread(target=fetched, args=(cache, server, name)) for name in "bc"]
    seconds.append(threading.Thread(target=lambda: os.close(cache.open(server.url("d"), digest("d")))))
    for thread in seconds:
        thread.start()
    assert "b" not in server.gets
    server.resume.set()
    for thread in (first, *seconds):
        thread.join(20)
    assert not any(thread.is_alive() for thread in seconds)
    assert set(server.gets) == set("abcd")
    assert len(copies(cache)) == 1


@pytest.mark.parametrize("then", ["the same", "another"])
def test_a_fetch_killed_halfway_leaves_no_copy_and_is_cleared_away(
    then: str, cache: ShardCache, server: FileServer
) -> None:
    server.mishaps["a"] = ["stall"]
    process = fork.Process(target=fetched, args=(cache, server, "a"))
    process.start()
    assert server.stalled.wait(20)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert copies(cache) == ""
    assert len(parts(cache)) == 1
    assert fetched(cache, server, "a" if then == "the same" else "b")
    assert parts(cache) == []
    assert fetched(cache, server, "a")


def test_a_fetch_under_way_is_not_cleared_away(cache: ShardCache, server: FileServer) -> None:
    server.mishaps["a"] = ["stall"]
    process = fork.Process(target=fetched, args=(cache, server, "a"))
    process.start()
    assert server.stalled.wait(20)
    fetched(cache, server, "b")
    assert len(parts(cache)) == 1
    server.resume.set()
    process.join(20)
    assert process.exitcode == 0
    assert copies(cache) == "ab"
    assert server.gets == ["a", "b"]


def test_a_worker_forked_after_http_was_used_fetches_over_http(cache: ShardCache, server: FileServer) -> None:
    """fsspec runs HTTP on a thread of the process, which is not there in a fork."""
    fetched(cache, server, "a")
    assert in_fork(lambda: fetched(cache, server, "b")) == 0
    assert server.gets == ["a", "b"]
    assert fetched(cache, server, "b")
    assert fetched(cache, server, "c")


def test_a_worker_forked_in_the_middle_of_a_prefetch_fetches_and_prefetches(
    cache: ShardCache, server: FileServer
) -> None:
    server.mishaps["a"] = ["stall"]
    cache.prefetch([file(server, "a"), file(server, "b")])
    assert server.stalled.wait(20)

    def work() -> None:
        fetched(cache, server, "c")
        cache.prefetch([file(server, "d")])
        assert wait_for(lambda: "d" in copies(cache))

    assert in_fork(work) == 0
    assert server.gets == ["a", "c", "d"]
    server.resume.set()
    assert fetched(cache, server, "a")
    assert server.gets.count("a") == 1


IMPORTING = """
import multiprocessing, sys, time
from reranker.data.cache import ShardCache
cache = ShardCache(sys.argv[1], 1 << 30)
first, second = ((url, digest, None) for url, digest in (sys.argv[2:4], sys.argv[4:6]))
cache.prefetch([first])
children = []
for number in range(30):
    other = ShardCache(f"{sys.argv[1]}-{number}", 1 << 30)
    children.append(multiprocessing.get_context("fork").Process(target=other.open, args=second))
    children[-1].start()
    time.sleep(0.005)
for child in children:
    child.join(10)
    child.kill()
assert [child.exitcode for child in children] == [0] * 30
"""


def test_a_worker_forked_while_the_first_prefetch_begins_fetches(cache: ShardCache, server: FileServer) -> None:
    """In a new process, where everything that fetches is still to be imported."""
    arguments = [str(cache.directory), *file(server, "a")[:2], *file(server, "b")[:2]]
    subprocess.run([sys.executable, "-c", IMPORTING, *arguments], check=True, timeout=60)
    assert server.gets.count("b") == 30


def wait_for(condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true: what a background thread does has no other end."""
    pause = threading.Event()
    return any(condition() or pause.wait(0.01) for _ in range(2000))


def test_files_that_are_prefetched_are_there_when_they_are_opened(cache: ShardCache, server: FileServer) -> None:
    cache.prefetch([file(server, "a"), file(server, "b")])
    cache.prefetch([file(server, "c")])
    assert wait_for(lambda: copies(cache) == "abc")
    assert all(fetched(cache, server, name) for name in "abc")
    assert sorted(server.gets) == list("abc")


def test_a_prefetch_keeps_what_is_there_from_eviction(cache: ShardCache, server: FileServer) -> None:
    for name in "abc":
        fetched(cache, server, name)
    cache.prefetch([file(server, "a"), file(server, "d")])
    assert wait_for(lambda: copies(cache) == "acd")


def test_a_prefetch_that_fails_is_left_to_open(cache: ShardCache, server: FileServer) -> None:
    server.mishaps["a"] = ["error"] * 4
    cache.prefetch([(server.url("none"), digest("f"), None), file(server, "a"), file(server, "b")])
    assert wait_for(lambda: copies(cache) == "b")
    assert fetched(cache, server, "a")
    assert refused(cache, server.url("none"), "f").startswith(server.url("none"))


def test_a_prefetch_passes_over_what_another_process_fetches(cache: ShardCache, server: FileServer) -> None:
    server.mishaps["a"] = ["stall"]
    process = fork.Process(target=fetched, args=(cache, server, "a"))
    process.start()
    assert server.stalled.wait(20)
    cache.prefetch([file(server, "a"), file(server, "b")])
    assert wait_for(lambda: copies(cache) == "b")
    server.resume.set()
    process.join(20)
    assert process.exitcode == 0


def test_a_process_ends_at_once_and_quietly_in_the_middle_of_a_prefetch(cache: ShardCache, server: FileServer) -> None:
    server.mishaps["a"] = ["stall"]
    script = (
        "import sys; from reranker.data.cache import ShardCache; "
        "cache = ShardCache(sys.argv[1], 1 << 30); cache.prefetch([(sys.argv[2], sys.argv[3], None)]); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(cache.directory), server.url("a"), digest("a")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert server.stalled.wait(20)
    output, _ = process.communicate("\n", timeout=20)
    assert (process.returncode, output) == (0, "")
    assert fetched(cache, server, "b")
    assert parts(cache) == []


def test_a_cache_travels_to_a_spawned_process(cache: ShardCache, server: FileServer) -> None:
    cache.prefetch([file(server, "a")])
    other = pickle.loads(pickle.dumps(cache))
    assert (other.directory, other.limit, other.retries) == (cache.directory, cache.limit, cache.retries)
    assert fetched(other, server, "b")
