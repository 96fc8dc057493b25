"""Guard sets are read in any form of an evaluation, and a model has the same values on them on any number of ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reranker import Reranker
from reranker.config.regression_gate import GateConfig
from reranker.data.collate import PackedPairs
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.crew import Alone
from reranker.evaluate.guard_sets import GuardSets, Values, guard_sets
from reranker.evaluate.measures import measure
from reranker.evaluate.metrics import ranking
from reranker.model.cross_encoder import load_model, load_tokenizer, score_pairs
from tests.tiny import tiny_model
from tests.unit.test_dev import _Ranks

GROUPS = [
    {"query": f"질문 {number}", "pos": [f"옳은 글 {number}"], "neg": [f"다른 글 {number} {other}" for other in range(1 + number % 4)]}
    for number in range(9)
]  # fmt: skip
TEXTS = {f"p{number}": f"문서 {number} " + "가나다 " * (number % 5) for number in range(12)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a file of groups, a set of BEIR with its own first stage, and a set with a run."""
    root = tmp_path_factory.mktemp("guards")
    tiny_model(root / "base", seed=1)
    tiny_model(root / "model", seed=2)
    write(root / "groups.jsonl", GROUPS)
    (root / "beir" / "qrels").mkdir(parents=True)
    write(root / "beir" / "corpus.jsonl", [{"_id": name, "title": "", "text": text} for name, text in TEXTS.items()])
    write(root / "beir" / "queries.jsonl", [{"_id": f"q{number}", "text": f"문서 {number}"} for number in range(4)])
    (root / "beir" / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{number}\tp{number}\t{1 + number % 2}\n" for number in range(4))
    )
    return root


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


def opened(sets: Any, **settings: Any) -> GuardSets:
    found = guard_sets(GateConfig(sets=sets, **settings))
    found.find(Alone(), "cpu")
    return found


def by_hand(model: Path, metric: str) -> list[float]:
    """The metric of each group, with the library's own scores."""
    reranker = Reranker(model, device="cpu")
    values = []
    for group in GROUPS:
        passages = [*group["pos"], *group["neg"]]
        names = [str(number) for number in range(len(passages))]
        ranked = ranking(names, reranker.score(str(group["query"]), passages), ["0"])
        values.append(measure(metric, 5).of(ranked, ["0"]))
    return values


@pytest.mark.parametrize("metric", ["ndcg@10", "mrr", "has_right_in_contexts@1"])
def test_the_values_of_a_model_are_those_of_an_evaluation(place: Path, metric: str) -> None:
    sets = opened({"groups": str(place / "groups.jsonl")}, metric=metric)
    found = sets.values_of(str(place / "base"), "gate.base", Alone(), "cpu")
    assert found == {"groups": by_hand(place / "base", metric)}
    assert 0 < np.mean(found["groups"]) < 1
    assert (sets.names, sets.queries) == (["groups"], len(GROUPS))


def test_sets_come_in_the_forms_of_an_evaluation(place: Path) -> None:
    beir = {"path": str(place / "beir"), "depth": 6, "bm25": {"analyzer": "whitespace"}}
    run = place / "run.txt"
    run.write_text("".join(f"q{q} Q0 p{p} 1 {10 - p} r\n" for q in range(3) for p in range(4)))
    sets = opened(
        {"groups": str(place / "groups.jsonl"), "beir": beir, "run": {**beir, "stage": "run", "run": str(run)}}
    )
    found = sets.values_of(str(place / "model"), "gate.base", Alone(), "cpu")
    assert {name: len(values) for name, values in found.items()} == {"groups": 9, "beir": 4, "run": 4}
    assert found["run"][3] == 0, "a query that the run lacks counts as 0"
    assert all(value > 0 for value in found["run"][:3])
    # The same of a yaml file.
    (place / "sets.yaml").write_text(json.dumps({"groups": str(place / "groups.jsonl"), "beir": beir}))
    again = opened(str(place / "sets.yaml")).values_of(str(place / "model"), "gate.base", Alone(), "cpu")
    assert again == {name: found[name] for name in ("groups", "beir")}


class _Crew:
    """One thread of `_Ranks` as a crew."""

    def __init__(self, ranks: _Ranks, rank: int) -> None:
        self.rank, self.world, self.first = rank, ranks.world, rank == 0
        self._gather = ranks.gather(rank)

    def gather(self, value: Any) -> list[Any]:
        return [of_rank for (of_rank,) in self._gather([value])]

    def together(self, action: Any) -> Any:
        return action()

    def from_first(self, action: Any) -> Any:
        return self.gather(action() if self.first else None)[0]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_every_rank_has_the_same_values_and_calls_the_forward_equally_often(place: Path, world: int) -> None:
    model = load_model(str(place / "model"))[0].eval()
    tokenizer = PairTokenizer(load_tokenizer(str(place / "model")), Contract(64))
    cpu, calls = torch.device("cpu"), [0] * world

    def values(crew: Any, rank: int = 0) -> Values:
        def score(pairs: PackedPairs) -> torch.Tensor:
            calls[rank] += 1
            return score_pairs(model, pairs)

        sets = opened({"one": str(place / "groups.jsonl"), "two": str(place / "groups.jsonl")})
        return sets.values(sets.scorers(tokenizer, 128), score, crew, cpu, False)

    expected = values(Alone())
    calls[:] = [0] * world
    ranks = _Ranks(world)
    assert ranks.run(lambda rank: values(_Crew(ranks, rank), rank)) == [expected] * world
    assert min(calls) == max(calls) > 0


def test_what_the_sets_hold_changes_their_digest(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    digests = []
    for change in ({}, {"query": "다른 질문"}, {"pos": ["다른 글"]}, {"neg": ["또 다른 글"]}):
        write(path, [{**GROUPS[0], **change}, *GROUPS[1:]])
        digests.append(opened({"groups": str(path)}).sha256)
    digests += [opened({"groups": str(path)}, metric="mrr").sha256, opened({"other": str(path)}).sha256]
    assert len(set(digests)) == 6
    write(path, GROUPS)
    assert opened({"groups": str(path)}).sha256 == opened({"groups": str(place / "groups.jsonl")}).sha256 == digests[0]


def test_another_text_on_one_rank_is_told_by_all(place: Path, tmp_path: Path) -> None:
    write(tmp_path / "other.jsonl", [{**GROUPS[0], "pos": ["다른 글"]}, *GROUPS[1:]])
    ranks = _Ranks(2)

    def find(rank: int) -> None:
        path = place / "groups.jsonl" if rank else tmp_path / "other.jsonl"
        guard_sets(GateConfig(sets={"old": str(path)})).find(_Crew(ranks, rank), "cpu")  # type: ignore[arg-type]

    found = ranks.run(find)
    assert [str(error) for error in found] == [
        "gate.sets.old: found other texts on one rank than on another, expected the same files on all nodes; copy them anew"
    ] * 2


def test_a_score_that_is_not_finite_is_no_rank(place: Path) -> None:
    sets = opened({"old": str(place / "groups.jsonl")})
    tokenizer = PairTokenizer(load_tokenizer(str(place / "model")), Contract(64))
    with pytest.raises(UserError, match=r"gate\.sets\.old: found \d+ scores that are not finite"):
        sets.values(sets.scorers(tokenizer), lambda pairs: torch.full((len(pairs),), float("nan")), Alone(),
                    torch.device("cpu"), True)  # fmt: skip


def test_a_base_without_a_trained_head_has_no_ranking_to_lose(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "base", tmp_path / "encoder")
    weights = load_file(tmp_path / "encoder" / "model.safetensors")
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(body, tmp_path / "encoder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        opened({"old": str(place / "groups.jsonl")}).values_of(str(tmp_path / "encoder"), "gate.base", Alone(), "cpu")
    assert str(caught.value) == (
        f"gate.base: found {tmp_path}/encoder, whose score head is freshly drawn: it has no ranking to lose, expected a "
        "trained reranker as the gate's base; say gate.base=..., another reranker, or leave gate.sets out"
    )


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"old": "nowhere.jsonl"}, r"^gate\.sets\.old\.path: found nowhere\.jsonl, which does not exist, expected"),
        ({"old": {"paht": "x"}}, r"^gate\.sets\.old\.paht: found .*; did you mean path\?"),
        ("nowhere.yaml", r"^gate\.sets: found nowhere\.yaml, which cannot be read"),
        ({}, r"^gate\.sets: found \{\}, expected \{name: \{path: \.\.\.\}, \.\.\.\}; name each set"),
        ({"a/b": "x"}, r"^gate\.sets: found a set called 'a/b'"),
        (["old.jsonl"], r"^gate\.sets: found \['old\.jsonl'\]"),
    ],
)
def test_a_mistake_names_the_gates_own_key(sets: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        guard_sets(GateConfig(sets=sets))


def test_a_set_that_is_no_set_is_told_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"query": "q", "pos": "text", "neg": ["n"]}\n')
    with pytest.raises(UserError, match=r'old\.jsonl:1: found "pos" a string'):
        guard_sets(GateConfig(sets={"old": str(tmp_path / "old.jsonl")}))
