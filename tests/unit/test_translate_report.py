"""The report of a translation: three files that say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reranker.errors import UserError
from reranker.prepare.translate.report import Sample, Summary, length_histogram, markdown, write_report

SUMMARY: Summary = {
    "source": "en",
    "target": "ko",
    "groups": {"in": 1000, "out": 970, "rejected": 25, "unreadable": 5, "negatives_rejected": 40},
    "texts": {"distinct": 3000, "translated": 2900, "rejected": 92, "failed": 8},
    "sent": [{"backend": "amazon", "texts": 3000, "characters": 1200345, "dollars": 18.005175}],
    "by_gate": {"length": 50, "numbers": 42, "urls": 0},
    "length_ratios": length_histogram([0.5, 0.9, 0.95, 7.0]),
    "seconds": 61.5,
}
SAMPLES = [
    Sample("what is a | pipe?\nA line", "파이프란 무엇인가?", None, "query"),
    Sample("Press <b>OK</b>", "err", "error: 'err' is the text of an error", "positive"),
    Sample("no answer", None, "error: timeout", "negative"),
]


def test_the_report_holds_the_counts_and_the_samples(tmp_path: Path) -> None:
    write_report(tmp_path / "report", SUMMARY, SAMPLES)
    found = json.loads((tmp_path / "report/report.json").read_text("utf-8"))
    assert {key: found[key] for key in SUMMARY} == SUMMARY
    assert found["samples"][1] == {"source": "Press <b>OK</b>", "translation": "err", "kind": "positive",
                                   "reason": "error: 'err' is the text of an error"}  # fmt: skip
    text = (tmp_path / "report/report.md").read_text("utf-8")
    for line in ("| in | 1,000 | 100.00% |", "| rejected | 25 | 2.50% |", "| length | 50 | 1.67% |",
                 "| amazon | 3,000 | 1,200,345 | 18.01 |"):  # fmt: skip
        assert line in text.splitlines()
    assert "urls" not in text
    assert (tmp_path / "report/report.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.json", "report.md", "report.png"]


def test_texts_of_samples_are_no_markup() -> None:
    text = markdown(SUMMARY, SAMPLES)
    accepted, rejected = text.split("## Accepted")[1].split("## Rejected")
    assert "| query | what is a \\| pipe?<br>A line | 파이프란 무엇인가? |" in accepted.splitlines()
    assert "&lt;b&gt;OK&lt;/b&gt;" in rejected
    assert "| negative | error: timeout | no answer | (none) |" in rejected.splitlines()


def test_a_run_of_nothing_has_a_report(tmp_path: Path) -> None:
    nothing: Summary = {
        **SUMMARY, "groups": dict.fromkeys(SUMMARY["groups"], 0), "texts": dict.fromkeys(SUMMARY["texts"], 0),
        "sent": [], "by_gate": {}, "length_ratios": length_histogram([]),
    }  # fmt: skip
    write_report(tmp_path, nothing, [])
    assert "| in | 0 | - |" in (tmp_path / "report.md").read_text("utf-8")


def test_the_histogram_counts_every_ratio_once() -> None:
    ratios = [0.0, 0.05, 0.1, 0.95, 2.95, 3.0, 100.0]
    found = length_histogram(ratios)
    assert sum(found["counts"]) == len(ratios)
    assert (found["counts"][0], found["counts"][1], found["counts"][-1]) == (2, 1, 3)
    assert len(found["edges"]) == len(found["counts"]) + 1


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: found a file"):
        write_report(tmp_path / "file", SUMMARY, SAMPLES)
