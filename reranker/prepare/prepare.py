"""`reranker prepare`: from groups in one language to shards in another, one command after the other.

    source -> translate -> check -> mine -> check -> pack -> shards

In: a source, and the arguments of each command. Out, under the output directory, a directory for each stage and
`prepare.json`, which says what each was made from. All arguments are checked before the first stage begins. A stage
that was done with the same arguments from the same files, and whose result is as it was, is not run again; within a
stage the command itself goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from reranker.config.grammar import quoted
from reranker.config.preparing import STAGES, PrepareConfig
from reranker.data.manifest import check_shards, load_manifest
from reranker.errors import UserError, closest
from reranker.files import make_directory, read_json, sha256, write_json
from reranker.prepare.check.command import check_settings as check_check
from reranker.prepare.mine.command import check_settings as check_mine
from reranker.prepare.pack import load_pair_tokenizer
from reranker.prepare.readers import detect
from reranker.prepare.translate.command import check_settings as check_translate

NAME = "prepare.json"
SCHEMA = 1
FOUND = 1
"""The exit code of a check that has found errors, which it has mended."""
_OURS = ("groups", "output", "fix", "overwrite", "dry_run", "part")
"""Keys of the stages that this command sets, or that have no place in it."""
_WITHOUT_EFFECT = ("output", "overwrite", "workers", "ledger", "part")
"""Keys that change nothing in a stage's result; the ledger is filled by the stage itself."""
_PATHS = (
    "groups",
    "corpus",
    "evaluation",
    "files",
    "model",
    "tokenizer",
    "similarity_model",
    "queries",
    "qrels",
    "run",
)
_CHECKS: dict[str, Callable[[Any], None]] = {
    "translate": check_translate,
    "check": check_check,
    "mine": check_mine,
}

Run = Callable[..., int]
"""`run(command, arguments, work=None)`: compose the settings and hand them to `work`, by default the command itself."""


@dataclass(frozen=True)
class Stage:
    """One command: its arguments, the settings that they make, and the file that stands for its result."""

    name: str
    command: str
    arguments: tuple[str, ...]
    settings: Any
    result: Path

    @property
    def line(self) -> str:
        return f"reranker {self.command} {shlex.join(self.arguments)}"


def prepare_command(config: PrepareConfig, run: Run) -> int:
    """`reranker prepare`. Returns the exit code of the stage that ended it, or 0. Raises UserError."""
    output = Path(config.output)
    journal = _Journal(output / NAME)
    stages = plan(config, run, journal.begun)
    before = journal.done(stages)
    print(f"{output}: {len(stages)} stages")
    for stage in stages:
        print(f"  {stage.name:12s} {'done before' if stage.name in before else 'to do':12s} {stage.line}", flush=True)
    left = [stage for stage in stages if stage.name not in before]
    if config.dry_run:
        return _estimate(left, run)
    for stage in left:
        if stage.command == "pack" and stage.settings.tokenizer:
            load_pair_tokenizer(stage.settings.tokenizer)  # what is missing is told before hours of work
    make_directory(output)
    for stage in left:
        print(f"\n{stage.name}: {stage.line}", flush=True)
        fingerprint, began = _fingerprint(stage), time.time()
        # Only what was not there before is ours to replace later: pack may refuse what stands where it writes.
        if stage.name in journal.begun or not stage.result.parent.exists():
            journal.begin(stage)
        code = run(stage.command, list(stage.arguments))
        if code != 0 and not (stage.command == "check" and code == FOUND):
            return code
        if stage.command == "check" and _cut_short(stage):
            place = stage.result.with_name("unreadable.jsonl")
            print(f"reranker: {stage.settings.groups}: the file is cut short, {place} says where: make it anew, then "
                  "run the same command", file=sys.stderr, flush=True)  # fmt: skip
            return 1
        journal.enter(stage, fingerprint, time.time() - began)
    print(f"\n{stages[-1].result.parent}: done")
    return 0


def plan(config: PrepareConfig, run: Run, begun: Container[str] = ()) -> list[Stage]:
    """The stages with their settings, every argument checked; `begun`: those whose directories are ours.

    Raises UserError.
    """
    if not Path(config.source).exists():
        raise UserError("source", f"{config.source}, no such file", "groups or triplets", "check the path")
    _check_stages(config)
    stages: list[Stage] = []
    source = config.source
    for number, command in enumerate(config.stages, 1):
        name = f"{number}-{command}"
        directory = Path(config.output) / ("shards" if command == "pack" else name)
        arguments = [f"groups={quoted(source)}", f"output={quoted(str(directory))}"]
        if command == "check":
            arguments.append("fix=true")
            if "mine" in config.stages[number:]:
                arguments.append("negatives=false")
        if command == "pack" and name in begun:
            arguments.append("overwrite=true")  # shards of other groups, which an earlier run of ours has packed
        own = [*getattr(config, command), *_more(config, command)]
        for argument in own:
            if (key := argument.lstrip("+~").partition("=")[0]) in _OURS:
                raise UserError(f"{command}.{key}", argument, "a key that prepare does not set", "leave it out")
        arguments += own
        made: list[Any] = []
        run(command, arguments, work=functools.partial(_keep, made))
        if command in _CHECKS:
            _CHECKS[command](made[0])
        result = directory / ("manifest.json" if command == "pack" else "groups.jsonl")
        stages.append(Stage(name, command, tuple(arguments), made[0], result))
        source = str(result)
    return stages


def _keep(made: list[Any], settings: Any) -> int:
    made.append(settings)
    return 0


def _cut_short(stage: Stage) -> bool:
    """Whether a check met an end before the end: most of the file may be behind that place, and nothing mends that."""
    return "cut_short" in read_json(stage.result.with_name("report.json"))["unreadable"]


def _check_stages(config: PrepareConfig) -> None:
    if not config.stages:
        raise UserError("stages", "none", "one or more", f"choose among {', '.join(STAGES)}")
    for place, command in enumerate(config.stages):
        if command not in STAGES:
            near = closest(command, STAGES)
            fix = f"did you mean {near}?" if near else "change the value"
            raise UserError("stages", command, f"some of {', '.join(STAGES)}", fix)
        if command == "pack" and place < len(config.stages) - 1:
            raise UserError("stages", f"{config.stages[place + 1]} behind pack", "pack as the last stage", "move it")
    for argument in config.more:
        if (command := argument.partition(".")[0]) not in config.stages:
            raise UserError(
                argument, f"{command}, which is no stage", f"one of {', '.join(config.stages)}", "leave it out"
            )


def _more(config: PrepareConfig, command: str) -> list[str]:
    return [argument.removeprefix(f"{command}.") for argument in config.more if argument.startswith(f"{command}.")]


def _estimate(stages: list[Stage], run: Run) -> int:
    for stage in stages:
        if stage.command == "translate":
            if not Path(stage.settings.groups).exists():
                print(f"{stage.name}: its cost is known once {stage.settings.groups} is there")
            elif code := run("translate", [*stage.arguments, "dry_run=true"]):
                return code
    return 0


class _Journal:
    """`prepare.json`: what each stage was made from, and the sha256 of its result."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = read_json(path, "remove it: the stages run again") if path.exists() else {}
        stages = found.get("stages", {}) if isinstance(found, dict) else None
        if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
            raise UserError(path, "no record of stages", "what prepare writes", "remove it: the stages run again")
        if found and found.get("schema") != SCHEMA:
            raise UserError(path, f"schema {found.get('schema')}", f"schema {SCHEMA}", "choose another output")
        self._stages: dict[str, Any] = stages

    @property
    def begun(self) -> Container[str]:
        """The names of the stages that were run before, to their end or not."""
        return self._stages

    def done(self, stages: list[Stage]) -> set[str]:
        """The names of the stages, from the first on, that need not run again."""
        done: set[str] = set()
        for stage in stages:
            entry = self._stages.get(stage.name)
            if entry is None or not stage.result.is_file() or entry.get("fingerprint") != _fingerprint(stage):
                break
            if entry.get("sha256") != sha256(stage.result):
                break
            if stage.command == "pack" and not _all_there(stage.result.parent):
                break
            done.add(stage.name)
        return done

    def begin(self, stage: Stage) -> None:
        self._stages[stage.name] = {"command": stage.line, "fingerprint": None}
        write_json(self._path, {"schema": SCHEMA, "stages": self._stages})

    def enter(self, stage: Stage, fingerprint: dict[str, Any], seconds: float) -> None:
        self._stages[stage.name] = {
            "command": stage.line,
            "fingerprint": fingerprint,
            "sha256": sha256(stage.result),
            "seconds": round(seconds, 1),
        }
        write_json(self._path, {"schema": SCHEMA, "stages": self._stages})


def _fingerprint(stage: Stage) -> dict[str, Any]:
    """The settings, and what is in the files that they name: the same make the same result."""
    settings = _plain(dataclasses.asdict(stage.settings))
    for key in _WITHOUT_EFFECT:
        settings.pop(key, None)
    files = {text: _content(Path(text)) for key, text in _texts(settings) if _is_path(key, text)}
    if hasattr(stage.settings, "reading") and Path(stage.settings.groups).exists():
        # Judgements and triples of ids have their texts in other files, beside them or named.
        files |= {str(path): sha256(path) for path in detect(stage.settings.groups, stage.settings.reading).everything}
    return {"settings": settings, "files": files}


def _all_there(shards: Path) -> bool:
    try:
        check_shards(shards, load_manifest(shards, "output"))
    except UserError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, Enum) else value


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _texts(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, key)
    elif isinstance(value, str):
        yield key, value


def _is_path(key: str, text: str) -> bool:
    # The language "ko" is not the directory ko/ that happens to be there, nor a model's name on the hub a file.
    if not 0 < len(text) < 4096 or "\0" in text or not (key in _PATHS or "/" in text):
        return False
    return Path(text).exists()


def _content(path: Path) -> Any:
    """What stands for the content of a file, or of all files of a directory."""
    if path.is_file():
        return sha256(path)
    return {str(file.relative_to(path)): sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
