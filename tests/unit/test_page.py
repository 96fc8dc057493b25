"""report.html: one file that needs no network, holds every query once, and shows texts as texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reranker.config.models import EvaluateConfig
from reranker.evaluate import page as page_module
from reranker.evaluate.page import RANKS, page
from reranker.evaluate.report import evaluate_command

HOSTILE = '</script><script>alert("1")</script><img src=x onerror=alert(2)> & \u2028 "<!--'


class Document(HTMLParser):
    """The elements of a page, and what stands in its tables and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.scripts: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._inside.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, text: str) -> None:
        if "script" in self._inside:
            self.scripts[-1] += text
        elif "td" in self._inside or "th" in self._inside:
            self.cells[-1] += text

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


Inputs = Callable[..., EvaluateConfig]


def saved(directory: Path) -> tuple[Any, Any, list[Any], list[Any]]:
    """What a report directory holds: rows, details, queries, passages."""
    rows, details = (json.loads((directory / name).read_text("utf-8")) for name in ("table.json", "details.json"))
    queries, passages = (
        [json.loads(line) for line in (directory / name).read_text("utf-8").splitlines()]
        for name in ("queries.jsonl", "passages.jsonl")
    )
    return rows, details, queries, passages


@pytest.fixture
def report(inputs: Inputs, tmp_path: Path) -> Path:
    assert evaluate_command(inputs()) == 0
    return tmp_path / "report"


def test_the_page_has_the_numbers_of_the_table_and_every_query_once(report: Path) -> None:
    rows, details, queries, passages = saved(report)
    found = Document((report / "report.html").read_text("utf-8"))
    for row in rows:
        for metric in details["settings"]["metrics"]:
            value, low, high = (f"{row[metric][key]:.3f}" for key in ("value", "low", "high"))
            assert any(cell.split() == [value, f"[{low},", f"{high}]"] for cell in found.cells), (row["system"], metric)
    for row in details["differences"]:
        assert f"{row['system']} minus {row['minus']}" in found.cells
    data = found.data
    assert [one["qid"] for one in data["queries"]] == [line["qid"] for line in queries]
    for one, line in zip(data["queries"], queries, strict=True):
        assert dict(zip(data["systems"], one["ranks"], strict=True)) == line["ranks"]
        for system, values in zip(data["systems"], one["values"], strict=True):
            expected = [line["metrics"][system][metric] for metric in data["metrics"]]
            assert values == pytest.approx(expected, abs=1e-4)
        assert one["opened"]["candidates"] == line["candidates"]
        assert dict(zip(data["systems"], one["opened"]["order"], strict=True)) == line["order"]
    assert {json.loads(key)[1]: text for key, text in data["texts"].items()} == {
        passage["id"]: passage["text"] for passage in passages
    }


def test_the_page_needs_no_network(report: Path) -> None:
    text = (report / "report.html").read_text("utf-8")
    found = Document(text)
    assert not {tag for tag, _ in found.elements} & {"link", "img", "iframe", "object", "embed"}
    assert not [attributes for _, attributes in found.elements if {"src", "href"} & attributes.keys()]
    assert "url(" not in text
    assert "@import" not in text


def test_a_text_is_a_text_whatever_it_holds(report: Path) -> None:
    rows, details, queries, passages = saved(report)
    queries[0]["query"] = HOSTILE
    passages[0]["text"] = HOSTILE
    details["inputs"] = {HOSTILE: {"name": HOSTILE, "sha256": "0" * 64}}
    text = page(rows, details, queries, passages, HOSTILE)
    found = Document(text)
    assert len(found.scripts) == 2
    assert not [tag for tag, _ in found.elements if tag == "img"]
    assert found.data["queries"][0]["query"] == HOSTILE
    assert HOSTILE in found.data["texts"].values()
    assert "\u2028" not in found.scripts[0]
    assert "<!--" not in found.scripts[0]


def test_of_a_large_set_the_passages_are_there_on_which_systems_differ_most(
    report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, details, queries, passages = saved(report)
    monkeypatch.setattr(page_module, "SHOWN", 3)
    text = page(rows, details, queries, passages, "model")
    data = Document(text).data
    assert "Of the 3 on which systems differ most" in text
    assert len(data["queries"]) == len(queries)

    def apart(line: dict[str, Any]) -> float:
        return max(
            max(of[metric] for of in line["metrics"].values()) - min(of[metric] for of in line["metrics"].values())
            for metric in data["metrics"]
        )

    opened = [number for number, one in enumerate(data["queries"]) if one["opened"]]
    assert len(opened) == 3
    others = [apart(line) for number, line in enumerate(queries) if number not in opened]
    assert min(apart(queries[number]) for number in opened) >= max(others)
    wanted = {name for number in opened for name in (*queries[number]["candidates"], *queries[number]["judged"])}
    assert {json.loads(key)[1] for key in data["texts"]} == wanted < {passage["id"] for passage in passages}


def test_how_it_was_made_names_every_input(report: Path) -> None:
    inputs = saved(report)[1]["inputs"]
    assert inputs.keys() == {"corpus", "queries", "model", "base"}
    text = (report / "report.html").read_text("utf-8")
    for role, entry in inputs.items():
        assert f"<dt>{role}</dt><dd>{entry['name']} <small>sha256 {entry['sha256'][:16]}" in text


def test_of_a_query_the_first_passages_of_each_system_are_there_and_the_right_ones_with_their_ranks(
    report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, details, queries, passages = saved(report)
    assert "Of each system the first" not in (report / "report.html").read_text("utf-8")
    monkeypatch.setattr(page_module, "FIRST", 2)
    text = page(rows, details, queries, passages, "model")
    assert "Of each system the first 2 passages are shown, and the right ones." in text
    data = Document(text).data
    for one, line in zip(data["queries"], queries, strict=True):
        candidates = one["opened"]["candidates"]
        for number, system in enumerate(data["systems"]):
            ranked = [line["candidates"][place] for place in line["order"][system]]
            shown = {
                rank: candidates[place]
                for rank, place in zip(one["opened"]["at"][number], one["opened"]["order"][number], strict=True)
            }
            assert shown == {
                rank: name for rank, name in enumerate(ranked, 1) if rank <= 2 or line["judged"].get(name, 0) > 0
            }
            if scores := one["opened"]["scores"][number]:
                every = dict(zip(line["candidates"], line["scores"][system], strict=True))
                assert scores == pytest.approx([every[name] for name in candidates], abs=1e-4)


def test_the_page_keeps_to_its_bytes_whatever_the_set_holds(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, details, queries, passages = saved(report)
    shell = len(page(rows, details, queries[:1], passages, "model").encode())
    many = [{**line, "qid": f"{line['qid']}-{copy}"} for copy in range(30) for line in queries]
    long = [{**passage, "text": passage["text"] + "<가" * 5_000} for passage in passages]
    monkeypatch.setattr(page_module, "BUDGET", 200_000)
    text = page(rows, details, many, long, "model")
    data = Document(text).data
    assert len(text.encode()) < 200_000 + shell
    opened = [one for one in data["queries"] if one["opened"]]
    assert 0 < len(opened) < len(data["queries"]) < len(many)
    assert f"{len(many):,} queries." in text
    assert f"Listed are the {len(data['queries']):,} on which systems differ most." in text
    assert f"Of the {len(opened):,} on which systems differ most the passages are here." in text
    assert "Texts are cut after 1,000 characters." in text
    assert data["texts"]
    assert all(len(one) == 1_002 for one in data["texts"].values())
    for one in opened:  # whole, or not at all
        assert all(json.dumps([one["set"], name], ensure_ascii=False, separators=(",", ":")) in data["texts"]
                   for name in one["opened"]["candidates"])  # fmt: skip


def test_where_right_passages_stand_adds_up_to_all_queries(report: Path) -> None:
    rows, details, queries, passages = saved(report)
    queries[0]["ranks"]["base"], queries[1]["ranks"]["base"] = None, 11
    found = Document(page(rows, details, queries, passages, "model"))
    labels = [
        attributes["aria-label"] or "" for tag, attributes in found.elements if attributes.get("class") == "stack"
    ]
    assert len(labels) == len(rows)
    for label in labels:
        names, shares = zip(*(part.rsplit(": ", 1) for part in label.split(", ")), strict=True)
        assert names == RANKS
        assert sum(float(share.removesuffix("%")) for share in shares) == pytest.approx(100, abs=0.1)
    of_base = labels[[row["system"] for row in rows].index("base")]
    each = 100 / len(queries)
    assert f"not found: {each:.2f}".rstrip("0") in of_base
    assert f"below 10: {each:.2f}".rstrip("0") in of_base


def test_the_page_of_the_same_results_is_the_same(report: Path) -> None:
    assert page(*saved(report), "model") == page(*saved(report), "model")
