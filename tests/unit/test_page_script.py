"""What report.html does when it is read, run in V8: sorting, filtering, comparing two systems, opening a query."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from py_mini_racer import MiniRacer

from reranker.cli import main
from reranker.config.models import EvaluateConfig
from reranker.evaluate.page import SCRIPTS, page
from reranker.evaluate.report import evaluate_command
from tests.unit.test_page import HOSTILE, Document, saved

PURE, OF_DOCUMENT = ((files("reranker.evaluate") / name).read_text("utf-8") for name in SCRIPTS)
DOCUMENT = (Path(__file__).parent / "document.js").read_text("utf-8")
CHOICE = {"words": "", "set": 0, "metric": 0, "first": 0, "second": 1, "sort": "difference", "down": True}


class Script:
    """The functions of page_queries.js; values go in and come out as JSON."""

    def __init__(self) -> None:
        self._engine = MiniRacer()
        self._engine.eval(PURE)

    def __call__(self, expression: str, **names: Any) -> Any:
        given = "".join(f"const {name} = {json.dumps(value)};" for name, value in names.items())
        return json.loads(str(self._engine.eval(f"(() => {{ {given} return JSON.stringify({expression}); }})()")))


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


def invented() -> dict[str, Any]:
    """What the page holds of 80 queries of two sets: three systems, the last of which has ranked one set alone."""
    draw = random.Random(3)

    def query(number: int) -> dict[str, Any]:
        name = draw.choice(["documents", "wiki"])
        ranked = [True, True, name == "wiki"]
        return {
            "set": name, "qid": str(number), "query": " ".join(draw.choices(["Save", "a", "table", "표", "saved"], k=3)),
            "ranks": [draw.choice([1, 2, 10, None]) if one else None for one in ranked],
            "values": [[draw.choice([0.0, 0.25, 1.0]), draw.choice([0.5, 0.25])] if one else None for one in ranked],
            "opened": None,
        }  # fmt: skip

    queries = [query(number) for number in range(80)]
    systems, metrics = ["base", "fine-tuned", "other"], ["mrr", "ndcg@10"]
    return {"systems": systems, "metrics": metrics, "titles": metrics, "queries": queries, "texts": {}}


def difference(one: dict[str, Any], metric: int, first: int, second: int) -> float | None:
    a, b = one["values"][first], one["values"][second]
    return None if a is None or b is None else a[metric] - b[metric]


COLUMNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "query": lambda one: one["query"],
    "rank0": lambda one: one["ranks"][0],
    "rank1": lambda one: one["ranks"][1],
    "rank2": lambda one: one["ranks"][2],
    "difference": lambda one: difference(one, 0, 2, 1),
}


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("sort", COLUMNS)
def test_a_column_sorts_with_what_has_no_value_last_and_equal_ones_as_they_were(
    sort: str, down: bool, script: Script
) -> None:
    data, key = invented(), COLUMNS[sort]
    choice = CHOICE | {"sort": sort, "down": down, "first": 2, "second": 1}
    found = script("chosenOf(data, choice)", data=data, choice=choice)
    known = [one for one in data["queries"] if key(one) is not None]
    unknown = [one for one in data["queries"] if key(one) is None]
    assert [one["qid"] for one in found] == [one["qid"] for one in sorted(known, key=key, reverse=down) + unknown]
    assert (len(unknown) > 0) == (sort != "query")
    assert [one[0] for one in script("columnsOf(data, choice)", data=data, choice=choice)] == list(COLUMNS)


def test_a_click_on_a_heading_turns_its_column_or_begins_another_at_its_usual_end(script: Script) -> None:
    def clicked(choice: dict[str, Any], name: str) -> tuple[str, bool]:
        found = script("sortedBy(choice, name)", choice=choice, name=name)
        assert {key: found[key] for key in CHOICE if key not in ("sort", "down")} == {
            key: value for key, value in CHOICE.items() if key not in ("sort", "down")
        }
        return found["sort"], found["down"]

    assert clicked(CHOICE, "difference") == ("difference", False)
    assert clicked(CHOICE | {"down": False}, "difference") == ("difference", True)
    assert clicked(CHOICE, "rank1") == ("rank1", False)
    assert clicked(CHOICE | {"sort": "rank1", "down": False}, "rank1") == ("rank1", True)
    assert clicked(CHOICE | {"sort": "rank1", "down": False}, "difference") == ("difference", True)


@pytest.mark.parametrize("words", ["", "  ", "save", "SAVED table", "표  a", "nowhere"])
def test_a_query_is_found_by_all_of_its_words_and_its_set(words: str, script: Script) -> None:
    data = invented()
    sets = list(dict.fromkeys(one["set"] for one in data["queries"]))
    assert script("setsOf(data)", data=data) == sets
    for number, name in enumerate([None, *sets]):
        choice = CHOICE | {"words": words, "set": number, "sort": "rank0"}
        found = script("chosenOf(data, choice)", data=data, choice=choice)
        expected = {
            one["qid"] for one in data["queries"]
            if name in (None, one["set"]) and all(word in one["query"].lower() for word in words.lower().split())
        }  # fmt: skip
        assert {one["qid"] for one in found} == expected
        assert len(found) == len(expected)


def test_two_systems_are_compared_on_the_queries_that_both_have(script: Script) -> None:
    data = invented()
    for metric, first, second in itertools.product(range(2), range(3), range(3)):
        choice = CHOICE | {"metric": metric, "first": first, "second": second}
        found = script("data.queries.map((one) => differenceOf(one, choice))", data=data, choice=choice)
        expected = [difference(one, metric, first, second) for one in data["queries"]]
        assert found == expected
        both = [one for one in expected if one is not None]
        tally = script("tallyOf(data.queries, choice)", data=data, choice=choice)
        assert tally == {
            "queries": 80, "won": sum(one > 0 for one in both), "lost": sum(one < 0 for one in both),
            "tied": sum(one == 0 for one in both),
        }  # fmt: skip
        assert (len(both) < 80) == (2 in (first, second))
    tally = {"queries": 12345, "won": 1, "lost": 2, "tied": 3}
    assert script("toldOf(tally)", tally=tally) == "12,345 queries: 1 won, 2 lost, 3 tied"


def test_the_cells_of_a_query_are_its_ranks_and_its_difference(script: Script) -> None:
    def cells(ranks: list[int | None], values: list[list[float] | None]) -> list[list[str]]:
        one = {"query": "표", "ranks": ranks, "values": values}
        found: list[list[str]] = script("cellsOf(one, choice)", one=one, choice=CHOICE)
        assert found[0] == ["표", "text"]
        return found[1:]

    assert cells([1, 4], [[1.0], [0.25]]) == [["1", "number"], ["4", "number"], ["+0.750", "number better"]]
    assert cells([None, 1], [[0.0], [1.0]]) == [["–", "number"], ["1", "number"], ["-1.000", "number worse"]]
    assert cells([2, 2], [[0.5], [0.5]]) == [["2", "number"], ["2", "number"], ["0.000", "number "]]
    assert cells([3, None], [[0.5], None]) == [["3", "number"], ["", "number"], ["", "number "]]


Inputs = Callable[..., EvaluateConfig]


@pytest.fixture
def report(inputs: Inputs, tmp_path: Path) -> Path:
    assert evaluate_command(inputs()) == 0
    return tmp_path / "report"


def test_won_lost_and_tied_are_those_of_evaluate_compare(
    report: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Document((report / "report.html").read_text("utf-8")).data
    systems = data["systems"]
    for number, metric in enumerate(data["metrics"]):
        for first, second in itertools.pairwise(systems):
            choice = CHOICE | {"metric": number, "first": systems.index(first), "second": systems.index(second)}
            tally = script("tallyOf(data.queries, choice)", data=data, choice=choice)
            capsys.readouterr()
            sides = [f"{report}:{first}", f"{report}:{second}", f"metric={metric}", "resamples=100", "permutations=100"]
            assert main(["evaluate", "compare", *sides]) == 0
            # As many as there are, or both would count none of them.
            assert tally["won"] + tally["lost"] > 0
            line = f"{tally['queries']} queries: {tally['won']} won by A, {tally['tied']} tied, {tally['lost']} lost"
            assert line in capsys.readouterr().out
    assert len(systems) == 4


def test_a_difference_is_one_however_small(report: Path, script: Script) -> None:
    rows, details, queries, passages = saved(report)
    for line in queries:
        for value, system in zip((0.50003, 0.50001), ("base", "fine-tuned"), strict=True):
            line["metrics"][system]["mrr"] = value
    data = Document(page(rows, details, queries, passages, "model")).data
    systems = data["systems"]
    choice = CHOICE | {
        "metric": data["metrics"].index("mrr"), "first": systems.index("base"), "second": systems.index("fine-tuned"),
    }  # fmt: skip
    assert script("tallyOf(data.queries, choice)", data=data, choice=choice)["won"] == len(queries)


def test_an_opened_query_shows_what_each_system_ranked_and_what_none_had_before_it(
    report: Path, script: Script
) -> None:
    rows, details, queries, passages = saved(report)
    queries[0]["judged"]["lost-1"] = 1
    passages.append({"set": queries[0]["set"], "id": "lost-1", "text": HOSTILE})
    data = Document(page(rows, details, queries, passages, "model")).data
    texts = {(one["set"], one["id"]): one["text"] for one in passages}
    for one, line in zip(data["queries"], queries, strict=True):
        lists = script("listsOf(data, one)", data=data, one=one)
        missed = [lists.pop()] if line is queries[0] else []
        assert [found["heading"] for found in lists] == data["systems"] == list(line["order"])
        for found in lists:
            ranked = [line["candidates"][place] for place in line["order"][found["heading"]]]
            shown = found["passages"]
            assert [one["text"] for one in shown] == [texts[line["set"], name] for name in ranked]
            assert [one["right"] for one in shown] == [line["judged"].get(name, 0) > 0 for name in ranked]
            assert [one["rank"] for one in shown] == list(range(1, len(ranked) + 1))
            scores = line["scores"].get(found["heading"])
            every = dict(zip(line["candidates"], scores, strict=True)) if scores else dict.fromkeys(ranked)
            for passage, name in zip(shown, ranked, strict=True):
                assert passage["score"] == (None if every[name] is None else pytest.approx(every[name], abs=1e-4))
        for found in missed:
            assert found["heading"] == "right, and not among the candidates"
            assert found["passages"] == [{"text": HOSTILE, "right": True, "rank": None, "score": None}]
    assert script("listsOf(data, one)", data=data, one=data["queries"][0] | {"opened": None}) is None


def test_the_page_does_what_its_reader_chooses(report: Path) -> None:
    """The other half of the script, with as much of a document as it asks for."""
    text = (report / "report.html").read_text("utf-8")
    data, queries = Document(text).data, saved(report)[2]
    engine = MiniRacer()
    engine.eval(DOCUMENT)
    engine.eval(f"const document = documentOf({json.dumps(json.dumps(data))});")
    engine.eval(Document(text).scripts[1])  # as the page has it

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(str(engine.eval(
            "JSON.stringify({ rows: byId('queries').tBodies[0].children.map((row) => row.className === 'query' ?"
            " row.children.map((cell) => cell.textContent) : row.className), told: byId('told').textContent,"
            " heads: byId('queries').tHead.rows[0].all('button').map((one) => one.textContent),"
            " chosen: ['first', 'second'].map((id) => data.systems[byId(id).value]), more: !byId('more').hidden })"
        )))  # fmt: skip
        return found

    first = shown()
    assert first["chosen"] == ["fine-tuned", "base"]
    assert first["heads"] == ["query", *data["systems"], "difference ↓"]
    assert len(first["rows"]) == len(queries) == 32
    assert not first["more"]
    differences = [float(row[-1]) for row in first["rows"]]
    assert differences == sorted(differences, reverse=True)
    engine.eval("byId('queries').tHead.rows[0].all('button')[0].happens('click')")
    assert [row[0] for row in shown()["rows"]] == sorted(line["query"] for line in queries)
    assert shown()["heads"][0] == "query ↑"
    word = queries[0]["query"].split()[0]
    engine.eval(f"byId('words').value = {json.dumps(word)}; byId('words').happens('input')")
    found = [line["query"] for line in queries if word in line["query"]]
    assert [row[0] for row in shown()["rows"]] == sorted(found)
    assert shown()["told"].startswith(f"{len(found)} queries: ")
    assert len(found) < len(queries)
    engine.eval("byId('second').value = byId('first').value; byId('second').happens('input')")
    assert shown()["told"] == f"{len(found)} queries: 0 won, 0 lost, {len(found)} tied"
    row = "byId('queries').tBodies[0].children[0]"
    engine.eval(f"{row}.happens('keydown', {{ key: 'Enter' }})")
    assert shown()["rows"][1] == "opened"
    line = next(one for one in queries if one["query"] == sorted(found)[0])
    opened = json.loads(str(engine.eval(
        "JSON.stringify(byId('queries').tBodies[0].children[1].all('ol').map((list) => list.children.map((item) =>"
        " [item.value, item.className])))"
    )))  # fmt: skip
    assert opened == [
        [[rank, "right" if line["judged"].get(line["candidates"][place], 0) > 0 else ""]
         for rank, place in enumerate(order, 1)]
        for order in line["order"].values()
    ]  # fmt: skip
    engine.eval(f"{row}.happens('click')")
    assert "opened" not in shown()["rows"]


def test_a_long_list_is_shown_in_parts(report: Path) -> None:
    rows, details, queries, passages = saved(report)
    many = [{**line, "qid": f"{line['qid']}-{copy}"} for copy in range(10) for line in queries]
    data = Document(page(rows, details, many, passages, "model")).data
    engine = MiniRacer()
    engine.eval(DOCUMENT)
    engine.eval(f"const document = documentOf({json.dumps(json.dumps(data))});")
    engine.eval(PURE + OF_DOCUMENT)
    counts = []
    for _ in range(3):
        counts.append(engine.eval("byId('queries').tBodies[0].children.length"))
        engine.eval("byId('more').happens('click')")
    assert counts == [50, 250, 320]
    assert engine.eval("byId('more').hidden")


def test_the_script_is_part_of_the_page_and_does_not_end_it(report: Path) -> None:
    scripts = Document((report / "report.html").read_text("utf-8")).scripts
    assert scripts[1].strip() == (PURE + OF_DOCUMENT).strip()
    assert "</" not in PURE + OF_DOCUMENT
