"""`reranker evaluate`: first stage, base and fine-tuned reranker, their fusion, and other systems, on sets of queries.

In: an `EvaluateConfig`. Out: a table on standard output and, in the output directory, table.json, table.md, table.png,
report.html, queries.jsonl, passages.jsonl and details.json. details.json is written last and names the others' sha256:
without it, or with other inputs, the evaluation is done again; with it, the saved table is shown at once. Under a
launcher all ranks score, and rank 0 writes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from reranker.config.models import EvaluateConfig
from reranker.errors import UserError
from reranker.evaluate import table
from reranker.evaluate.crew import Crew, meet
from reranker.evaluate.evaluating import Evaluation, evaluate
from reranker.evaluate.fingerprint import Scores, digest, environment_of, inputs_of, settings_of
from reranker.evaluate.measures import measure
from reranker.evaluate.others import inputs_of_systems, other_systems, read_systems
from reranker.evaluate.outcome import FUSED, WITHOUT
from reranker.evaluate.own import own_systems
from reranker.evaluate.page import page
from reranker.evaluate.sets import EvaluationSet, sets_of
from reranker.files import atomic_open, sha256, write_json, write_text

FILES = ("table.json", "table.md", "table.png", "report.html", "queries.jsonl", "passages.jsonl", "details.json")


def evaluate_command(config: EvaluateConfig) -> int:
    """Evaluate, or show the saved table if its inputs are unchanged. Raises UserError."""
    with meet(config.device) as (crew, device):
        return _evaluate(config, crew, device)


def _evaluate(config: EvaluateConfig, crew: Crew, device: str) -> int:
    crew.together(lambda: _check(config))
    output = Path(config.output) if config.output else None
    known = crew.from_first(lambda: _known(output))
    sets = crew.together(lambda: sets_of(config))
    crew.together(lambda: _refuse_overwriting(output, sets))
    named = crew.together(lambda: read_systems(config))
    before = known.get("inputs") or {}
    inputs = crew.from_first(lambda: inputs_of(config, sets, before) | inputs_of_systems(named, before))
    environment = alike(crew, crew.together(lambda: environment_of(config)))
    others = crew.together(lambda: other_systems(named, config, device, inputs))
    contents = {name: entry["sha256"] for name, entry in inputs.items()}
    of_sets = [one.settings() for one in sets]
    of_systems = [[[system.name, system.identity] for system in others]] if others else []
    fingerprint = digest([environment, settings_of(config), contents, of_sets, *of_systems])
    same = output is not None and not config.force and known.get("fingerprint") == fingerprint
    if crew.from_first(lambda: same and output is not None and _whole(output, known)):
        if crew.first:
            rows = _saved(output, "table.json")
            table.show(rows, known)
            print(f"inputs unchanged: this is the table saved in {output}; force=true evaluates again")
        return 0
    cache = Scores(output, read=not config.force)
    systems = [*own_systems(config, device, environment, inputs), *others]
    rows = [WITHOUT, *(system.name for system in systems), FUSED]
    if config.baseline is not None and config.baseline not in rows:
        error = UserError("baseline", config.baseline, "one of " + ", ".join(rows), "choose one, or leave it out")
        error.agreed = True  # every rank reads the same settings
        raise error
    found = evaluate(config, sets, systems, inputs, cache, crew, device)
    crew.together(lambda: _tell(output, found, fingerprint, environment, inputs, config.model))
    return 0


def alike(crew: Crew, environment: dict[str, str]) -> dict[str, str]:
    """The environment, which is that of every rank. Raises UserError, on all of them, where one has another.

    Scores of two versions would stand in one table, and ranks that find another state of the report wait for ever.
    """
    for rank, other in enumerate(crew.gather(environment)):
        if other != environment:
            name = next(name for name in environment if environment[name] != other.get(name))
            error = UserError(
                "environment",
                f"{name} {other.get(name)} on rank {rank} and {environment[name]} on rank {crew.rank}",
                "the same on all ranks",
                "install the same versions on all nodes, and choose device and precision",
            )
            error.agreed = True  # every rank finds one: rank 0 tells
            raise error
    return environment


def _known(output: Path | None) -> dict[str, Any]:
    """The details of an earlier report in the directory; {} where there is none, or a file of another form."""
    saved = _saved(output, "details.json")
    inputs = saved.get("inputs") if isinstance(saved, dict) else None
    if not isinstance(inputs, dict) or not all(isinstance(one, dict) for one in inputs.values()):
        return {}
    files = [one.get("files") or {} for one in inputs.values()]
    whole = all(isinstance(one, dict) and all(isinstance(entry, dict) for entry in one.values()) for one in files)
    return saved if whole else {}


def _tell(
    output: Path | None, found: Evaluation | None, fingerprint: str, environment: dict[str, str],
    inputs: dict[str, Any], name: str,
) -> None:  # fmt: skip
    """Write and print the report, on the rank that holds it."""
    if found is None:
        return
    details = {"fingerprint": fingerprint, "environment": environment, **found.details, "inputs": inputs}
    if output:
        _write(output, found, details, name)
    table.show(found.rows, details)
    if output:
        print(f"written to {output}: {', '.join(FILES)}")


def _write(output: Path, found: Evaluation, details: dict[str, Any], name: str) -> None:
    # Gone while the others change: a half-written report is none.
    (output / "details.json").unlink(missing_ok=True)
    write_json(output / "table.json", found.rows)
    write_text(output / "table.md", table.markdown(found.rows, details))
    _write_lines(output / "queries.jsonl", found.queries)
    _write_lines(output / "passages.jsonl", found.passages)
    with atomic_open(output / "table.png") as stream:
        table.draw(found.rows, details, stream)
    write_text(output / "report.html", page(found.rows, details, found.queries, found.passages, name))
    files = {name: sha256(output / name) for name in FILES[:-1]}
    write_json(output / "details.json", details | {"files": files})


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with atomic_open(path) as stream:
        for line in lines:
            stream.write(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")


def _saved(output: Path | None, name: str) -> Any:
    """A JSON file of an earlier evaluation, or None."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((output / name).read_text("utf-8")) if output else None
    return None


def _whole(output: Path, details: dict[str, Any]) -> bool:
    """Whether the report's files are those that its details name."""
    files = details.get("files") or {}
    return bool(files) and all((output / name).is_file() and sha256(output / name) == files[name] for name in files)


def _check(config: EvaluateConfig) -> None:
    at_least = {"depth": 1, "contexts": 1, "sample": 1, "resamples": 100, "permutations": 100, "batch_tokens": 1,
                "seed": 0, "max_length": 8, "latency": 0, "window_overlap": 0, "window_best": 1}  # fmt: skip
    for key, least in at_least.items():
        if (value := getattr(config, key)) is not None and value < least:
            raise UserError(key, str(value), f"{least} or more", "change the value")
    if config.sets is None and config.contexts > config.depth:
        raise UserError("contexts", str(config.contexts), f"at most depth={config.depth}", "raise depth or lower it")
    if not config.metrics or len(set(config.metrics)) < len(config.metrics):
        raise UserError("metrics", str(list(config.metrics)), "at least one, each once", "change the list")
    for name in config.metrics:
        measure(name, config.contexts)
    if config.output and Path(config.output).exists() and not Path(config.output).is_dir():
        raise UserError("output", f"{config.output}, a file", "a directory", "name another one")


def _refuse_overwriting(output: Path | None, sets: Sequence[EvaluationSet]) -> None:
    for one in sets:
        for role, path in one.files.items():
            if output and path.resolve() in [(output / name).resolve() for name in FILES]:
                found = f"{output}, which would overwrite {one.key(role)}={path}"
                raise UserError("output", found, "another directory", "name one for the report alone")
