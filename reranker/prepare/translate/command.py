"""`reranker translate`: groups in one language -> the same in another, through a backend and a ledger.

In: a `TranslateConfig`. Out: groups.jsonl, rejected.jsonl, unreadable.jsonl and the report in the output directory,
and the ledger that makes the same command go on where it was ended. The source is streamed twice: to send what is
not known, and to write. Groups in = out + rejected + unreadable, and distinct texts = translated + rejected + failed,
or nothing is written. Where texts have no translation, no group came out or the source is cut short, all is written
even so, one line on standard error says it, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from reranker.checks import check_at_least
from reranker.config.translation import Retry, TranslateConfig
from reranker.errors import UserError
from reranker.files import make_directory, sha256
from reranker.prepare.part import Shares, key_of, parse_part, parts_of
from reranker.prepare.readers import detect
from reranker.prepare.translate.backend import Backend, make_backend
from reranker.prepare.translate.dry_run import estimate
from reranker.prepare.translate.gates import Gates
from reranker.prepare.translate.ledger import Ledger, Seen
from reranker.prepare.translate.lines import Lines
from reranker.prepare.translate.report import Summary, write_report
from reranker.prepare.translate.run import AGAIN, Judge, Translator, windows
from reranker.prepare.translate.similarity import Similarity
from reranker.prepare.translate.tally import Tally
from reranker.prepare.translate.write import write_outputs
from reranker.progress import progress_bar

_WITHOUT_EFFECT = (
    "groups", "output", "backend", "fallback", "back", "ledger", "ledgers", "part", "retry", "window", "max_unreadable",
    "max_failures", "samples", "dry_run", "gates",
)  # fmt: skip
"""Settings that change nothing in what a text becomes, or that the backends' identities and the gates' digest hold."""
_WAIT = 1.0
"""Seconds between two looks at what other processes have in hand."""


def translate_command(config: TranslateConfig) -> int:
    """`reranker translate`. Returns 1 where not all could be translated, else 0. Raises UserError."""
    with contextlib.ExitStack() as stack:
        back = None
        if config.gates.similarity is not None and config.gates.similarity_model and config.back:
            # The other way round: from the target to the source.
            backend = make_backend(config.back, "back", config.target, config.source)
            back = Similarity(config.gates.similarity_model, stack.enter_context(contextlib.closing(backend)))
        summary = translate(config, Gates.of(config.gates, config.source, config.target, back))
    told, problems = summary.pop("told"), summary.pop("problems")
    if "groups" in summary:
        samples = summary.pop("samples")
        write_report(Path(config.output), cast(Summary, summary), samples)
    for problem in problems:
        print(f"reranker: {problem}", file=sys.stderr, flush=True)
    print("\n".join(told), flush=True)  # last of all: who reads it may have closed the pipe
    return 1 if problems else 0


def translate(config: TranslateConfig, gates: Judge) -> dict[str, Any]:
    """Translate and write; or, in a dry run, estimate. Returns what there is to report.

    `told` are the lines for standard output; `problems`, a line each, are why this is no success.
    """
    check_settings(config)
    began = time.monotonic()
    shares = _shares(config, gates)
    path = None if shares and shares.merging else shares.path(".sqlite") if shares else _whole(config)
    lines = Lines(config.groups, config.max_unreadable, config.reading)
    with contextlib.ExitStack() as stack:
        backends = [
            stack.enter_context(contextlib.closing(make_backend(settings, key, config.source, config.target)))
            for key, settings in (("backend", config.backend), ("fallback", config.fallback))
            if settings or key == "backend"
        ]
        known = [*map(Path, config.ledgers), *_earlier(config, shares, path)]
        others = [stack.enter_context(contextlib.closing(Ledger(one, read_only=True))) for one in known]
        seen = stack.enter_context(contextlib.closing(Seen()))
        if config.dry_run:
            if path and path.is_file():
                others.insert(0, stack.enter_context(contextlib.closing(Ledger(path, read_only=True))))
            return _estimate(config, lines, seen, others, backends)
        stack.enter_context(_terminated_like_interrupted())
        if shares and path is None:
            records = shares.records()
            if not others:
                raise UserError(shares.directory, "no ledger", "one of each task", "run the parts again")
            make_directory(config.output)
            translator = Translator(others[0], others[1:], backends, gates, Retry.none, config.max_failures)
            tally = _merged(config, shares, records, lines, seen, translator)
        else:
            assert path is not None
            make_directory(path.parent if shares else config.output)
            durable = any(backend.price > 0 for backend in backends)
            ledger = stack.enter_context(contextlib.closing(Ledger(path, durable=durable, alone=bool(shares))))
            with progress_bar(desc="translate", unit=" texts") as bar:
                translator = Translator(ledger, others, backends, gates, config.retry, config.max_failures, bar.update)
                tally = _send(config, lines, seen, translator)
        summary = {
            "source": config.source,
            "target": config.target,
            **tally.summary,
            "sent": _sent(translator, backends),
        }
        if shares and not shares.merging:
            shares.record(texts=tally.summary["texts"], sent=summary["sent"])
            told = [f"{path}: part {shares.part}, {_texts(summary)}; part=merge/{shares.part.of} writes the groups"]
            return summary | {"told": told, "problems": _problems(config, tally, lines)}
        written = write_outputs(Path(config.output), lines, translator, config.samples)
        groups = written.counts
        told = [f"{config.output}: {groups['out']} of {groups['in']} groups, {groups['rejected']} rejected, "
                f"{groups['unreadable']} unreadable; {_texts(summary)}"]  # fmt: skip
        problems = _problems(config, tally, lines)
        if not groups["out"]:
            problems.append(f"{config.output}: none of {groups['in']} groups came out: rejected.jsonl and "
                            "unreadable.jsonl say why")  # fmt: skip
        seconds = round(time.monotonic() - began, 1)
        return summary | {"groups": groups, "samples": written.samples, "seconds": seconds, "told": told,
                          "problems": problems}  # fmt: skip


def _share(config: TranslateConfig) -> tuple[int, int]:
    """Which of how many shares of the texts; a merge looks at all."""
    part = parse_part(config.part)
    return (part.number, part.of) if part and part.number is not None else (0, 1)


def _problems(config: TranslateConfig, tally: Tally, lines: Lines) -> list[str]:
    problems = [lines.cut_short] if lines.cut_short else []
    if config.retry is Retry.none:
        return problems  # that they are not translated is known, and wanted so
    if tally.failed:
        again = "their parts send" if config.part and config.part.startswith("merge") else "the same command sends"
        problems.append(f"{config.output}: {tally.failed} texts failed: {again} them again, retry=none goes on without "
                        "them")  # fmt: skip
    if tally.missing:
        problems.append(f"{config.output}: {tally.missing} texts that no backend has: name a fallback that has them, "
                        "or retry=none goes on without them")  # fmt: skip
    return problems


def _send(config: TranslateConfig, lines: Lines, seen: Seen, translator: Translator) -> Tally:
    """Send every text of the source that is not known, and count all."""
    tally = Tally()
    while True:
        waiting = 0
        for window in windows(lines, seen, *_share(config), config.window):
            left = translator.translate(window)
            seen.remove(left)
            waiting += len(left)
            known = {key: text for key, text in window if key not in left}
            tally.add(known.items(), translator.resolve(known))
        if not waiting:
            return tally
        # Another process has them in hand: it records them, or dies and leaves them to us.
        time.sleep(_WAIT)


def _merged(
    config: TranslateConfig, shares: Shares, records: list[dict[str, Any]], lines: Lines, seen: Seen,
    translator: Translator,
) -> Tally:  # fmt: skip
    """Count what the parts have made of every text. Raises UserError where a text is in no ledger of theirs."""
    tally, unknown = Tally(), 0
    for window in windows(lines, seen, 0, 1, config.window):
        entries = translator.resolve(dict(window))
        known = {key: text for key, text in window if key in entries}
        tally.add(known.items(), entries)
        unknown += len(window) - len(known)
    distinct, parts = tally.summary["texts"]["distinct"], sum(one["texts"]["distinct"] for one in records)
    if unknown or distinct != parts:
        raise UserError(shares.directory, f"{parts} texts in all parts, {unknown} of the source in none",
                        f"each of {distinct + unknown} once",
                        "say the ledgers= of the parts, or run them again")  # fmt: skip
    return tally


def _shares(config: TranslateConfig, gates: Judge) -> Shares | None:
    part = parse_part(config.part)
    if not part:
        return None
    if not Path(config.groups).exists():
        raise UserError("groups", f"{config.groups}, no such file", "groups, one JSON object a line", "check the path")
    files = [sha256(path) for path in detect(config.groups, config.reading).everything]
    return Shares(Path(config.output), part, key_of(config, _WITHOUT_EFFECT, gates.digest, *files))


def _whole(config: TranslateConfig) -> Path:
    """The ledger of a run of all texts."""
    return Path(config.ledger or Path(config.output) / "ledger.sqlite")


def _earlier(config: TranslateConfig, shares: Shares | None, own: Path | None) -> list[Path]:
    """The ledgers of all other runs on the same output, by one process or any number of tasks: what they hold is paid.

    Not those of the tasks beside this one, which hold other texts and may be being written.
    """
    every = [_whole(config), *sorted(parts_of(Path(config.output)).glob("*.sqlite"))]
    beside: set[Path] = set()
    if shares and not shares.merging:
        beside = {shares.path(".sqlite", number) for number in range(shares.part.of)}
    return [path for path in every if path != own and path not in beside and path.is_file()]


def _sent(translator: Translator, backends: list[Backend]) -> list[dict[str, Any]]:
    sent = []
    for backend in backends:
        count, characters = translator.sent[backend.identity]
        dollars = round(characters * backend.price / 1e6, 6)
        sent.append({"backend": backend.identity, "texts": count, "characters": characters, "dollars": dollars})
    return sent


def _texts(summary: dict[str, Any]) -> str:
    texts, sent = summary["texts"], summary["sent"]
    billed = sum(each["dollars"] for each in sent)
    return (
        f"{texts['distinct']} distinct texts: {texts['translated']} translated, {texts['rejected']} rejected, "
        f"{texts['failed']} failed; sent now {sum(each['texts'] for each in sent)} texts, "
        f"{sum(each['characters'] for each in sent)} characters, ${billed:.2f}"
    )


def _estimate(
    config: TranslateConfig, lines: Lines, seen: Seen, ledgers: list[Ledger], backends: list[Backend]
) -> dict[str, Any]:
    texts = windows(lines, seen, *_share(config), config.window)
    distinct, characters, estimates = estimate(texts, ledgers, backends, AGAIN[config.retry])
    told = [f"{distinct} distinct texts, {characters} characters"]
    for each in estimates:
        price = f" at ${each.backend.price:g} for a million characters" if each.backend.price else ""
        told.append(f"{each.backend.identity}: {each.known} in the ledger, {each.new} new of {each.characters} "
                    f"characters: ${each.dollars:.2f}{price}, {each.hours:.2f} hours")  # fmt: skip
    problems = [lines.cut_short] if lines.cut_short else []
    return {"distinct": distinct, "characters": characters, "told": told, "problems": problems}


def check_settings(config: TranslateConfig) -> None:
    """Refuse values that cannot be, or not together; no file is looked at. Raises UserError that names the key."""
    if parse_part(config.part) and config.ledger:
        raise UserError("ledger", config.ledger, "none beside part: each task has one in OUTPUT.parts", "leave it out")
    check_at_least([("window", config.window, 1), ("max_failures", config.max_failures, 1),
                    ("samples", config.samples, 0)])  # fmt: skip
    if not 0 <= config.max_unreadable <= 1:
        raise UserError("max_unreadable", str(config.max_unreadable), "a share between 0 and 1", "change the value")
    for key in ("source", "target"):
        if not getattr(config, key).strip():
            raise UserError(key, "no language", "an ISO 639-1 code", f"say {key}=ko, for example")
    if config.source == config.target:
        raise UserError("target", config.target, "another language than source", "change one of them")


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: what is under way is recorded first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
