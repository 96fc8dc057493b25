"""An exported directory scores alike in every library that users load rerankers with, and says what it is."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from reranker import Reranker, cli
from reranker.config.common import FirstStageConfig, LabelLoss, LongPassages, Precision, TeacherLoss
from reranker.config.models import EvaluateConfig
from reranker.config.training import DataConfig, LossConfig, TrainConfig
from reranker.data.collate import pack_pairs
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.report import evaluate_command
from reranker.export.huggingface import export_run, export_weights
from reranker.export.model_card import CardFacts, model_card
from reranker.model.cross_encoder import score_pairs
from reranker.train import checkpoint
from reranker.train.fragments import MASTER, Fragment
from tests.plain import plain_scores
from tests.tiny import tiny_model

SHORT = [
    ("파이썬에서 리스트를 정렬하는 방법은?", "list.sort()는 리스트를 제자리에서 정렬한다."),
    ("파이썬에서 리스트를 정렬하는 방법은?", "튜플은 바꿀 수 없다."),
    ("What is a tuple?", "A tuple is an immutable sequence."),
]
LONG_PASSAGE = [("정렬하는 방법은?", "리스트를 정렬하는 방법은 여러 가지가 있다. " * 12)]
LONG_QUERY = [("리스트를 정렬하는 방법은 무엇인가? " * 12, "sort() 함수가 있다. " * 12)]
CONTRACT = Contract(max_length=96)
ONLY_SECOND = Contract(max_length=96, truncation="only_second")


def plain_card(text: str = "") -> Callable[..., str]:
    """A model card of fixed text, whatever the weights."""
    return lambda *facts: text


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory as a run keeps it: config and tokenizer. The decoder is XLM-R's: FlagEmbedding decodes
    and encodes a text again, which a tokenizer without one does not survive."""
    from tokenizers import decoders

    directory = tiny_model(tmp_path_factory.mktemp("base"), seed=1)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.save_pretrained(directory)
    (directory / "model.safetensors").unlink()
    return directory


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Trained weights: not those that the base directory's seed would draw."""
    directory = tiny_model(tmp_path_factory.mktemp("trained"), seed=2)
    return dict(AutoModelForSequenceClassification.from_pretrained(directory).state_dict())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, base: Path, weights: dict[str, torch.Tensor]) -> Path:
    output = tmp_path_factory.mktemp("exports") / "model"
    export_weights(weights, base, output, CONTRACT, plain_card("# card\n"))
    return output


@pytest.fixture(scope="module")
def only_second(tmp_path_factory: pytest.TempPathFactory, base: Path, weights: dict[str, torch.Tensor]) -> Path:
    output = tmp_path_factory.mktemp("exports") / "only_second"
    export_weights(weights, base, output, ONLY_SECOND, plain_card("# card\n"))
    return output


def our_scores(directory: Path, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Our own forward, the contract read from the exported config alone."""
    config = AutoConfig.from_pretrained(directory)
    encoder = PairTokenizer(AutoTokenizer.from_pretrained(directory), Contract.of_model(config))
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    encoded = [encoder.encode(query, [passage])[0] for query, passage in pairs]
    with torch.no_grad():
        return score_pairs(model, pack_pairs(encoded, encoder.pad_id)).float()


def flag_scores(directory: Path, pairs: list[tuple[str, str]], max_length: int) -> torch.Tensor:
    from FlagEmbedding import FlagReranker  # seconds: not for whoever collects the tests

    reranker = FlagReranker(str(directory), use_fp16=False, devices="cpu", max_length=max_length)
    return torch.tensor(reranker.compute_score(pairs))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_transformers_scores_as_we_do_also_where_pairs_are_cut(exported: Path) -> None:
    pairs = SHORT + LONG_PASSAGE + LONG_QUERY
    close(plain_scores(exported, pairs), our_scores(exported, pairs))
    assert our_scores(exported, pairs).std() > 1e-3, "a model that scores everything alike proves nothing"


def test_cross_encoder_answers_with_raw_scores_without_any_setting(exported: Path) -> None:
    from sentence_transformers import CrossEncoder

    pairs = SHORT + LONG_PASSAGE + LONG_QUERY
    found = CrossEncoder(str(exported), device="cpu").predict(pairs, convert_to_tensor=True)
    close(found, our_scores(exported, pairs))


def test_cross_encoder_cuts_a_long_passage_of_a_short_query_as_only_second_does(only_second: Path) -> None:
    """It knows `longest_first` alone: the same where the passage is the longer text, and told in the card where not."""
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(only_second), device="cpu")
    close(encoder.predict(SHORT + LONG_PASSAGE, convert_to_tensor=True), our_scores(only_second, SHORT + LONG_PASSAGE))
    assert encoder.predict(LONG_QUERY)[0] != pytest.approx(our_scores(only_second, LONG_QUERY).item(), abs=1e-4)


@pytest.mark.parametrize("dtype", [Precision.fp32, Precision.fp16, Precision.bf16])
@pytest.mark.parametrize("fault", ["head", "limit", "nan", "tokenizer"])
def test_a_directory_that_does_not_score_as_its_weights_is_not_left(
    fault: str, dtype: Precision, tmp_path: Path, base: Path, weights: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What was just written is spoilt behind the writer's back."""
    from reranker.export import huggingface

    whole = huggingface.save

    def faulty(model: Any, tokenizer: Any, staging: Path) -> None:
        whole(model, tokenizer, staging)
        if fault in ("head", "nan"):
            saved = load_file(staging / "model.safetensors")
            saved["classifier.out_proj.bias"] += float("nan") if fault == "nan" else 0.01
            save_file(saved, staging / "model.safetensors", metadata={"format": "pt"})
        elif fault == "limit":
            config = json.loads((staging / "config.json").read_text())
            config["reranker"]["max_length"] = 64
            (staging / "config.json").write_text(json.dumps(config))
        else:
            content = (staging / "tokenizer.json").read_text("utf-8")
            (staging / "tokenizer.json").write_text(content.replace('"NFD"', '"NFC"'), encoding="utf-8")

    export_weights(weights, base, tmp_path / "good", CONTRACT, plain_card(), dtype)
    monkeypatch.setattr(huggingface, "save", faulty)
    with pytest.raises(UserError, match=r"a saved model whose scores are|scores that are not finite"):
        export_weights(weights, base, tmp_path / "bad", CONTRACT, plain_card(), dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_flag_reranker_scores_as_we_do_where_nothing_is_cut(exported: Path) -> None:
    close(flag_scores(exported, SHORT, CONTRACT.max_length), our_scores(exported, SHORT))


def test_flag_reranker_cuts_as_only_second_does(only_second: Path, exported: Path) -> None:
    """FlagReranker keeps three quarters of max_length of the query, then cuts the passage: so does `only_second`.

    Settings: the same max_length; no query_max_length on either side. The other contract cuts otherwise.
    """
    pairs = LONG_PASSAGE + LONG_QUERY
    found = flag_scores(only_second, pairs, ONLY_SECOND.max_length)
    close(found, our_scores(only_second, pairs))
    assert (our_scores(exported, LONG_QUERY) - found[1:]).abs() > 1e-4


PREFIXES = {"query_prefix": "물음: ", "passage_prefix": 'passage|"글": '}


def prefixed(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(PREFIXES["query_prefix"] + query, PREFIXES["passage_prefix"] + passage) for query, passage in pairs]


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory, base: Path, weights: dict[str, torch.Tensor]) -> Path:
    """An export of a model with prefixes, cut as CrossEncoder cuts."""
    output = tmp_path_factory.mktemp("exports") / "instructed"
    export_weights(weights, base, output, replace(CONTRACT, **PREFIXES), plain_card("# card\n"))
    return output


def test_an_exported_contract_scores_as_texts_that_are_made_by_hand(
    instructed: Path, exported: Path, tmp_path: Path, base: Path, weights: dict[str, torch.Tensor]
) -> None:
    pairs = SHORT + LONG_PASSAGE + LONG_QUERY
    loaded = Reranker(instructed, device="cpu")
    assert loaded.contract == replace(CONTRACT, **PREFIXES)
    found = torch.from_numpy(loaded.score_pairs(pairs))
    close(found, torch.from_numpy(Reranker(exported, device="cpu").score_pairs(prefixed(pairs))))
    assert (found - torch.from_numpy(Reranker(exported, device="cpu").score_pairs(pairs))).abs().max() > 1e-3
    # With lengths of their own as well: what is cut by hand, token by token, has the same score.
    capped = Contract(96, 20, "longest_first", 30, **PREFIXES)
    export_weights(weights, base, tmp_path / "capped", capped, plain_card("# card\n"))
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    expected = []
    for query, passage in prefixed(pairs):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (query, passage)]
        with torch.no_grad():
            pair = torch.tensor([[0, *ids[0][:20], 2, 2, *ids[1][:30], 2]])
            expected.append(model(input_ids=pair).logits[0, 0])
    close(torch.from_numpy(Reranker(tmp_path / "capped", device="cpu").score_pairs(pairs)), torch.stack(expected))


def test_cross_encoder_puts_the_querys_prefix_by_itself_and_is_given_the_passages(
    instructed: Path, exported: Path
) -> None:
    from sentence_transformers import CrossEncoder

    pairs = SHORT + LONG_PASSAGE + LONG_QUERY
    encoder = CrossEncoder(str(instructed), device="cpu")
    given = [(query, PREFIXES["passage_prefix"] + passage) for query, passage in pairs]
    found = encoder.predict(given, convert_to_tensor=True)
    close(found, torch.from_numpy(Reranker(instructed, device="cpu").score_pairs(pairs)))
    assert encoder.max_seq_length == 96
    more = {path.name for path in instructed.iterdir()} - {path.name for path in exported.iterdir()}
    assert more == {"modules.json", "config_sentence_transformers.json"}


def test_flag_reranker_scores_prefixes_alike_where_it_is_told_of_them(
    tmp_path: Path, base: Path, weights: dict[str, torch.Tensor]
) -> None:
    from FlagEmbedding import FlagReranker

    export_weights(weights, base, tmp_path / "model", replace(ONLY_SECOND, **PREFIXES), plain_card("# card\n"))
    pairs = SHORT + LONG_PASSAGE + LONG_QUERY
    reranker = FlagReranker(
        str(tmp_path / "model"), use_fp16=False, devices="cpu", max_length=96,
        query_instruction_for_rerank=PREFIXES["query_prefix"],
        passage_instruction_for_rerank=PREFIXES["passage_prefix"],
    )  # fmt: skip
    found = torch.tensor(reranker.compute_score(pairs))
    close(found, torch.from_numpy(Reranker(tmp_path / "model", device="cpu").score_pairs(pairs)))


def test_the_config_carries_contract_and_the_dropout_of_the_base(only_second: Path, base: Path) -> None:
    config = json.loads((only_second / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["XLMRobertaForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config["reranker"] == {
        "max_length": 96, "query_max_length": None, "truncation": "only_second", "passage_max_length": None,
        "query_prefix": "", "passage_prefix": "", "pair": ["query", "passage"], "score": "logit",
    }  # fmt: skip
    # What TEI needs of a reranker (router/src/lib.rs), and where it and vLLM find the limit of a pair.
    assert config["label2id"] == {"LABEL_0": 0}
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    limit = json.loads((only_second / "sentence_bert_config.json").read_text("utf-8"))
    assert limit == {"max_seq_length": 96, "do_lower_case": False}
    assert config["dtype"] == "float32"
    assert config["hidden_dropout_prob"] == AutoConfig.from_pretrained(base).hidden_dropout_prob > 0
    tokenizer = json.loads((only_second / "tokenizer_config.json").read_text("utf-8"))
    assert tokenizer["model_max_length"] == 96
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast", "transformers 4 knows no TokenizersBackend"
    assert len({path.stat().st_mode for path in only_second.iterdir()}) == 1, "whoever reads one file reads them all"
    assert not {"is_local", "local_files_only", "name_or_path"} & set(tokenizer)


@pytest.mark.parametrize(("dtype", "expected"), [(Precision.fp16, torch.float16), (Precision.bf16, torch.bfloat16)])
def test_weights_are_stored_in_the_asked_type(
    dtype: Precision, expected: torch.dtype, tmp_path: Path, base: Path, weights: dict[str, torch.Tensor]
) -> None:
    export_weights(weights, base, tmp_path / "model", CONTRACT, plain_card(), dtype)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert model.dtype == expected
    torch.testing.assert_close(model.float().state_dict()["classifier.out_proj.weight"],
                               weights["classifier.out_proj.weight"].to(expected).float(), rtol=0, atol=0)  # fmt: skip


def test_weights_that_do_not_fit_are_refused_and_nothing_is_written(
    tmp_path: Path, base: Path, weights: dict[str, torch.Tensor]
) -> None:
    head = "classifier.out_proj.weight"
    without = {name: tensor for name, tensor in weights.items() if name != head}
    with pytest.raises(UserError, match=f"no {head}"):
        export_weights(without, base, tmp_path / "model", CONTRACT, plain_card())
    with pytest.raises(UserError, match="an unknown lora"):
        export_weights({**weights, "lora": torch.zeros(1)}, base, tmp_path / "model", CONTRACT, plain_card())
    with pytest.raises(UserError, match=r"of shape \(2, 32\) instead of \(1, 32\)"):
        export_weights({**weights, head: torch.zeros(2, 32)}, base, tmp_path / "model", CONTRACT, plain_card())
    with pytest.raises(UserError, match="dtype=bf16"):
        export_weights(
            {**weights, head: weights[head] + 1e6}, base, tmp_path / "model", CONTRACT, plain_card(), Precision.fp16
        )
    with pytest.raises(UserError, match="not finite"):
        export_weights({**weights, head: weights[head] / 0}, base, tmp_path / "model", CONTRACT, plain_card())
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_and_a_run_directory_never_is(
    tmp_path: Path, base: Path, weights: dict[str, torch.Tensor]
) -> None:
    output = tmp_path / "model"
    export_weights(weights, base, output, CONTRACT, plain_card("first\n"))
    export_weights(weights, base, output, CONTRACT, plain_card("second\n"))
    assert (output / "README.md").read_text() == "second\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"run_dir": "run"}')
    with pytest.raises(UserError, match="holds something else"):
        export_weights(weights, base, run, CONTRACT, plain_card())
    assert (run / "config.json").is_file()


def test_a_run_is_exported_with_what_it_knows_of_itself(
    tmp_path: Path, base: Path, weights: dict[str, torch.Tensor], exported: Path
) -> None:
    run = make_run(tmp_path / "run", base, weights)
    output = export_run(run)
    assert output == run / "model"
    close(plain_scores(output, SHORT), plain_scores(exported, SHORT))
    card = (output / "README.md").read_text("utf-8")
    assert "| learning rate | 5e-06 |" in card
    assert "| dev MRR | 0.8125 |" in card
    assert "| steps of this checkpoint | 120 |" in card
    assert "| precision | bf16 (autocast) |" in card, "what the run used, not the `auto` that was asked for"
    assert "This card has no evaluation of exactly these weights" in card
    last = export_run(run, "last", tmp_path / "last")
    assert (plain_scores(last, SHORT) - plain_scores(output, SHORT)).abs().max() > 1e-3
    with pytest.raises(UserError, match="fp32, fp16 or bf16"):
        export_run(run, dtype=Precision.auto)


def test_the_card_tells_what_the_best_checkpoint_was_chosen_by_and_of_another_that_nothing_chose_it(
    base: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Of what the training did: the settings are those of the last start, which may have had nothing left to train."""
    run = make_run(tmp_path / "run", base, weights, metric="faq/mrr")
    settings = json.loads((run / "config.json").read_text("utf-8"))
    settings["train"]["metric"] = "old/mrr"
    (run / "config.json").write_text(json.dumps(settings), "utf-8")
    sentence = "The checkpoint was chosen by its MRR on the evaluation set faq"
    for which, chosen in (("best", True), ("step-00000120", True), ("last", False), ("step-00000240", False)):
        card = (export_run(run, which, tmp_path / which) / "README.md").read_text("utf-8")
        assert (sentence in card, "was chosen by" in card) == (chosen, chosen), which
        assert "| dev MRR | 0.8125 |\n| MRR on faq | 0.7500 |\n" in card
        assert "on old" not in card
    last = make_run(tmp_path / "dev", base, weights)
    assert "was chosen by its figures on the dev groups" in (export_run(last) / "README.md").read_text("utf-8")
    assert "was chosen" not in (export_run(last, "last") / "README.md").read_text("utf-8")


@pytest.fixture
def evaluated(tmp_path: Path, base: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A run as the demo has it behind its fifth step: trained, exported, and the exported model evaluated."""
    return evaluate_run(tmp_path, base, weights)


def evaluate_run(tmp_path: Path, base: Path, weights: dict[str, torch.Tensor], **settings: Any) -> Path:
    run = make_run(tmp_path / "run", base, weights)
    export_run(run)
    corpus = [{"id": str(number), "text": f"{'정렬 ' * number}방법 {number}"} for number in range(6)]
    queries = [{"qid": row["id"], "query": row["text"], "pos": row["id"]} for row in corpus]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    evaluate_command(EvaluateConfig(
        model=str(run / "model"), corpus=str(tmp_path / "corpus.jsonl"), queries=str(tmp_path / "queries.jsonl"),
        output=str(run / "report"), first_stage=FirstStageConfig(analyzer="words"), resamples=100, max_length=64,
        **settings,
    ))  # fmt: skip
    return run


def performance(directory: Path) -> str:
    """That section of the card."""
    return (directory / "README.md").read_text("utf-8").split("## Performance\n")[1].split("\n## ")[0]


def test_an_evaluated_model_is_exported_again_with_its_table(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = evaluated / "model", json.loads((evaluated / "report" / "table.json").read_text())
    before = (model / "model.safetensors").read_bytes()
    assert "This card has no evaluation" in performance(model)
    capsys.readouterr()
    for report in (None, evaluated / "report" / "table.json"):
        export_run(evaluated, report=report)
        assert (model / "model.safetensors").read_bytes() == before
        assert [row["system"] for row in rows] == ["without-reranker", "fine-tuned", "fused"]
        for row in rows:
            cells = [f"{row[metric]['value']:.3f} [{row[metric]['low']:.3f}, {row[metric]['high']:.3f}]"
                     for metric in ("has_right_in_contexts", "mrr", "ndcg@10")]  # fmt: skip
            assert f"\n| {row['system']} | {' | '.join(cells)} |\n" in performance(model)
        assert "\n6 queries. Scored in fp32 (cpu), at most 64 tokens a pair. In brackets:" in performance(model)
        assert "no evaluation" not in performance(model)
    assert capsys.readouterr() == ("", "")


def test_the_card_tells_of_the_other_systems_and_of_windows_and_not_where_models_lie(
    tmp_path: Path, base: Path, weights: dict[str, torch.Tensor]
) -> None:
    other = make_run(tmp_path / "other", base, weights)
    export_run(other)
    run = evaluate_run(tmp_path, base, weights, metrics=["mrr@10"], long=LongPassages.windows, window_best=2, window_overlap=8,
                       systems={"twin": {"kind": "reranker", "model": str(other / "model")}})  # fmt: skip
    export_run(run)
    told = performance(run / "model")
    assert "\n| system | MRR@10 |\n" in told
    assert "the mean of its best 2 windows counts (overlap: 8 tokens)" in told
    assert "\n- twin: model, fp32 (cpu), at most 64 tokens a pair\n" in told
    assert str(tmp_path) not in told


def test_a_table_of_other_weights_is_left_out_of_the_card_and_refused_where_it_was_asked_for(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = evaluated / "report" / "table.json"
    said = (f"{table}: found a table of other weights ({evaluated}/model as it was evaluated), expected one of exactly "
            "the exported weights; evaluate the exported model again, then export again")  # fmt: skip
    for number, other in enumerate(({"checkpoint": "last"}, {"dtype": Precision.fp16})):
        capsys.readouterr()
        output = export_run(evaluated, output=tmp_path / f"out{number}", **other)  # type: ignore[arg-type]
        assert capsys.readouterr().err == f"no table in the model card: {said}\n"
        assert "This card has no evaluation of exactly these weights" in performance(output)
        assert "fine-tuned" not in performance(output)
        with pytest.raises(UserError) as caught:
            export_run(evaluated, output=tmp_path / "refused", report=table, **other)  # type: ignore[arg-type]
        assert str(caught.value) == said
        assert not [path for path in tmp_path.iterdir() if "refused" in path.name]
    assert "reranker export run=RUN dtype=fp16" in performance(tmp_path / "out1")


def test_a_table_without_its_details_or_changed_by_hand_is_not_taken(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, details = evaluated / "report" / "table.json", evaluated / "report" / "details.json"

    def said() -> str:
        capsys.readouterr()
        assert "fine-tuned" not in performance(export_run(evaluated))
        with pytest.raises(UserError) as caught:
            export_run(evaluated, report=table)
        line = capsys.readouterr().err
        assert line == f"no table in the model card: {caught.value}\n"
        return str(caught.value)

    rows = json.loads(table.read_text())
    rows[1]["mrr"]["value"] = 0.999
    table.write_text(json.dumps(rows))
    assert said().startswith(f"{table}: found another table than the one of {details}, expected")
    details.write_text('{"inputs": {}}')
    assert said().startswith(f"{details}: found another form of JSON, expected")
    details.unlink()
    assert said().startswith(f"{details}: found no such file, expected")
    with pytest.raises(UserError, match=r"none\.json: found no such file"):
        export_run(evaluated, report=tmp_path / "none.json")


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: found no such file"):
        export_run(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    with pytest.raises(UserError, match="no settings of a training"):
        export_run(tmp_path)


def test_a_missing_package_of_onnx_is_named_before_the_run_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert cli.main(["export", f"run={tmp_path / 'nowhere'}", "onnx=true"]) == 2
    assert capsys.readouterr() == ("", (
        "reranker: error: onnx: found no onnx, onnxscript, onnxruntime, expected the packages that write and run ONNX; "
        "pip install 'ko-reranker[export]'\n"
    ))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_front_matter_names_base_and_license_only_where_they_are_known() -> None:
    known = CardFacts("ko", "BAAI/bge-reranker-large", True, CONTRACT, "fp32", license="mit")
    header = yaml.safe_load(model_card(known).split("---")[1])
    assert header["base_model"] == ["BAAI/bge-reranker-large"]
    assert header["license"] == "mit"
    assert header["pipeline_tag"] == "text-ranking"
    local = yaml.safe_load(model_card(CardFacts("ko", "base", False, CONTRACT, "fp32")).split("---")[1])
    assert "base_model" not in local
    assert "license" not in local


def test_the_recipe_is_not_called_its_own_without_the_difference() -> None:
    settings = {"recipe": "ko_reranker", "batch": {"groups": 32, "per_gpu": 1}}
    card = model_card(CardFacts("ko", "base", False, CONTRACT, "fp32", settings=settings, world=4))
    assert "128 groups a step on 4 GPUs; here it is 32" in card
    assert "| gradient accumulation | 8 |" in card


@pytest.mark.parametrize(
    ("data", "sentences"),
    [
        ({"group_size": 2}, "The loss sees 2 passages of each at a time, 1 positive and 1 negative."),
        ({"group_size": 3, "short_groups": "repeat"},
         "The loss sees 3 passages of each at a time, 1 positive and 2 negative. "
         "A group with fewer negatives repeats them."),
        ({"group_size": 3, "short_groups": "error"},
         "The loss sees 3 passages of each at a time, 1 positive and 2 negative."),
        ({"group_size": 5, "short_groups": "shrink", "negatives": {"random": 0.5}},
         "The loss sees at most 5 passages of each at a time, 1 positive and at most 4 negative. "
         "A group with fewer negatives stays smaller. "
         "Random passages of other groups make up 2 of the at most 4 negatives."),
        ({"group_size": 5, "short_groups": "error", "negatives": {"warmup": 0.25, "random": 0.25, "hardest": 10}},
         "The loss sees 5 passages of each at a time, 1 positive and 4 negative. "
         "In the first 25% of the training all negatives are random passages of other groups, afterwards 1 of the 4. "
         "Of a group's own negatives only the first 10 are used."),
        ({"group_size": 5, "short_groups": "error", "negatives": {"warmup": 0.1, "random": 0.1}},
         "The loss sees 5 passages of each at a time, 1 positive and 4 negative. "
         "In the first 10% of the training all negatives are random passages of other groups, afterwards none of the 4."),
        ({"group_size": 5, "short_groups": "error", "negatives": {"warmup": 0.1, "decay": 0.5}},
         "The loss sees 5 passages of each at a time, 1 positive and 4 negative. In the first 10% of the training all "
         "negatives are random passages of other groups, over 50% of it they become fewer, then none of the 4."),
        ({"group_size": 5, "short_groups": "error", "negatives": {"decay": 1.0, "score_temperature": 0.5}},
         "The loss sees 5 passages of each at a time, 1 positive and 4 negative. At the start of the training all "
         "negatives are random passages of other groups, over 100% of it they become fewer, then none of the 4. "
         "Own negatives are drawn in proportion to exp(score / 0.5)."),
        ({"group_size": 5, "positives": 2, "short_groups": "error"},
         "The loss sees 5 passages of each at a time, up to 2 positive and at least 3 negative. Where a group has fewer "
         "positives, negatives take their places."),
        ({"group_size": 3, "positives": 2, "negatives": {"random": 0.6}},
         "The loss sees 3 passages of each at a time, up to 2 positive and at least 1 negative. Where a group has fewer "
         "positives, negatives take their places. A group with fewer negatives repeats them. Random passages of other "
         "groups make up 60% of the negatives."),
        ({"group_size": 5, "short_groups": "error", "negatives": {"random": 1.0}},
         "The loss sees 5 passages of each at a time, 1 positive and 4 negative. "
         "All negatives are random passages of other groups."),
    ],
)  # fmt: skip
def test_the_card_says_which_passages_the_loss_saw(data: dict[str, Any], sentences: str) -> None:
    written = model_card(CardFacts("ko", "base", False, CONTRACT, "fp32", settings={"data": data}))
    assert f" with its positive and negative passages. {sentences}\n\n## Performance" in written


def test_the_card_says_what_was_minimised() -> None:
    def loss(**settings: Any) -> str:
        written = model_card(CardFacts("ko", "base", False, CONTRACT, "fp32", settings={"loss": settings}))
        (found,) = re.findall(r"^\| loss \| (.*) \|$", written, re.MULTILINE)
        return str(found)

    listwise = "cross-entropy over the scores of each group, the positive being the target"
    assert loss(labels=1.0) == loss(**asdict(LossConfig()) | {"by_label": "listwise", "by_teacher": "kl"}) == listwise
    assert loss(labels=0.5, distillation=1.0, temperature=0.02) == (
        f"0.5 x {listwise} + divergence from the softmax of a teacher's scores, the teacher's scores divided by 0.02"
    )
    assert loss(by_label="multi_positive", score_temperature=0.05, more={"ranknet": 0.5}) == (
        "cross-entropy of each positive of a group among itself and the negatives, the scores divided by 0.05 + "
        "0.5 x RankNet over the pairs of a positive and a negative, the scores divided by 0.05"
    )
    assert loss(labels=0.0, distillation=2.0, by_teacher="margin_mse") == (
        "2 x mean squared difference from a teacher's margins"
    )
    for name in (*LabelLoss.__members__, *TeacherLoss.__members__):
        assert loss(labels=0.0, more={name: 1.0})


def test_the_training_table_names_what_is_not_the_default() -> None:
    def table(**settings: Any) -> list[str]:
        written = model_card(CardFacts("ko", "base", False, CONTRACT, "fp32", settings=settings))
        return written.split("## Training")[1].splitlines()

    usual = asdict(TrainConfig(data=DataConfig(shards="shards")))
    plain = table(model=usual["model"], data=usual["data"] | {"short_groups": "repeat"})
    negatives = {"warmup": 0.25, "decay": 0.5, "random": 0.5, "hardest": 30, "score_temperature": 0.1}
    added = table(model=usual["model"] | {"gradient_checkpointing": True},
                  data=usual["data"] | {"positives": 2, "short_groups": "shrink", "negatives": negatives})  # fmt: skip
    assert [line for line in added if line not in plain] == [
        "| groups with too few negatives | shrink |",
        "| positives at once | up to 2 |",
        "| random negatives only | the first 0.25 of the training |",
        "| random negatives become fewer | over 0.5 of the training |",
        "| random negatives | 0.5 of a group's |",
        "| own negatives | the first 30 of a group |",
        "| own negatives drawn | by their scores / 0.1 |",
        "| gradient checkpointing | yes |",
    ]
    assert set(plain) < set(added)


def test_unknown_facts_leave_no_trace_in_the_card() -> None:
    card = model_card(CardFacts("ko", "base", False, CONTRACT, "fp32"))
    assert "None" not in card
    for absent in ("learning rate", "dev ", "steps of this", "versions", "accumulation", "seed", "recipe", "negatives",
                   "checkpointing"):  # fmt: skip
        assert absent not in card.split("## Training")[1]


def scores_of_its_python(card: str, capsys: pytest.CaptureFixture[str]) -> tuple[torch.Tensor, dict[str, Any]]:
    """(what each of a card's four libraries says of its two passages, the names that its code has set)."""
    blocks = [part.split("```")[0] for part in card.split("```python")[1:]]
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = [re.findall(r"-?\d+\.\d+", line)[:2] for line in capsys.readouterr().out.splitlines() if "[" in line]
    assert len(blocks) == len(printed) == 4
    return torch.tensor([[float(number) for number in line] for line in printed]), names


@pytest.mark.parametrize("language", ["ko", None])
def test_the_python_of_the_card_runs_against_the_export(
    language: str | None, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of every language that the card is in."""
    facts = CardFacts(str(exported), "base", False, CONTRACT, "fp32", settings={"language": language})
    cards = model_card(facts).split("\n# English\n")
    assert len(cards) == (2 if language else 1)
    for card in cards:
        scores, _ = scores_of_its_python(card, capsys)
        torch.testing.assert_close(scores, scores[:1].expand(4, 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("truncation", ["longest_first", "only_second"])
def test_the_python_of_the_card_of_a_model_with_short_queries_scores_as_we_do(
    truncation: str, tmp_path: Path, base: Path, weights: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    contract = Contract(96, 40, truncation)
    export_weights(weights, base, tmp_path / "model", contract, plain_card("# card\n"))
    card = model_card(CardFacts(str(tmp_path / "model"), "base", False, contract, "fp32"))
    assert "max_length=96, query_max_length=40)" in card
    scores, names = scores_of_its_python(card, capsys)
    ours = Reranker(tmp_path / "model", device="cpu").score(names["query"], names["passages"])
    torch.testing.assert_close(scores, torch.tensor([ours]).expand(4, 2), rtol=0, atol=1e-4)


def test_what_the_card_says_to_pass_does_what_it_says(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = model_card(CardFacts(str(exported), "base", False, CONTRACT, "fp32"))
    activation, long = (re.findall(rf"`({name}=.+?)`", card) for name in ("activation_fn", "long"))
    assert len(activation) == len(long) == 1
    _, names = scores_of_its_python(card, capsys)
    names["pairs"] = pairs = SHORT + LONG_PASSAGE
    found = eval(f"model.predict(pairs, {activation[0]}, convert_to_tensor=True)", names)
    close(found, torch.sigmoid(our_scores(exported, pairs)))
    # Passages that differ where they are cut off, which windows see.
    query, start = LONG_PASSAGE[0]
    passages = [start + f"{word} " * 12 for word in ("tuple", "sort()", "함수", "?", "게제")]
    cut, whole = (eval(f"Reranker(path{more})", names).score(query, passages) for more in ("", f", {long[0]}"))
    assert max(cut) - min(cut) < 1e-5
    assert max(whole) > cut[0] + 1e-3
    assert all(score > cut[0] - 1e-5 for score in whole)


def test_the_python_of_the_card_of_a_model_with_prefixes_scores_as_we_do(
    instructed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = replace(CONTRACT, **PREFIXES)
    card = model_card(CardFacts(str(instructed), "base", False, contract, "fp32"))
    scores, names = scores_of_its_python(card, capsys)
    ours = Reranker(instructed, device="cpu").score(names["query"], names["passages"])
    torch.testing.assert_close(scores, torch.tensor([ours]).expand(4, 2), rtol=0, atol=1e-4)
    text = " ".join(card.split())
    assert 'before every query stands `"물음: "` and before every passage stands `"passage|\\"글\\": "`' in text
    assert "`CrossEncoder` has no setting for the passage's" in text
    assert '| query_prefix | `"물음: "` |' in card
    assert '| passage_prefix | `"passage\\|\\"글\\": "` |' in card


def test_the_card_says_what_other_libraries_cannot_do() -> None:
    def said(**contract: Any) -> str:
        return " ".join(model_card(CardFacts("ko", "base", False, Contract(96, **contract), "fp32")).split())

    bare, capped = said(), said(passage_max_length=50)
    assert "prefix" not in bare
    assert "instruction" not in bare
    assert "Before that a passage is cut to 50 tokens. No library below but `reranker` has such a limit" in capped
    assert "| passage_max_length | 50 |" in capped
    assert "cut to 50" not in bare
    query, passage = said(query_prefix="q: "), said(passage_prefix="p: ")
    assert "as its default prompt" in query
    assert "no setting for the passage's" not in query
    assert "as its default prompt" not in passage
    assert "send query and passages with them" in query
    assert "send query and passages with them" in passage
    assert "compute_score([(query, passage) for passage in passages])" in query
    assert 'model.predict([(query, "p: " + passage) for passage in passages])' in passage


class OneRank:
    """What a checkpoint asks of the ranks, for one process without a process group."""

    rank, world, first = 0, 1, True

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None: ...

    def together(self, work: Callable[[], Any]) -> Any:
        return work()


def make_run(run: Path, base: Path, weights: dict[str, torch.Tensor], metric: str = "mrr") -> Path:
    """A run directory as training leaves it; the best of its two checkpoints, by `metric`, is the first."""
    settings = asdict(TrainConfig(run_dir=str(run), name="tiny", data=DataConfig(shards=str(run / "shards"))))
    settings["model"]["name"] = str(base)
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(settings, default=lambda member: member.name))
    shutil.copytree(base, run / "initial")
    state = {"best": {"checkpoint": checkpoint.name_of(120), "metric": metric},
             "metrics": {"eval/mrr": 0.8125, "eval/faq/mrr": 0.75, "eval/old/mrr": 0.25},
             "precision": "bf16", "autocast": True}  # fmt: skip
    for step, scale in ((120, 1.0), (240, 0.5)):
        fragments = [Fragment(name, MASTER, tuple(tensor.shape), 0, tensor.flatten() * scale)
                     for name, tensor in weights.items()]  # fmt: skip
        checkpoint.save(run, step, fragments, state, OneRank(), checkpoint.Retention(2))  # type: ignore[arg-type]
    return run
