"""`reranker submit`: settings of a training -> SLURM jobs that run launch/train.sbatch with them.

On the login node, in this order: the settings are checked and the shards' manifests read, the batch arithmetic and the
sbatch command are shown, and a job is submitted that waits until its code and settings are copied to the run directory
(`snapshot.take`): what runs is what was submitted, however long the queue. In a chain each job waits for the one before
it. Raises `UserError`; then no job is left behind.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from reranker.checks import accumulation, check_at_least, check_train
from reranker.cluster.snapshot import JOBS, take
from reranker.config.cluster import SlurmConfig, SubmitConfig
from reranker.config.common import BatchPolicy
from reranker.data.dataset import parse_sources
from reranker.data.manifest import load_manifest
from reranker.data.mixture import Mixture, Share
from reranker.data.plan import steps_per_epoch
from reranker.describe import carried_directory
from reranker.errors import UserError
from reranker.files import write_text

CHAIN = "chain"
"""In the directory of a job of a chain: the numbers of all of its jobs, a line each."""
_OWN = ("slurm", "dry_run")


def submit_command(config: SubmitConfig) -> int:
    """`reranker submit`. Returns the exit code."""
    check_submit(config)
    words = [word for word in sys.argv[1:] if word.lstrip("+~").split("=")[0].split(".")[0] not in _OWN]
    rows = arithmetic(config)
    commands = [sbatch(config, words, before="JOB" if number else None) for number in range(config.slurm.chain)]
    print("\n".join(f"{name:8s} {value}" for name, value in rows))
    if config.dry_run:
        print("\n".join(f"{'sbatch':8s} {shlex.join(command[1:])}" for command in commands))
        print("dry run: nothing is submitted")
        return 0
    jobs = submit(config, words)
    print(f"submitted {', '.join(jobs)}; {Path(config.run_dir) / JOBS / jobs[0]}/job.out tells how it goes")
    return 0


def check_submit(config: SubmitConfig) -> None:
    """Refuse what no job could run. Raises UserError."""
    slurm = config.slurm
    check_train(config)
    check_at_least([
        ("slurm.nodes", slurm.nodes, 1), ("slurm.gpus_per_node", slurm.gpus_per_node, 0),
        ("slurm.cpus_per_rank", slurm.cpus_per_rank, 1), ("slurm.chain", slurm.chain, 1),
        ("slurm.ranks_per_node", ranks_per_node(slurm), 1),
    ])  # fmt: skip
    for option in slurm.options:
        if not option.startswith("--"):
            raise UserError("slurm.options", option, "an option of sbatch, as --constraint=h100", "change the value")
    if config.batch.policy is BatchPolicy.fixed:
        accumulation(config.batch.groups, config.batch.per_gpu, world(slurm))


def ranks_per_node(slurm: SlurmConfig) -> int:
    return slurm.gpus_per_node if slurm.ranks_per_node is None else slurm.ranks_per_node


def world(slurm: SlurmConfig) -> int:
    return slurm.nodes * ranks_per_node(slurm)


def arithmetic(config: SubmitConfig) -> list[tuple[str, str]]:
    """What the job is, line by line. Raises UserError for shards whose manifests cannot be read."""
    slurm, batch, ranks = config.slurm, config.batch, world(config.slurm)
    if batch.policy is BatchPolicy.fixed:
        each = accumulation(batch.groups, batch.per_gpu, ranks)
        made = f"{batch.per_gpu} per rank x {ranks} ranks x {each} micro-batches"
    else:
        most = "as many tokens as fit" if batch.tokens == "auto" else f"at most {batch.tokens:,} tokens"
        made = f"micro-batches of {most} on {ranks} ranks"
    shares = [
        Share.weighted(load_manifest(shards, f"data.shards.{name}" if name else "data.shards").groups, weight)
        for name, shards, weight in parse_sources(config.data.shards)
    ]
    positions = Mixture(shares).positions
    each_epoch = steps_per_epoch(positions, batch.groups)
    steps = min(config.train.epochs * each_epoch, config.train.max_steps or sys.maxsize)
    devices = f"{slurm.gpus_per_node} GPU(s)" if slurm.gpus_per_node else "no GPU"
    return [
        ("job", f"{slurm.nodes} node(s) of {ranks_per_node(slurm)} rank(s) with {slurm.cpus_per_rank} CPU(s) each, "
                f"{devices} a node"),
        ("batch", f"{batch.groups} groups a step = {made}"),
        ("steps", f"{steps:,}, {each_epoch:,} an epoch of {positions:,} groups"),
        ("run_dir", str(Path(config.run_dir).absolute())),
    ]  # fmt: skip


def sbatch(config: SubmitConfig, words: Sequence[str], before: str | None = None) -> list[str]:
    """The command that submits a training with these key=value words; behind the job `before`, if there is one."""
    run_dir = Path(config.run_dir).absolute()
    options = [f"--job-name={config.name}", f"--output={run_dir / JOBS}/%j/job.out"]
    if config.slurm.chain > 1:
        options += ["--no-requeue"]
    if before:
        options += [f"--dependency=afterany:{before}"]
    script = carried_directory("launch") / "train.sbatch"
    # Held: the job may not start before its code is where it looks for it.
    return ["sbatch", "--parsable", "--hold", *options, *options_of(config.slurm), str(script), *words]


def options_of(slurm: SlurmConfig) -> list[str]:
    """sbatch's options for the nodes of a training, and the user's own."""
    options = [f"--nodes={slurm.nodes}", f"--ntasks-per-node={ranks_per_node(slurm)}",
               f"--cpus-per-task={slurm.cpus_per_rank}"]  # fmt: skip
    if slurm.gpus_per_node:
        options.append(f"--gpus-per-node={slurm.gpus_per_node}")
    named = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "time": slurm.time}
    return [*options, *(f"--{name}={value}" for name, value in named.items() if value is not None), *slurm.options]


def submit(config: SubmitConfig, words: Sequence[str]) -> list[str]:
    """Submit the jobs of a training; their numbers. Raises UserError, and leaves no job then."""
    jobs: list[str] = []
    try:
        for _ in range(config.slurm.chain):
            # A cluster of several answers "number;cluster".
            jobs.append(slurm_says(*sbatch(config, words, jobs[-1] if jobs else None)).strip().split(";")[0])
        for job in jobs:
            run_dir, _ = take(config, job, list(words))
            if len(jobs) > 1:
                write_text(run_dir / JOBS / job / CHAIN, "".join(f"{number}\n" for number in jobs))
        slurm_says("scontrol", "release", ",".join(jobs))
    except BaseException:
        if jobs:
            subprocess.run(["scancel", *jobs], check=False)
        raise
    return jobs


def slurm_says(*command: str) -> str:
    """What a command of SLURM prints. Raises UserError with what it said where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(command[0], "no such program", "the commands of SLURM on this machine",
                        "run it on the cluster's login node, or say dry_run=true") from None  # fmt: skip
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(command[0], said, "a job that SLURM takes", "change slurm.*, or dry_run=true shows the command")
    return done.stdout
