"""Start real ranks: one process each, joined by gloo over loopback, every one of them ended in the end.

In: a command line of the console command and a number of ranks. Out: what each rank left. Importing torch and
deepspeed takes longer than a tiny training, so that a server imports them once and every rank is a fresh fork
of it (multiprocessing's forkserver): a process of its own that can be killed, with nothing of an earlier
training in it. `environment` and `wait` serve those tests that start a launcher as a user would.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = float(os.environ.get("RANKS_DEADLINE", "180"))
"""Seconds after which a wait is given up and the test fails: far beyond what anything here takes. The variable is for
what is broken on purpose."""

T = TypeVar("T")

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["reranker.cli", "reranker.overrides", "reranker.train.main", "reranker.train.engine", "reranker.train.events",
     "reranker.evaluate.guard_sets", "reranker.evaluate.in_training",
     "reranker.export.huggingface", "deepspeed.runtime.zero.muon.original_muon", "transformers.models.xlm_roberta.modeling_xlm_roberta", "hydra.main",
     "tests.distributed.preloaded"]
)  # fmt: skip
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Finished:
    """What a process left: its exit code (negative: the signal that ended it) and everything that it printed."""

    code: int
    out: str
    err: str


class Job:
    """The ranks of one command under way."""

    def __init__(self, processes: list[Any], outputs: Path) -> None:
        self._processes, self._outputs = processes, outputs

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self._processes)

    @property
    def left(self) -> list[int]:
        """The processes that are alive in the sessions of the ranks: themselves, and what they have started.

        By session: a fork's command line is that of the server, and says nothing.
        """
        sessions = {process.pid for process in self._processes}
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = path.read_text().rpartition(") ")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
            if int(session) in sessions and state not in "ZX":
                found.append(int(path.parent.name))
        return found

    @property
    def descendants(self) -> list[int]:
        """What the ranks have started, and what that has, whatever sessions it is in."""
        ranks = [psutil.Process(process.pid) for process in self._processes]
        return [child.pid for rank in ranks for child in rank.children(recursive=True)]

    def kill(self, *ranks: int) -> None:
        """SIGKILL these ranks (none named: all) and the workers of each."""
        for rank in ranks or range(len(self._processes)):
            with_workers = self._processes[rank].pid
            try:
                os.killpg(with_workers, signal.SIGKILL)
            except ProcessLookupError:
                self._processes[rank].kill()

    def signal(self, number: int) -> None:
        """Send a signal to every rank and its workers, as a terminal or an init system does."""
        for process in self._processes:
            os.killpg(process.pid, number)

    def again(self, rank: int, number: int, every: float) -> Callable[[], str]:
        """Send a rank a signal now, and once more each `every` seconds until the rank has ended, from a thread."""

        def send() -> None:
            while self._processes[rank].is_alive():
                os.kill(self._processes[rank].pid, number)
                time.sleep(every)

        threading.Thread(target=send, daemon=True).start()
        return lambda: "the rank goes on"

    def said(self, rank: int) -> str:
        """What a rank has written to standard error so far."""
        return self._texts()[rank][1]

    def errors(self) -> str:
        """What all ranks have written to standard error so far."""
        return "".join(f"rank {rank}:\n{err}" for rank, (_, err) in enumerate(self._texts()))

    def wait(self) -> list[Finished]:
        """What each rank left. Ranks that outlast the deadline are killed, and the test fails."""
        try:
            until(lambda: not self.running, lambda: f"a rank goes on: {self._texts()}")
            return [
                Finished(process.exitcode, *texts)
                for process, texts in zip(self._processes, self._texts(), strict=True)
            ]
        finally:
            self.end()

    def end(self) -> None:
        """Kill what is left of the job, and forget what it printed."""
        self.kill()
        for process in self._processes:
            process.join()
        shutil.rmtree(self._outputs, ignore_errors=True)

    def _texts(self) -> list[tuple[str, str]]:
        def text(name: str) -> str:
            path = self._outputs / name
            return path.read_text("utf-8", errors="replace") if path.exists() else ""

        return [(text(f"{rank}.out"), text(f"{rank}.err")) for rank in range(len(self._processes))]


def start(
    world: int,
    argv: Sequence[str],
    cwd: Path = ROOT,
    file_limits: dict[int, int] | None = None,
    function: Callable[[list[str]], int] | None = None,
) -> Job:
    """Start `reranker <argv>`, or another function of a module that takes `argv`, as `world` ranks.

    `file_limits` is {rank: bytes}: no file that the rank writes can be larger, as on a disk that is full.
    """
    with _changed_environment():
        multiprocessing.forkserver.ensure_running()
    outputs = Path(tempfile.mkdtemp(prefix="ranks-"))
    port = free_port()
    processes = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = _FORKS.Process(
            target=_rank,
            args=(list(argv), environment(**{key: str(value) for key, value in place.items()}), str(cwd),
                  str(outputs / str(rank)), (file_limits or {}).get(rank), function),
        )  # fmt: skip
        process.start()
        processes.append(process)
    return Job(processes, outputs)


def run(world: int, argv: Sequence[str], cwd: Path = ROOT) -> list[Finished]:
    """Run `reranker <argv>` as `world` ranks to its end, whatever that is."""
    return start(world, argv, cwd).wait()


def train(world: int, overrides: Sequence[str]) -> list[Finished]:
    """Run `reranker train` as `world` ranks; every one of them must end with 0."""
    ranks = run(world, ["train", *overrides])
    assert [rank.code for rank in ranks] == [0] * world, "\n".join(rank.err for rank in ranks)
    return ranks


def launch(*commands: Sequence[str], cwd: Path = ROOT) -> list[Finished]:
    """Run command lines side by side, each as a user would type it, and wait for all of them.

    Each is a session of its own: in the end whatever is left of it is killed.
    """
    started = []
    outputs = Path(tempfile.mkdtemp(prefix="launch-"))
    try:
        for number, command in enumerate(commands):
            with open(outputs / f"{number}.out", "wb") as out, open(outputs / f"{number}.err", "wb") as err:
                started.append(
                    subprocess.Popen(
                        command, env=environment(), stdout=out, stderr=err, start_new_session=True, cwd=cwd
                    )
                )
        until(lambda: all(process.poll() is not None for process in started), lambda: f"{commands} go on")
        return [
            Finished(
                process.returncode, *((outputs / f"{number}.{kind}").read_text("utf-8") for kind in ("out", "err"))
            )
            for number, process in enumerate(started)
        ]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(outputs, ignore_errors=True)


def until(condition: Callable[[], T], otherwise: Callable[[], str], deadline: float = DEADLINE) -> T:
    """The first true value of `condition`; AssertionError with the text of `otherwise` behind the deadline."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, otherwise()
        time.sleep(0.005)  # more often would take a core from the ranks
    return value


def naming(word: str) -> list[int]:
    """The processes whose command line holds `word`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def environment(**extra: str) -> dict[str, str]:
    """The environment of a rank: one thread each, the CPU, no hub, no tracking service."""
    inherited = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
    return {
        **inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}", **extra,
    }  # fmt: skip


_given_ports: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, below those that connections are given at random; never the same one twice."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        if port in _given_ports:
            continue  # a job that was begun before may not listen on it yet
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given_ports.add(port)
            return port


@contextmanager
def _changed_environment() -> Iterator[None]:
    # The server reads its environment when it starts: torch takes the number of its threads from there.
    before = dict(os.environ)
    os.environ.update(environment(), PYTHONPATH=str(ROOT))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _rank(
    argv: list[str],
    variables: dict[str, str],
    cwd: str,
    output: str,
    file_limit: int | None,
    function: Callable[[list[str]], int] | None,
) -> None:
    """The life of a rank, in a fork of the server."""
    os.setsid()
    for descriptor, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an OSError where a full disk has one
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    from reranker.cli import main

    sys.exit((function or main)(argv))
