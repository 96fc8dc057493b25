"""`reranker check`: look at all groups, tell what is wrong, and on request write a mended copy.

In: a `CheckConfig`. Out: a table, report.json and report.md in the output directory, with `fix=true` the files of
`fix.py`. Exit code 0: no errors (`strict=true`: no warnings either), 1: some, 2: a mistake of the user's. With
`fix=true` the code is of the input, not of the copy. The input is never written to.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from reranker.config.checking import CheckConfig
from reranker.errors import UserError
from reranker.files import make_directory, write_json, write_text
from reranker.groups import FORM
from reranker.prepare.check.collect import Collected, collect
from reranker.prepare.check.fix import FILES, write_fixed
from reranker.prepare.check.inspect import Inspector, load
from reranker.prepare.check.leaks import evaluation_paths, load_evaluation
from reranker.prepare.check.report import markdown, show, summarize
from reranker.prepare.check.texts import error_pattern
from reranker.prepare.readers import Found, detect, read_chunks
from reranker.processes import in_order
from reranker.progress import progress_bar

_REPORTS = ("report.json", "report.md")


def check_command(config: CheckConfig) -> int:
    """`reranker check`. Raises UserError."""
    source = _checked(config)
    print(f"{config.groups}: {source}")
    found = look(config)
    unit = f"tokens of {config.tokenizer}" if config.tokenizer else "characters"
    report = {"source": config.groups, "form": source.form, **summarize(found, unit)}
    if config.fix:
        assert config.output
        chunks = read_chunks(config.groups, config.reading)
        report["fixed"] = write_fixed(Path(config.output), chunks, found, config.error_texts, config.negatives)
    code = 1 if report["errors"] or (config.strict and report["warnings"]) else 0
    report |= {"exit_code": code, "settings": _settings(config)}
    show(report)
    if config.output:
        make_directory(config.output)
        write_json(Path(config.output) / _REPORTS[0], report)
        write_text(Path(config.output) / _REPORTS[1], markdown(report))
        print(f"written to {config.output}: {', '.join((*_REPORTS, *(FILES if config.fix else ())))}")
    if config.fix:
        print(_done(report["fixed"]))
    return code


def look(config: CheckConfig) -> Collected:
    """What is found in the groups. Raises UserError."""
    evaluation = None
    if paths := evaluation_paths(config.evaluation):
        evaluation = load_evaluation(paths, config.near, config.reading)
    inspector = Inspector(evaluation, tuple(config.error_texts), config.group_size, config.examples,
                          config.tokenizer, config.max_length, config.negatives)  # fmt: skip
    chunks = read_chunks(config.groups, config.reading)
    bar = progress_bar(desc="check", unit=" groups")
    with bar, in_order(inspector, chunks, config.workers) as seen:

        def counted() -> Any:
            for one in seen:
                bar.update(len(one.numbers))
                yield one

        found = collect(counted(), config.examples)
    if not found.groups and not found.unreadable:
        raise UserError(config.groups, "no records", f"one group a line, {FORM}", "check how the file was made")
    return found


def check_settings(config: CheckConfig) -> None:
    """Check all that can be checked before there are groups. Raises UserError."""
    for key, value, least in (
        ("max_length", config.max_length, 8), ("group_size", config.group_size, 2), ("examples", config.examples, 0),
        ("workers", config.workers, 1), ("reading.longest_line", config.reading.longest_line, 1),
        ("reading.most_negatives", config.reading.most_negatives, 1),
        ("reading.run_negatives", config.reading.run_negatives, 0),
    ):  # fmt: skip
        if value < least:
            raise UserError(key, str(value), f"{least} or more", "change the value")
    if not 0 < config.near <= 1:
        raise UserError("near", str(config.near), "more than 0 and at most 1", "change the value")
    try:
        error_pattern(tuple(config.error_texts))
    except re.error as error:
        raise UserError("error_texts", f"{config.error_texts} ({error})", "regular expressions", "mend it") from None
    if config.fix and not config.output:
        raise UserError("output", "no value", "a directory for the mended copy", "say output=...")
    if config.output and Path(config.output).exists() and not Path(config.output).is_dir():
        raise UserError("output", f"{config.output}, a file", "a directory", "name another one")
    evaluation_paths(config.evaluation)
    if config.tokenizer:
        load(config.tokenizer, config.max_length)


def _checked(config: CheckConfig) -> Found:
    """What the input is. Raises UserError for settings that cannot be."""
    check_settings(config)
    found = detect(config.groups, config.reading)
    if config.output:
        output = Path(config.output)
        inputs = {
            Path(path).resolve() for path in (*found.files, found.queries, found.corpus, found.run,
                                              *evaluation_paths(config.evaluation)) if path is not None
        }  # fmt: skip
        for name in (*_REPORTS, *FILES):
            if (output / name).resolve() in inputs:
                raise UserError("output", f"{output}, which would overwrite the input {name}", "another directory",
                                "name one for the report alone")  # fmt: skip
    return found


def _settings(config: CheckConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(config)
    settings["reading"]["form"] = config.reading.form.value
    return settings


def _done(fixed: dict[str, Any]) -> str:
    def told(counts: dict[str, int]) -> str:
        return ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items())) or "none"

    return (
        f"fixed: {fixed['in']:,} records in = {fixed['groups_written']:,} groups written "
        f"({fixed['without_negatives']:,} without negatives) + "
        f"{sum(fixed['groups_removed'].values()):,} groups removed ({told(fixed['groups_removed'])}) + "
        f"{fixed['unreadable']:,} unreadable; passages removed from groups that stay: {told(fixed['passages_removed'])}"
    )
