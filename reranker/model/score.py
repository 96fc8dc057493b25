"""`reranker score`: requests of a query and its passages, a JSON object a line -> a line of scores for each.

In: lines of a file or of standard input. Out: the same to a file, whole or absent, or to standard output as they come.
Raises UserError for a line that is no request.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from reranker.config.models import ScoreConfig
from reranker.errors import UserError, closest, shorten
from reranker.files import atomic_open
from reranker.groups import decode_lines, kind_of, parse_text, parse_texts, read_lines
from reranker.model.reranker import Reranker, normalize

FORM = '{"query": "...", "passages": ["..."]}'


def score_command(config: ScoreConfig) -> int:
    """`reranker score`: answer each request with the scores of its passages. Raises UserError."""
    if config.output != "-" and Path(config.output).is_dir():
        raise UserError("output", f"{config.output}, a directory", "a file or -", "name a file in it")
    reranker = Reranker(
        config.model, device=config.device.value, precision=config.precision.value,
        max_length=config.max_length, batch_tokens=config.batch_tokens, packing=config.packing.value,
        long=config.long.value, window_overlap=config.window_overlap, window_best=config.window_best,
    )  # fmt: skip
    lines = read_lines(config.input) if config.input != "-" else decode_lines(sys.stdin.buffer, "<stdin>")
    requests = (_request(value, where) for where, value in lines)
    if config.output == "-":
        # One request at a time: whoever waits at the other end of a pipe gets each answer at once.
        for answer in _answers(reranker, requests, together=1):
            print(answer, flush=True)
    else:
        with atomic_open(config.output) as stream:
            _write(stream, _answers(reranker, requests, together=64))
    return 0


def _request(value: Any, where: str) -> tuple[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise UserError(where, f"{kind_of(value)} {shorten(value)}", "a JSON object", f"write {FORM}")
    for key in ("query", "passages"):
        if key not in value:
            near = closest(key, value)
            raise UserError(where, f"keys {sorted(value)}", f'a key "{key}"',
                            f'rename "{near}" to "{key}"' if near else f"write {FORM}")  # fmt: skip
    return parse_text(value["query"], '"query"', where), parse_texts(value["passages"], "passages", where)


def _answers(reranker: Reranker, requests: Iterable[tuple[str, tuple[str, ...]]], together: int) -> Iterator[str]:
    stream = iter(requests)
    while window := list(itertools.islice(stream, together)):
        scores_N = reranker.score_pairs([(query, passage) for query, passages in window for passage in passages])
        start = 0
        for query, passages in window:
            scores = [float(score) for score in scores_N[start : start + len(passages)]]
            start += len(passages)
            yield json.dumps({"query": query, "scores": scores, "probabilities": normalize(scores)}, ensure_ascii=False)


def _write(stream: IO[bytes], lines: Iterable[str]) -> None:
    for line in lines:
        stream.write(line.encode("utf-8") + b"\n")
