"""An evaluation on real ranks: no query is dropped or doubled, and the report is that of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cohere_server import KEY, reranking
from tests.distributed.conftest import WORDS
from tests.distributed.ranks import Finished, run
from tests.tiny import tiny_model

QUERIES = 23
"""Divides by no number of ranks."""
FILES = ("table.json", "queries.jsonl", "passages.jsonl", "scores/docs.fine-tuned.json", "scores/groups.base.json")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and sets of passages and queries that differ in length."""
    directory = tmp_path_factory.mktemp("sets")
    for seed, name in enumerate(("tuned", "base")):
        tiny_model(directory / name, seed=seed)
    texts = {f"p{place}": " ".join(WORDS[place % 20 :] + WORDS[: (7 * place) % 20]) for place in range(40)}
    queries = [
        {"qid": f"q{place}", "query": " ".join(WORDS[place % 20 :][: 1 + place % 5]), "pos": f"p{place}"}
        for place in range(QUERIES)
    ]
    groups = [{"query": query["query"], "pos": [texts[query["pos"]]], "neg": [texts[f"p{place}"] for place in range(30, 33 + index % 4)]}
              for index, query in enumerate(queries)]  # fmt: skip
    for name, records in {
        "corpus": [{"id": name, "text": text} for name, text in texts.items()], "queries": queries, "groups": groups,
    }.items():  # fmt: skip
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    (directory / "sets.yaml").write_text(
        f"docs: {{form: own, corpus: {directory}/corpus.jsonl, queries: {directory}/queries.jsonl}}\ngroups: {directory}/groups.jsonl\n"
    )
    return directory


@pytest.fixture(scope="module")
def third(sets: Path) -> Path:
    """A third model with its file in ONNX, quantised: by the whole of a batch, which must then be that of one rank."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from tokenizers import decoders
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from reranker.export.onnx import FILE, quietly, write_onnx
    from reranker.export.quantize import INT8_FILE

    directory = tiny_model(sets / "third", seed=2)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    # As XLM-R's: FlagEmbedding decodes and encodes a text again.
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.save_pretrained(directory)
    write_onnx(AutoModelForSequenceClassification.from_pretrained(directory).eval(), directory, 64)
    with quietly():
        quantize_dynamic(directory / FILE, directory / INT8_FILE, weight_type=QuantType.QInt8)
    return directory


def evaluate(sets: Path, world: int, output: Path, *more: str) -> list[Finished]:
    return run(world, [
        "evaluate", f"model={sets}/tuned", f"base={sets}/base", f"sets={sets}/sets.yaml", f"output={output}", "depth=9",
        "first_stage.analyzer=words", "resamples=100", "permutations=100", "batch_tokens=512", "device=cpu", *more,
    ])  # fmt: skip


def test_the_report_is_that_of_one_process_on_any_number_of_ranks(sets: Path, tmp_path: Path) -> None:
    for world in (1, 2, 3):
        ranks = evaluate(sets, world, tmp_path / str(world))
        assert [rank.code for rank in ranks] == [0] * world, "\n".join(rank.err for rank in ranks)
        assert all(rank.out == "" for rank in ranks[1:])
        lines = [json.loads(line) for line in (tmp_path / f"{world}/queries.jsonl").read_text("utf-8").splitlines()]
        assert [(line["set"], line["qid"]) for line in lines] == [
            *(("docs", f"q{place}") for place in range(QUERIES)), *(("groups", str(place + 1)) for place in range(QUERIES)),
        ]  # fmt: skip
        for file in FILES:
            assert (tmp_path / str(world) / file).read_bytes() == (tmp_path / "1" / file).read_bytes(), (world, file)
    # A report of another number of ranks is shown, and not made again.
    (first, second) = evaluate(sets, 2, tmp_path / "1")
    assert "inputs unchanged" in first.out
    assert second.out == ""


def test_other_systems_score_alike_on_any_number_of_ranks_and_one_rank_alone_calls(
    sets: Path, third: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CO_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    files = [
        f"scores/{of_set}.{name}.json"
        for of_set in ("docs", "groups")
        for name in ("third", "st", "flag", "int8", "api")
    ]
    texts = [json.loads(line)["query"] for line in (sets / "groups.jsonl").read_text("utf-8").splitlines()]
    with reranking() as service:
        systems = (
            f"systems={{third: {third}, st: {{kind: sentence_transformers, model: {third}, batch_size: 5}}, "
            f"flag: {{kind: flagembedding, model: {third}, batch_size: 3}}, "
            f"int8: {{kind: onnx, model: {third}/onnx/model_quantized.onnx, tokenizer: {third}}}, "
            f"api: {{kind: cohere, model: rerank-v5.0-pro, base_url: '{service.url}'}}}}"
        )
        for world in (1, 2):
            service.calls.clear()
            service.requests.clear()
            ranks = evaluate(sets, world, tmp_path / str(world), systems)
            assert [rank.code for rank in ranks] == [0] * world, "\n".join(rank.err for rank in ranks)
            assert all(rank.out == "" for rank in ranks[1:])
            # Some queries of docs have the text and the candidates of another one: these are asked once.
            asked = {(call["query"], *call["documents"]) for call in service.calls}
            assert len(service.calls) == len(service.requests) == len(asked)
            assert {query for query, *_ in asked} == set(texts)
            for file in (*FILES, *files):
                assert (tmp_path / str(world) / file).read_bytes() == (tmp_path / "1" / file).read_bytes(), (
                    world,
                    file,
                )
    rows = json.loads((tmp_path / "2/table.json").read_text("utf-8"))
    assert [row["system"] for row in rows] == ["base", "fine-tuned", "third", "st", "flag", "int8", "api"]


def test_a_mistake_of_a_system_is_told_once_and_ends_every_rank(sets: Path, third: Path, tmp_path: Path) -> None:
    # No pair can be cut to eight tokens as FlagReranker cuts: it raises on every rank, at its own first batch.
    systems = f"systems={{short: {{kind: flagembedding, model: {third}, max_length: 8}}}}"
    ranks = evaluate(sets, 2, tmp_path / "report", systems)
    assert [rank.code for rank in ranks] == [2, 2], "\n".join(rank.err for rank in ranks)
    assert "".join(rank.err for rank in ranks).count(f"reranker: error: {third}: found pairs that FlagEmbedding") == 1


def test_a_mistake_is_told_once_and_ends_every_rank(sets: Path, tmp_path: Path) -> None:
    ranks = evaluate(sets, 2, tmp_path / "report", f"model={tmp_path}")
    assert [rank.code for rank in ranks] == [2, 2]
    assert "".join(rank.err for rank in ranks).count("reranker: error: model: found") == 1
    assert not (tmp_path / "report").exists()
