"""The one way in: a path -> its records, whatever form it is in.

In: a path and the reader's settings. Out: chunks of records for commands that share the work out to processes, or the
records one by one. Raises UserError only for what is wrong with the input as a whole (no such file, no such form).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from reranker.config.reading import Form, ReaderConfig
from reranker.errors import UserError
from reranker.groups import Group
from reranker.prepare.readers.arrow import rows
from reranker.prepare.readers.detect import detect
from reranker.prepare.readers.judged import judged_groups, triples_of_ids
from reranker.prepare.readers.labelled import joined, labelled_lines
from reranker.prepare.readers.lines import array_values, line_chunks, record_chunks
from reranker.prepare.readers.record import Chunk, Record


def read(path: str | Path, form: str = "auto", config: ReaderConfig | None = None) -> Iterator[Record]:
    """Each record of `path`, a `Group` or an `Unreadable`, in order. `form` overrides the config's.

    Raises UserError for a path that is missing and a form that is not known.
    """
    if form not in Form.__members__:
        raise UserError("form", form, f"one of {', '.join(Form.__members__)}", "choose one")
    settings = config or ReaderConfig()
    if form != "auto":
        settings = dataclasses.replace(settings, form=Form[form])
    for chunk in read_chunks(path, settings):
        for _, record in chunk:
            yield record


def read_strict(
    path: str | Path, form: str = "auto", config: ReaderConfig | None = None, negatives: bool = True
) -> Iterator[Group]:
    """The groups of `path`. Raises UserError at the first record that is none, or has no negatives if it must."""
    found = False
    for number, record in enumerate(read(path, form, config), 1):
        found = True
        if not isinstance(record, Group):
            raise UserError(
                record.where, record.reason.removeprefix("found "), "a group", "see what reranker check says"
            )
        if negatives and not record.neg:
            raise UserError(f"{path}, record {number}", "a group without negatives", "at least one",
                            "mine negatives with reranker mine, or leave it out")  # fmt: skip
        yield record
    if not found:
        raise UserError(path, "no records", "at least one group", "check how the file was made")


def read_chunks(path: str | Path, config: ReaderConfig) -> Iterator[Chunk]:
    """The records of `path` in chunks of bounded size that are parsed when they are iterated. Raises UserError."""
    found = detect(path, config)
    most = config.most_negatives
    for file in found.files:
        if found.form == "lines":
            yield from line_chunks(file, "json", config.longest_line, most)
        elif found.form == "tsv":
            yield from line_chunks(file, "tsv", config.longest_line, most)
        elif found.form == "columns":
            yield from record_chunks(f"{file}#", joined(rows(file), f"{file}#"), most)
        elif found.form == "array":
            values = array_values(file, config.longest_line)
            yield from record_chunks(f"{file}#", joined(values, f"{file}#"), most)
        elif found.form == "labelled":
            yield from record_chunks(f"{file}:", labelled_lines(file, config.longest_line), most)
        else:
            made = triples_of_ids if found.form == "ids" else judged_groups
            yield from record_chunks(f"{file}:", made(found, config), most)
