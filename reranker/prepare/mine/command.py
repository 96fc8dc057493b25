"""`reranker mine`: groups and a corpus -> groups with hard negatives, a report, and a cache to go on from.

In: a `MineConfig`. Out: groups.jsonl, rejected.jsonl, removed.jsonl, report.json and report.md in the output directory,
each whole or absent; they take their names after every group is done. What a killed run had found lies in cache/ and
is not searched again. With BM25 the same inputs and settings give the same bytes for any number of processes, and of
tasks (`part`), which share the cache.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from enum import Enum
from pathlib import Path
from typing import Any

from reranker.checks import check_at_least
from reranker.config.mining import Draw, MineConfig, Retriever, Teacher
from reranker.errors import UserError, closest
from reranker.files import make_directory, sha256, write_json, write_text
from reranker.prepare.bm25 import ANALYZERS
from reranker.prepare.mine import dense, filters, lexical, report
from reranker.prepare.mine.cache import Blocks, digest, model_digest
from reranker.prepare.mine.finish import Finish, finish_block
from reranker.prepare.mine.pool import Plan
from reranker.prepare.mine.rescore import Rescoring, rescore
from reranker.prepare.mine.scorers import LexicalScorer
from reranker.prepare.mine.store import build_store, open_store
from reranker.prepare.mine.write import Written, counted, leave, merged, write
from reranker.prepare.part import Part, Shares, key_of, parse_part
from reranker.prepare.readers import corpus_file, detect
from reranker.processes import in_order
from reranker.progress import progress_bar

_WITHOUT_EFFECT = ("groups", "corpus", "output", "workers", "part")
"""Settings that change nothing in the result; the files' content counts, not their names."""


def mine_command(config: MineConfig) -> int:
    """`reranker mine`. Returns 1 where no group came out, else 0. Raises UserError."""
    check_settings(config)
    _check_files(config)
    output, part = Path(config.output), parse_part(config.part)
    cache = output / "cache"
    make_directory(cache)
    store, inputs = _store(config, cache)
    shares = None
    if part:
        models = [model_digest(name) for name in (config.dense.model, config.rescore.model) if name]
        shares = Shares(output, part, key_of(config, _WITHOUT_EFFECT, inputs, models, _analyzers()))
    if shares and shares.merging:
        return _report(config, write(merged(shares, open_store(store).requests), output))
    every = range(open_store(store).blocks)
    blocks = part.of_range(len(every)) if part else every
    plan = _plan(config, cache, store, inputs, blocks, part)
    rescoring = _rescoring(config, cache, inputs)
    if rescoring:
        rescore(rescoring, plan, blocks)
    finish = Finish(
        plan, rescoring, config.rescore.margin, config.rescore.threshold, config.least, config.teacher.value
    )
    with (
        progress_bar(desc="filters", unit=" blocks", total=len(blocks)) as bar,
        in_order(functools.partial(finish_block, finish), blocks, config.workers) as results,
    ):
        found = counted(results, bar)
        written = leave(shares, found) if shares else write(found, output)
    if shares:
        print(f"{shares.directory}: part {shares.part}, {written.groups:,} groups, {written.rejected:,} rejected; "
              f"part=merge/{shares.part.of} writes them")  # fmt: skip
        return 0
    return _report(config, written)


def _report(config: MineConfig, written: Written) -> int:
    output, settings = Path(config.output), dataclasses.asdict(config)
    del settings["part"]  # who made it changes nothing in it
    found, removed = written.total, written.removed
    summary = report.summarize(found, removed, written.samples, _plain(settings))
    write_json(output / "report.json", summary)
    write_text(output / "report.md", report.markdown(summary))
    print(f"{output}: {summary['groups']:,} groups with {summary['negatives']:,} negatives, "
          f"{summary['rejected']:,} groups rejected; report.md tells of them")  # fmt: skip
    if found.scores_dropped:
        print(report.scores_dropped(found.scores_dropped), file=sys.stderr)
    if removed:
        print(report.removed(removed), file=sys.stderr)
    if not summary["groups"]:
        print(f"reranker: {output}: none of {summary['rejected']} groups came out: rejected.jsonl says why; loosen the "
              "filters or widen the window", file=sys.stderr)  # fmt: skip
        return 1
    return 0


def check_settings(config: MineConfig) -> None:
    """Refuse values that cannot be, or not together; no file is looked at. Raises UserError that names the key."""
    parse_part(config.part)
    check_at_least([
        *((key, getattr(config, key), 1) for key in ("negatives", "least", "workers", "fusion_constant")),
        ("dense.batch_tokens", config.dense.batch_tokens, 1), ("dense.block", config.dense.block, 1),
        *([] if config.dense.max_length is None else [("dense.max_length", config.dense.max_length, 1)]),
        ("rescore.batch_tokens", config.rescore.batch_tokens, 1), ("rescore.depth", config.rescore.depth, 1),
        ("bm25.k1", config.bm25.k1, 0),
    ])  # fmt: skip
    shares = [
        ("random_share", config.random_share), ("same_document_share", config.same_document_share),
        ("margin", config.margin), ("near_duplicates", config.near_duplicates), ("bm25.b", config.bm25.b),
        ("rescore.margin", config.rescore.margin), ("rescore.threshold", config.rescore.threshold),
        ("bm25.max_document_share", config.bm25.max_document_share),
        ("random_share + same_document_share", config.random_share + config.same_document_share),
    ]  # fmt: skip
    for key, value in shares:
        if value is not None and not 0 <= value <= 1:
            raise UserError(key, str(value), "a number from 0 to 1", "change the value")
    if len(config.window) != 2 or not 1 <= config.window[0] <= config.window[1]:
        raise UserError("window", str(list(config.window)), "[first, last] ranks from 1 on", "say window=[1,100]")
    if config.least > config.negatives:
        raise UserError("least", str(config.least), f"at most negatives={config.negatives}", "lower it")
    if config.bm25.analyzer not in ANALYZERS:
        near = closest(config.bm25.analyzer, ANALYZERS)
        raise UserError("bm25.analyzer", repr(config.bm25.analyzer), "one of " + ", ".join(ANALYZERS),
                        f"did you mean {near}?" if near else "change the value")  # fmt: skip
    uses = {
        Retriever.bm25: {"bm25"},
        Retriever.dense: {"dense"},
        Retriever.fused: {"bm25", "dense"},
    }[config.retriever]
    if "dense" in uses and not config.dense.model:
        raise UserError("dense.model", "none", f"an encoder for retriever={config.retriever.value}",
                        "name a sentence-transformers model")  # fmt: skip
    uses |= {"rescore"} if config.rescore.model else set()
    if config.teacher is not Teacher.none and config.teacher.value not in uses:
        raise UserError("teacher", config.teacher.value, "none or one of " + ", ".join(sorted(uses)),
                        "name a teacher that is used")  # fmt: skip


def _check_files(config: MineConfig) -> None:
    for key, form in (("groups", "groups, one JSON object a line"), ("corpus", "passages, jsonl or tsv")):
        if (path := getattr(config, key)) is not None and not Path(path).exists():
            raise UserError(key, f"{path}, no such file", form, "check the path")


def _store(config: MineConfig, cache: Path) -> tuple[Path, str]:
    groups, corpus = Path(config.groups), corpus_file(config.corpus) if config.corpus else None
    files = [sha256(path) for path in detect(groups, config.reading).everything]
    reading = _plain(dataclasses.asdict(config.reading))
    inputs = digest("store", *files, reading, sha256(corpus) if corpus else None)
    directory = cache / f"store-{inputs}"
    if not directory.exists():
        build_store(groups, corpus, directory, config.reading)
    return directory, inputs


def _plan(config: MineConfig, cache: Path, store: Path, inputs: str, blocks: range, part: Part | None) -> Plan:
    lexical_scorer, rankings = None, []
    if config.retriever is not Retriever.dense:
        lexical_scorer, ranking = _search_lexical(config, cache, store, inputs, blocks)
        rankings.append(ranking)
    embeddings = None
    if config.retriever is not Retriever.bm25:
        embeddings, ranking = _search_dense(config, cache, store, inputs, blocks, part)
        rankings.append(ranking)
    return Plan(
        store=store,
        lexical=lexical_scorer,
        dense=embeddings,
        rankings=tuple(rankings),
        fusion_constant=config.fusion_constant,
        negatives=config.negatives,
        random=round(config.negatives * config.random_share),
        document=round(config.negatives * config.same_document_share),
        ranked=max(config.negatives, config.rescore.depth) if config.rescore.model else config.negatives,
        window=(config.window[0], config.window[1]),
        draw_random=config.draw is Draw.random,
        keep_existing=config.keep_existing,
        filters=filters.Settings(config.margin, config.near_duplicates),
        seed=config.seed,
    )


def _analyzers() -> list[str]:
    """The versions of what cuts words and weighs them: another Kiwi may cut otherwise."""
    from importlib.metadata import version

    return [version("bm25s"), version("kiwipiepy")]


def _search_lexical(
    config: MineConfig, cache: Path, store: Path, inputs: str, mine: range
) -> tuple[LexicalScorer, Path]:
    settings = config.bm25
    key = ["bm25", inputs, settings.analyzer, settings.k1, settings.b, *_analyzers()]
    directory = cache / f"bm25-{digest(*key)}"
    if not directory.exists():
        lexical.build_index(store, directory, settings.analyzer, settings.k1, settings.b, config.workers)
    scorer = LexicalScorer(directory, settings.analyzer, settings.max_document_share)
    last = config.window[1]
    found = cache / f"bm25-search-{digest(*key, settings.max_document_share, last)}"
    blocks = Blocks(found)
    missing = [number for number in mine if not blocks.done(number)]
    search = functools.partial(_search_block, scorer, store, found, last)
    bar = progress_bar(desc="BM25 search", unit=" blocks", total=len(mine), initial=len(mine) - len(missing))
    with bar, in_order(search, missing, config.workers) as done:
        for _ in done:
            bar.update()
    return scorer, found


def _search_block(scorer: LexicalScorer, store_directory: Path, found: Path, last: int, number: int) -> None:
    import numpy as np

    store, index = open_store(store_directory), scorer.open()
    requests = store.block(number)
    depths = [request.depth(last) for request in requests]
    places = np.full((len(requests), max(depths)), -1, np.int32)
    terms_of = index.terms([request.query for request in requests])
    for row, terms, depth in zip(places, terms_of, depths, strict=True):
        best = index.search(terms, depth, store.candidates)
        row[: len(best)] = best
    Blocks(found).put(number, places=places)


def _search_dense(
    config: MineConfig, cache: Path, store: Path, inputs: str, blocks: range, part: Part | None
) -> tuple[Path, Path]:
    settings = config.dense
    assert settings.model is not None
    key = ["dense", inputs, model_digest(settings.model), settings.query_prefix, settings.passage_prefix,
           settings.max_length]  # fmt: skip
    directory = cache / f"dense-{digest(*key)}"
    devices = dense.devices_of(settings.device.value)
    encoder = dense.Encoder(
        settings.model, settings.query_prefix, settings.passage_prefix, settings.max_length, settings.batch_tokens,
        devices,
    )  # fmt: skip
    dense.encode(encoder, store, directory, blocks, part)
    last = config.window[1]
    # A product's last bit hangs on the shape of the matrices, and a rounded score still may: see dense.DECIMALS.
    found = cache / f"dense-search-{digest(*key, last, settings.block, devices[0])}"
    dense.search(directory, store, Blocks(found), last, settings.block, devices[0], blocks)
    return directory, found


def _rescoring(config: MineConfig, cache: Path, inputs: str) -> Rescoring | None:
    settings = config.rescore
    if not settings.model:
        return None
    directory = cache / f"rescore-{digest('rescore', inputs, model_digest(settings.model), settings.max_length)}"
    devices = dense.devices_of(settings.device.value)
    return Rescoring(settings.model, directory, settings.max_length, settings.batch_tokens, devices)


def _plain(value: Any) -> Any:
    """Settings as JSON holds them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value
