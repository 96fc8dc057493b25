"""Translation: each distinct text is sent once, nothing is dropped, and the groups are those of the translators."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.config.gates import GatesConfig
from reranker.config.translation import Retry, TranslateConfig
from reranker.demo import corpus
from reranker.errors import UserError
from reranker.groups import Group, read_groups, write_groups
from reranker.prepare.translate.backend import Outcome
from reranker.prepare.translate.command import translate, translate_command
from reranker.prepare.translate.ledger import FAILED, REJECTED, TRANSLATED, Entry, Ledger, hash_of
from reranker.prepare.translate.run import Translator
from reranker.prepare.translate.segments import split_text
from tests.amazon import Translate, translating


class Gates:
    """A gate that refuses one word."""

    def __init__(self, refused: str = "\0") -> None:
        self.refused, self.digest = refused, f"refuses {refused}"

    def check_many(self, sources: Sequence[str], translations: Sequence[str]) -> list[str | None]:
        return [f"word: {self.refused}" if self.refused in text else None for text in translations]


PAIRS = {f"text {n}": f"글 {n}" for n in range(30)}
GROUPS = [Group(f"text {n}", (f"text {n + 1}",), (f"text {n + 2}", f"text {n + 3}"), neg_scores=(0.5, 0.25), id=str(n))
          for n in range(20)]  # fmt: skip
KOREAN = [Group(PAIRS[g.query], tuple(PAIRS[t] for t in g.pos), tuple(PAIRS[t] for t in g.neg), neg_scores=g.neg_scores,
                id=g.id) for g in GROUPS]  # fmt: skip


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(name, value)


def amazon(server: Translate, **settings: Any) -> dict[str, Any]:
    return {
        "class": "reranker.prepare.translate.amazon:Amazon",
        "endpoint_url": server.url,
        "concurrency": 4,
        **settings,
    }


def memory(directory: Path, pairs: dict[str, str] = PAIRS) -> dict[str, Any]:
    path = directory / "memory.jsonl"
    path.write_text("".join(json.dumps({"en": en, "ko": ko}) + "\n" for en, ko in pairs.items()), encoding="utf-8")
    return {"class": "reranker.prepare.translate.memory:Memory", "files": str(path)}


def run(directory: Path, backend: dict[str, Any], gates: Any = None, groups: Any = None, **keys: Any) -> dict[str, Any]:
    source = directory / "groups.jsonl"
    if not source.exists():
        write_groups(source, groups or GROUPS)
    settings = {"groups": str(source), "output": str(directory / "out"), **keys}
    return translate(TranslateConfig(backend=backend, **settings), gates or Gates())


def command(directory: Path, backend: dict[str, Any], **keys: Any) -> int:
    """The exit code of the command. PAIRS are too short for the gates, which are off."""
    if not (directory / "groups.jsonl").exists():
        write_groups(directory / "groups.jsonl", GROUPS)
    off: Any = {"untranslated": None, "length": None, "repetition": None, "language": None}
    settings = {"groups": str(directory / "groups.jsonl"), "output": str(directory / "out"), **keys}
    return translate_command(TranslateConfig(backend=backend, gates=GatesConfig(**off), **settings))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_shipped_documents_come_out_as_the_human_translators_wrote_them(tmp_path: Path) -> None:
    passages = [p for p in corpus.passages() if p["text_en"]][:60]
    pairs = {p["text_en"]: p["text"] for p in reversed(passages)}
    english = [Group(a, (b,), (c,)) for a, b, c in zip(pairs, list(pairs)[1:], list(pairs)[2:], strict=False)]
    with translating(pairs) as server:
        server.every = 29
        summary = run(tmp_path, amazon(server), groups=english)
        assert set(server.served.values()) == {1}
        assert len(server.served) == len(pairs)
    korean = [Group(pairs[g.query], (pairs[g.pos[0]],), (pairs[g.neg[0]],)) for g in english]
    assert list(read_groups(tmp_path / "out/groups.jsonl")) == korean
    assert summary["groups"] == {"in": len(english), "out": len(english), "rejected": 0, "unreadable": 0,
                                 "negatives_rejected": 0}  # fmt: skip


def test_a_text_is_paid_for_once_across_runs_and_roles(tmp_path: Path) -> None:
    with translating(PAIRS) as server:
        first = run(tmp_path, amazon(server))
        again = run(tmp_path, amazon(server))
        assert set(server.served.values()) == {1}
    assert first["texts"] == again["texts"] == {"distinct": 23, "translated": 23, "rejected": 0, "failed": 0}
    assert first["sent"][0]["dollars"] == pytest.approx(15e-6 * sum(len(f"text {n}") for n in range(23)))
    assert again["sent"][0]["texts"] == 0
    assert list(read_groups(tmp_path / "out/groups.jsonl")) == KOREAN


def test_a_text_that_failed_is_counted_and_sent_again_by_the_next_run(tmp_path: Path) -> None:
    known = {en: ko for en, ko in PAIRS.items() if en != "text 0"}
    with translating(known) as server:
        summary = run(tmp_path, amazon(server))
        assert summary["texts"]["failed"] == 1
        assert summary["groups"]["rejected"] == 1
        rejected = lines(tmp_path / "out/rejected.jsonl")[0]
        assert rejected["reasons"][0]["reason"].startswith("error: InvalidRequestException")
        assert rejected["group"]["query"] == "text 0"
        server.pairs = PAIRS
        assert run(tmp_path, amazon(server), retry=Retry.none)["texts"]["failed"] == 1
        assert run(tmp_path, amazon(server))["texts"]["failed"] == 0
        assert set(server.served.values()) == {1}


def test_terminology_and_formality_go_with_each_request(tmp_path: Path) -> None:
    with translating(PAIRS) as server:
        run(tmp_path, amazon(server, terminology=["names"], formality="FORMAL"))
        assert {json.dumps(request["TerminologyNames"]) for request in server.asked} == {'["names"]'}
        assert {json.dumps(request["Settings"]) for request in server.asked} == {'{"Formality": "FORMAL"}'}


@pytest.mark.parametrize("code", ["AccessDeniedException", "UnsupportedLanguagePairException"])
def test_what_no_retry_mends_ends_the_run_in_one_line(code: str, tmp_path: Path) -> None:
    with translating(PAIRS) as server:
        server.mishaps = [code] * 100
        with pytest.raises(UserError, match=f"^backend: found {code}"):
            run(tmp_path, amazon(server))
        assert server.requests <= 4
    assert not (tmp_path / "out/groups.jsonl").exists()


def test_without_credentials_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with translating(PAIRS) as server:
        with pytest.raises(UserError, match="no AWS credentials"):
            run(tmp_path, amazon(server))
        assert server.requests == 0


def test_what_a_gate_refuses_is_kept_with_its_reason_and_judged_anew_without_a_request(tmp_path: Path) -> None:
    with translating(PAIRS) as server:
        summary = run(tmp_path, amazon(server), Gates("글 22"))
        assert summary["texts"]["rejected"] == 1
        assert summary["groups"] == {"in": 20, "out": 20, "rejected": 0, "unreadable": 0, "negatives_rejected": 1}
        last = list(read_groups(tmp_path / "out/groups.jsonl"))[-1]
        assert (last.neg, last.neg_scores) == (("글 21",), (0.5,))
        assert lines(tmp_path / "out/rejected.jsonl")[0]["reasons"] == [
            {"place": "neg[1]", "text": "text 22", "translation": "글 22", "reason": "word: 글 22"}
        ]
        assert run(tmp_path, amazon(server), Gates("글 0"))["groups"]["rejected"] == 1
        assert set(server.served.values()) == {1}
        run(tmp_path, amazon(server), Gates("글 0"), retry=Retry.rejected)
        assert server.served["text 0"] == 2


def test_a_group_goes_with_its_query_its_positive_or_all_of_its_negatives(tmp_path: Path) -> None:
    groups = [Group("text 0", ("text 1",), ("text 2", "text 3"), id="query"),
              Group("text 4", ("text 0",), ("text 2", "text 3"), id="positive"),
              Group("text 4", ("text 1",), ("text 0",), id="negatives"),
              Group("text 4", ("text 1",), ("text 0", "text 2"), id="stays")]  # fmt: skip
    summary = run(tmp_path, memory(tmp_path), Gates("글 0"), groups=groups)
    assert summary["groups"] == {"in": 4, "out": 1, "rejected": 3, "unreadable": 0, "negatives_rejected": 1}
    assert summary["by_gate"] == {"word": 1}
    assert [(group.id, group.neg) for group in read_groups(tmp_path / "out/groups.jsonl")] == [("stays", ("글 2",))]
    rejected = lines(tmp_path / "out/rejected.jsonl")
    assert [(line["group"]["id"], line["rejected"], line["reasons"][0]["place"]) for line in rejected] == [
        ("query", "group", "query"), ("positive", "group", "pos[0]"), ("negatives", "group", "neg[0]"),
        ("stays", "negatives", "neg[0]"),
    ]  # fmt: skip


def test_what_a_memory_lacks_goes_to_the_fallback_alone(tmp_path: Path) -> None:
    half = {en: ko for n, (en, ko) in enumerate(PAIRS.items()) if n % 2}
    with translating(PAIRS) as server:
        run(tmp_path, memory(tmp_path, half), fallback=amazon(server))
        assert sorted(server.served) == sorted(f"text {n}" for n in range(0, 23, 2))
    assert list(read_groups(tmp_path / "out/groups.jsonl")) == KOREAN


def test_tmx_is_read_by_language_and_its_regions(tmp_path: Path) -> None:
    units = "".join(f'<tu><tuv xml:lang="en-US"><seg>{en}</seg></tuv><tuv xml:lang="ko-KR"><seg>{ko}</seg></tuv></tu>'
                    for en, ko in PAIRS.items())  # fmt: skip
    path = tmp_path / "memory.tmx"
    path.write_text(f'<?xml version="1.0"?><tmx version="1.4"><header/><body>{units}</body></tmx>', encoding="utf-8")
    run(tmp_path, {"class": "reranker.prepare.translate.memory:Memory", "files": [str(path)]})
    assert list(read_groups(tmp_path / "out/groups.jsonl")) == KOREAN


def test_a_translation_memory_that_is_torn_within_is_told_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "memory.tmx.gz"
    path.write_bytes(gzip.compress(b"<tmx/>")[:10] + b"\x07" + b"\0" * 100)  # a block of a kind that there is none of
    with pytest.raises(UserError, match=f"^{path}: found a file that cannot be read to its end"):
        run(tmp_path, {"class": "reranker.prepare.translate.memory:Memory", "files": [str(path)]})


@pytest.mark.parametrize("wrong", [{"batch_texts": 1.5}, {"batch_texts": True}, {"files": 3}, {"files": [3]}])
def test_settings_of_a_memory_that_cannot_be_are_told(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^backend\.{next(iter(wrong))}: found "):
        run(tmp_path, memory(tmp_path) | wrong)


def test_a_dry_run_tells_texts_characters_and_cost_and_sends_nothing(tmp_path: Path) -> None:
    with translating(PAIRS) as server:
        summary = run(tmp_path, amazon(server, price=1e6), dry_run=True)
        assert server.requests == 0
    characters = sum(len(f"text {n}") for n in range(23))
    out = "\n".join(summary["told"])
    assert out.startswith(f"23 distinct texts, {characters} characters\n")
    assert f"0 in the ledger, 23 new of {characters} characters: ${characters:.2f}" in out
    assert not (tmp_path / "out").exists()


def test_every_unreadable_line_is_named_and_the_others_are_translated(tmp_path: Path) -> None:
    good = [group.to_json().encode() for group in GROUPS]
    many = json.dumps({"query": "text 0", "pos": ["text 1"], "neg": ["text 2"] * 100_000}).encode()
    bad = [b"\0\0\0", b'{"query": "\\ud800", "pos": ["a"], "neg": ["b"]}', '["질문"'.encode("euc-kr"), b"[" * 200_000,
           b'"' + b"x" * 5_000_000, b"{" + b"9" * 10_000,
           b'{"query": "a", "pos": ["b"], "neg": ["c"], "neg_scores": [' + b"9" * 400 + b"]}"]  # fmt: skip
    content = b"\n".join([*good[:3], *bad, many, *good[3:], b'{"query": "cut', b""]) + bytes(range(97, 122)) * 9000
    packed = gzip.compress(content)
    source = tmp_path / "groups.jsonl.gz"
    source.write_bytes(packed[:-20])
    config = TranslateConfig(groups=str(source), output=str(tmp_path / "out"), backend=memory(tmp_path))
    summary = translate(config, Gates())
    named = [line["where"].rpartition(":")[2] for line in lines(tmp_path / "out/unreadable.jsonl")]
    assert named[:7] == ["4", "5", "6", "7", "8", "9", "10"]
    assert len(named) == 10
    # Nothing of them is lost: what is no text is there in base64, what cannot be decompressed by its place.
    kept = [line.get("line", "").encode() or base64.b64decode(line.get("line_base64", ""))
            for line in lines(tmp_path / "out/unreadable.jsonl")]  # fmt: skip
    assert kept[:7] == bad
    assert summary["groups"]["out"] == 21
    assert len(list(read_groups(tmp_path / "out/groups.jsonl"))[3].neg) == 100_000


def test_a_source_may_be_in_any_form_and_have_no_negatives(tmp_path: Path) -> None:
    beir, output = tmp_path / "beir", tmp_path / "out"
    (beir / "qrels").mkdir(parents=True)
    (beir / "queries.jsonl").write_text('{"_id": "q", "text": "text 0"}\n')
    (beir / "corpus.jsonl").write_text('{"_id": "p", "title": "", "text": "text 1"}\n')
    (beir / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp\t1\nnone\tp\t1\n")
    (tmp_path / "pairs.jsonl").write_text('{"query": "text 0", "pos": ["text 1"]}\n{"query": "text 2"}\n')
    (tmp_path / "triples.tsv").write_text("text 0\ttext 1\ttext 2\ntext 3\n")
    for source, negatives in (("pairs.jsonl", []), ("triples.tsv", ["글 2"]), ("beir", [])):
        config = TranslateConfig(groups=str(tmp_path / source), output=str(output), backend=memory(tmp_path))
        summary = translate(config, Gates())
        (made,) = lines(output / "groups.jsonl")
        assert (made["query"], made["pos"], made["neg"]) == ("글 0", ["글 1"], negatives)
        assert (summary["groups"]["in"], summary["groups"]["out"], summary["groups"]["unreadable"]) == (2, 1, 1)
        assert len(lines(output / "unreadable.jsonl")) == 1


def test_a_paid_translation_stays_where_another_attempt_at_it_fails(tmp_path: Path) -> None:
    refusing = Gates("글")
    with translating(PAIRS) as server:
        first = TranslateConfig(
            groups=str(tmp_path / "groups.jsonl"), output=str(tmp_path / "out"), backend=amazon(server)
        )
        write_groups(tmp_path / "groups.jsonl", GROUPS)
        translate(first, refusing)
        paid = sum(server.served.values())
        server.mishaps = ["InvalidRequestException"] * 1000
        translate(dataclasses.replace(first, retry=Retry.rejected, max_failures=1000), refusing)
        assert sum(server.served.values()) == paid
        requests = server.requests
        assert requests > paid
        summary = translate(first, Gates())  # of other gates, which let all pass: nothing is sent for that
        assert server.requests == requests
    assert summary["groups"]["out"] == len(GROUPS)


def test_a_wrong_file_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "groups.jsonl").write_text("query,passage\n" * 300)
    with pytest.raises(UserError, match=r"100 of 100 lines that are no groups"):
        run(tmp_path, memory(tmp_path))


def test_a_setting_that_a_backend_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^backend\.file: found an unknown key.*did you mean backend\.files\?"):
        run(tmp_path, memory(tmp_path) | {"file": "x"})


@given(st.text(st.characters(codec="utf-8") | st.sampled_from(" .\n。가"), max_size=120), st.integers(4, 40))
def test_parts_of_a_text_are_short_enough_and_joined_are_the_text(text: str, limit: int) -> None:
    pieces = split_text(text, limit)
    assert "".join(part + separator for part, separator in pieces) == text
    assert all(len(part.encode()) <= limit for part, _ in pieces)


def test_a_long_text_is_cut_at_sentence_ends(tmp_path: Path) -> None:
    sentence = "가" * 1500 + "."
    text = f"{sentence} {sentence}\n\n{sentence}"
    with translating({f"{sentence} {sentence}": "One. Two.", sentence: "Three.", "b": "B", "c": "C"}) as server:
        run(tmp_path, amazon(server), groups=[Group(text, ("b",), ("c",))])
    assert next(iter(read_groups(tmp_path / "out/groups.jsonl"))).query == "One. Two.\n\nThree."


def test_texts_that_failed_make_the_exit_code_1_until_they_are_translated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with translating({en: ko for en, ko in PAIRS.items() if en not in ("text 0", "text 5")}) as server:
        assert command(tmp_path, amazon(server)) == 1
        output = tmp_path / "out"
        told = (
            f"reranker: {output}: 2 texts failed: the same command sends them again, retry=none goes on without them\n"
        )
        assert told in capsys.readouterr().err
        assert len(list(read_groups(output / "groups.jsonl"))) == 17
        assert json.loads((output / "report.json").read_text())["texts"]["failed"] == 2
        assert command(tmp_path, amazon(server), retry=Retry.none) == 0  # known, and wanted without them
        assert capsys.readouterr().err.count("texts failed") == 0
        parts = [command(tmp_path, amazon(server), part=f"{part}/2") for part in range(2)]
        assert max(parts) == 1
        capsys.readouterr()
        server.pairs = PAIRS
        assert command(tmp_path, amazon(server)) == 0
    assert "reranker:" not in capsys.readouterr().err


def test_a_run_without_a_group_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [Group("text 0", ("text 1",), ("text 2",))]
    write_groups(tmp_path / "groups.jsonl", groups)
    assert command(tmp_path, memory(tmp_path, dict.fromkeys(PAIRS, "..."))) == 1
    assert capsys.readouterr().err.endswith(
        ": none of 1 groups came out: rejected.jsonl and unreadable.jsonl say why\n"
    )
    assert lines(tmp_path / "out/rejected.jsonl")[0]["reasons"][0]["reason"].startswith("empty: ")
    assert command(tmp_path, memory(tmp_path, {"text 0": "글"})) == 1
    assert (
        ": 2 texts that no backend has: name a fallback that has them, or retry=none goes on without them\n"
        in capsys.readouterr().err
    )


def test_a_file_that_is_cut_short_is_told_and_what_came_before_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "groups.jsonl.gz"
    whole = b"".join(group.to_json().encode() + b"\n" for group in GROUPS)
    source.write_bytes(gzip.compress(whole) + gzip.compress(whole)[:30])
    for keys in ({}, {"dry_run": True}, {"part": "0/2"}):
        assert command(tmp_path, memory(tmp_path), groups=str(source), **keys) == 1
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reranker: ")]
        assert len(told) == 1
        assert told[0].startswith(f"reranker: {source}:21: the file is cut short here")
    assert list(read_groups(tmp_path / "out/groups.jsonl")) == KOREAN
    assert [line["where"] for line in lines(tmp_path / "out/unreadable.jsonl")] == [f"{source}:21"]
    source.write_bytes(gzip.compress(whole))
    assert command(tmp_path, memory(tmp_path), groups=str(source)) == 0


def test_a_byte_order_mark_costs_no_group(tmp_path: Path) -> None:
    content = "".join(group.to_json() + "\n" for group in GROUPS)
    (tmp_path / "groups.jsonl").write_text(content, encoding="utf-8-sig")
    assert run(tmp_path, memory(tmp_path))["groups"]["unreadable"] == 0
    assert list(read_groups(tmp_path / "out/groups.jsonl")) == KOREAN


def test_a_closed_pipe_does_not_cost_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True))
    with pytest.raises(BrokenPipeError):
        command(tmp_path, memory(tmp_path))
    assert {path.name for path in (tmp_path / "out").glob("report.*")} == {"report.json", "report.md", "report.png"}


def _row(text: str, status: str, gates: str = "") -> Entry:
    translation = PAIRS[text] if status in (TRANSLATED, REJECTED) else None
    return Entry(hash_of(text), status, translation, None if status == TRANSLATED else "reason", gates, len(text))


def test_two_names_of_a_ledger_share_its_claims(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "disk/ledger.sqlite")
    texts = [hash_of("a"), hash_of("b")]
    first, second = Ledger(tmp_path / "disk/ledger.sqlite"), Ledger(tmp_path / "link.sqlite")
    assert first.claim("x", texts, ()) == set(texts)
    assert second.claim("x", texts, ()) == set()
    first.close()
    assert second.claim("x", texts, ()) == set(texts)
    second.close()


@pytest.mark.parametrize("whole", [1, 3])
def test_a_ledger_that_is_damaged_is_told_with_its_name(whole: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    entries = [_row(text, TRANSLATED) for text in PAIRS]
    ledger.record("x", entries)
    ledger.close()
    content = path.read_bytes()
    pages = 4096 * whole  # the first holds the schema, the next two the backends
    path.write_bytes(content[:pages] + b"\xff" * (len(content) - pages))
    ledger = Ledger(path)
    calls: list[Any] = [lambda: ledger.entries("x", [hash_of("text 0")]), lambda: ledger.record("x", entries),
                        lambda: ledger.claim("x", [hash_of("text 0")], ())]  # fmt: skip
    for call in calls:
        with pytest.raises(UserError, match=f"^{path}: found a ledger that cannot be read or written"):
            call()


class Other:
    """A backend that gives another run the same translations, and is asked for none."""

    identity, batch_texts, concurrency, price, seconds_per_text = "other", 1, 1, 0.0, 1.0

    def translate(self, texts: Sequence[str]) -> list[Outcome]:
        raise AssertionError("nothing is to be sent")

    def close(self) -> None: ...


def test_other_gates_on_the_same_ledger_meanwhile_do_not_change_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    texts = {hash_of(text): text for text in ("text 0", "text 1")}
    ledger = Ledger(path)
    ledger.record("other", [_row(text, TRANSLATED, "gates of nobody") for text in texts.values()])
    runs = [Translator(ledger, [], [Other()], Gates(refused), Retry.errors, 1) for refused in ("글 0", "글 1")]
    for translator in runs:
        assert translator.translate(list(texts.items())) == set()
    # The second run has judged last; each sees its own judgement, and asking changes nothing for the other.
    for translator, refused in (*zip(runs, texts, strict=True), (runs[0], next(iter(texts)))):
        statuses = {key: entry.status for key, entry in translator.resolve(texts).items()}
        assert statuses == {key: REJECTED if key == refused else TRANSLATED for key in texts}
    assert {entry.gates for entry in ledger.entries("other", list(texts)).values()} == {"refuses 글 1"}
    ledger.close()


@pytest.mark.parametrize(("retry", "new"), [(Retry.none, 20), (Retry.errors, 21), (Retry.rejected, 22)])
def test_a_dry_run_counts_what_retry_sends_again(retry: Retry, new: int, tmp_path: Path) -> None:
    with translating(PAIRS) as server:
        backend = amazon(server)
        run(tmp_path, backend, dry_run=True)  # writes the groups
        ledger = Ledger(tmp_path / "ledger.sqlite")
        statuses = {"text 0": TRANSLATED, "text 1": FAILED, "text 2": REJECTED}
        ledger.record("amazon 1 en>ko", [_row(*item, Gates().digest) for item in statuses.items()])
        ledger.close()
        estimated = run(tmp_path, backend, ledger=str(tmp_path / "ledger.sqlite"), retry=retry, dry_run=True)
        assert f"amazon 1 en>ko: {23 - new} in the ledger, {new} new of " in estimated["told"][1]


@pytest.mark.parametrize("second", [["text 0"], ["text 0", "text 1"]])
def test_a_memory_that_adds_nothing_to_the_one_before_is_one_even_so(second: list[str], tmp_path: Path) -> None:
    first = memory(tmp_path)["files"]
    (tmp_path / "more").mkdir()
    again = memory(tmp_path / "more", {text: PAIRS[text] for text in second})
    run(tmp_path, again | {"files": [first, again["files"]]})
    assert list(read_groups(tmp_path / "out/groups.jsonl")) == KOREAN


def test_errors_call_a_fallback_by_its_own_key(tmp_path: Path) -> None:
    first = memory(tmp_path, {"text 0": "글 0"})
    with translating(PAIRS) as server:
        for wrong in ({"concurrency": 0}, {"max_attempts": 0}, {"terminology": "x"}, {"formality": "x"}):
            with pytest.raises(UserError, match=rf"^fallback\.{next(iter(wrong))}: "):
                run(tmp_path, first, fallback=amazon(server, **wrong))
        with pytest.raises(UserError, match=r"^fallback\.batch_texts: "):
            run(tmp_path, amazon(server), fallback=first | {"batch_texts": 0})
        with pytest.raises(UserError, match=r"^fallback\.files: "):
            run(tmp_path, amazon(server), fallback=first | {"files": []})
        server.mishaps = ["AccessDeniedException"] * 100
        with pytest.raises(UserError, match=r"^fallback: found AccessDeniedException"):
            run(tmp_path, first, fallback=amazon(server))
        server.mishaps = ["InvalidRequestException"] * 100
        with pytest.raises(UserError, match=r"^fallback: found 5 texts in a row"):
            run(tmp_path, first, fallback=amazon(server, concurrency=1), max_failures=5)
        with pytest.raises(UserError, match=r"^backend\.config_key: found an unknown key"):
            run(tmp_path, amazon(server, config_key="fallback"))
