"""A model card says the same of the same facts in each of its languages, and its code runs in each."""

from __future__ import annotations

import dataclasses
import json
import re
import string
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from reranker import cli
from reranker.config.common import LabelLoss, Precision, TeacherLoss
from reranker.config.models import ExportConfig
from reranker.config.shards import IndexConfig, PackConfig
from reranker.data.manifest import load_manifest
from reranker.data.tokenize import Contract
from reranker.demo import corpus
from reranker.evaluate.regression_gate import Paired, Rule, Verdict, judge
from reranker.export.card_words import LANGUAGES, Words, texts
from reranker.export.huggingface import _facts
from reranker.export.model_card import CardFacts, model_card
from reranker.export.onnx import Fusion
from reranker.export.origin import Source
from reranker.export.passages import rows, sentences
from reranker.export.performance import Performance
from reranker.export.quantize import Agreement
from reranker.export.usage import usage
from reranker.files import sha256
from reranker.groups import Group, write_groups
from reranker.prepare.foreign import index_command
from reranker.prepare.pack import pack_command

ORIGIN = "Triplets of a shop's own questions, CC0-1.0."
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "card.txt"


def recipe_settings(recipe: str = "ko_reranker", *more: str) -> dict[str, Any]:
    """What a recipe comes to, with more words on the command line."""
    seen: list[Any] = []
    words = [f"recipe={recipe}", "data.shards=shards", *more]
    assert cli.run_command("train", words, lambda config: seen.append(config) or 0) == 0
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(seen[0]), default=lambda member: member.name))
    return settings


def cell(value: float, **more: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, **more}


def verdict(lost: float) -> Verdict:
    """That on a model which loses so much on one of two guard sets."""
    base_Q = [0.5 + 0.01 * query for query in range(20)]
    sets = [Paired("msmarco", base_Q, [value + 0.005 for value in base_Q], range(20)),
            Paired("wiki", base_Q, [value - lost for value in base_Q], range(20))]  # fmt: skip
    return judge(Rule("ndcg@10", 0.01), "BAAI/bge-reranker-large", "at its export, fp16 (cuda)", sets)


def reference(**changed: Any) -> CardFacts:
    """A run of the reference recipe, with every fact that a card can have."""
    settings = recipe_settings()
    settings["data"]["origin"] = ORIGIN
    metrics = ("has_right_in_contexts", "mrr", "ndcg@10")
    systems = {"without-reranker": 0.5, "base": 0.6, "fine-tuned": 0.7, "fused": 0.71}
    found = Performance(
        rows=[{"system": name, "queries": 1167, **{metric: cell(value) for metric in metrics}} for name, value in systems.items()],
        differences=[{"system": "fine-tuned", "minus": "base", **{metric: cell(0.1, p_holm=0.0006) for metric in metrics}}],
        precision="fp16", device="cuda", max_length=256, contexts=5,
        stage={"stage": "BM25 (kiwi, k1=0.9, b=0.4)", "depth": 20, "passages": 4606, "found": 0.85, "contexts": 5},
    )  # fmt: skip
    facts = CardFacts(
        name="ko-reranker", base=settings["model"]["name"], base_on_hub=True, contract=Contract(), dtype="fp16",
        parameters=559_891_457, settings=settings, license="mit", groups=499_184,
        sources={"": Source(499_184, 1.0, "train.jsonl", "0123456789abcdef" * 4)}, fingerprint="c3e468c8e5389036",
        step=46_799, epoch=3.0, groups_seen=1_497_552, world=4, precision="fp16", stage=1, packed=True, device="NVIDIA A100",
        dev={"mrr": 0.8125}, chosen_by="mrr", performance=found, gate=verdict(0.0), versions={"reranker": "0.1.0", "torch": "2.13.0"},
        onnx=Fusion(24), int8=Agreement(pairs=640, largest=0.3, mean=0.05, deviation=2.5, order=0.987, best=0.953, whole=24),
    )  # fmt: skip
    return dataclasses.replace(facts, **changed)


def parts(card: str) -> dict[str, str]:
    """The card of each language."""
    _, korean, english = re.split(r"^# (?:한국어|English)$", card, flags=re.MULTILINE)
    return {"ko": korean, "en": english}


def test_the_card_of_the_reference_recipe_is_the_golden_one() -> None:
    """What a reader sees, as a whole: `GOLDEN.write_text(model_card(reference()))` where it is meant to change."""
    assert model_card(reference()) == GOLDEN.read_text("utf-8")


def test_each_language_has_every_text_with_the_same_facts() -> None:
    def facts(text: str) -> Counter[str | None]:
        return Counter(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)

    english = texts("en")
    for language in LANGUAGES:
        own = texts(language)
        assert list(own) == list(english)
        for name, text in own.items():
            assert isinstance(text, str), name
            assert facts(text) == facts(english[name]), name


def test_every_loss_and_every_metric_of_the_table_has_words() -> None:
    for language in LANGUAGES:
        for name in (*LabelLoss.__members__, *TeacherLoss.__members__):
            assert f"training.losses.{name}" in Words(language)


def test_a_korean_model_has_its_card_in_korean_and_in_english_and_any_other_in_english() -> None:
    korean, english = (parts(model_card(reference()))[language] for language in ("ko", "en"))
    assert len(re.findall("^## ", korean, re.MULTILINE)) == len(re.findall("^## ", english, re.MULTILINE)) == 7
    korean, english = korean.replace(f"\n{ORIGIN}\n", ""), english.replace(f"\n{ORIGIN}\n", "")  # the user's own
    prose = re.sub(r"```.*?```|`[^`]*`|\(http[^)]*\)|^\|.*$", "", korean, flags=re.DOTALL | re.MULTILINE)
    for line in prose.splitlines():
        assert not line or re.search("[가-힣]", line) or line.startswith(("###", "**passed**")), line
    assert not re.search("[가-힣]", re.sub(r"```.*?```", "", english, flags=re.DOTALL))
    for language in (None, "fr"):
        other = model_card(reference(settings={**recipe_settings(), "language": language}))
        assert "# English" not in other
        assert other.count("```python") * 2 == (korean + english).count("```python")
        assert not re.search("[가-힣]", re.sub(r"```.*?```", "", other, flags=re.DOTALL))


def test_both_languages_tell_the_same_numbers() -> None:
    variants = [reference(), reference(performance=None, int8=None), reference(contract=Contract(96, 20)),
                reference(contract=Contract(96, None, "only_second"), packed=False, license=None),
                reference(sources={"a": Source(7, 1.0), "b": Source(9, 2.5, "b.jsonl", "ab" * 32)}),
                reference(sources={"": Source(7, 1.0, tars=True)}), reference(sources={})]  # fmt: skip
    for facts in variants:
        korean, english = parts(model_card(facts)).values()
        assert numbers(korean) == numbers(english)


def numbers(text: str) -> Counter[str]:
    for figure in ("4분의 3", "1차 검색", "1위 문단"):  # words in English: three quarters, the first stage, the best
        text = text.replace(figure, "")
    return Counter(re.findall(r"\d[\d,.]*\d|\d", text))


@pytest.mark.parametrize("short", ["repeat", "shrink", "error"])
@pytest.mark.parametrize("positives", [1, 2])
@pytest.mark.parametrize(
    "negatives",
    [{}, {"random": 0.5}, {"random": 1.0}, {"warmup": 0.25}, {"warmup": 0.25, "random": 0.25, "hardest": 10},
     {"warmup": 0.1, "decay": 0.5}, {"decay": 1.0, "score_temperature": 0.5, "random": 0.4}],
)  # fmt: skip
def test_both_languages_tell_the_same_of_the_passages(negatives: dict[str, Any], positives: int, short: str) -> None:
    data = {"group_size": 5, "positives": positives, "short_groups": short, "negatives": negatives}
    korean, english = (sentences(data, Words(language)) for language in ("ko", "en"))
    for own, other in zip(korean, english, strict=True):
        assert numbers(own) == numbers(other), own
    assert [name for name, _ in rows(data, Words("ko"))] == [name for name, _ in rows(data, Words("en"))]


def test_the_gate_is_told_where_one_was_run_before_anything_else() -> None:
    failed = "| wiki | 20 | 0.5950 | 0.4950 | -0.1000 [-0.1000, -0.1000] |"
    for language, card in parts(model_card(reference(gate=verdict(0.1)))).items():
        say = Words(language)
        told = card.split(f"## {say('gate.title')}\n")[1].split("\n## ")[0]
        assert f"**{say('gate.failed').capitalize()}.**" in told
        assert f"| {say('gate.passed')} |" in told
        assert next(line for line in told.splitlines() if line.startswith(failed)).endswith(
            f"**{say('gate.failed')}** |"
        )
        assert card.index(say("gate.title")) < card.index(f"## {say('usage.title')}")
    assert f"**{Words('en')('gate.passed').capitalize()}.**" in model_card(reference())
    assert "Regression gate" not in model_card(reference(gate=None))


def test_the_table_has_the_metrics_of_the_evaluation_and_tells_how_each_system_scored() -> None:
    found = Performance(
        rows=[{"system": name, "queries": 9, "recall@100": cell(0.5), "mrr@10": cell(0.25)} for name in ("fine-tuned", "bge")],
        differences=[{"system": "fine-tuned", "minus": "bge", "recall@100": cell(0.0, p_holm=1.0), "mrr@10": cell(0.0, p_holm=1.0)}],
        precision="fp32", device="cpu", metrics=["recall@100", "mrr@10"], windows={"best": 3, "overlap": 64},
        systems={"bge": "BAAI/bge-reranker-large by FlagEmbedding 1.4.2, at most 512 tokens a pair"},
    )  # fmt: skip
    for language, card in parts(model_card(reference(performance=found))).items():
        say = Words(language)
        told = card.split(f"## {say('performance.title')}\n")[1].split("\n## ")[0]
        assert f"| {say('performance.system')} | Recall@100 | MRR@10 |" in told
        assert f"| {say('performance.difference')} | Recall@100 | MRR@10 |" in told
        assert "| bge | 0.500 [0.490, 0.510] | 0.250 [0.240, 0.260] |" in told
        assert say("performance.windows.several", best=3, overlap=64) in told
        assert "\n- bge: BAAI/bge-reranker-large by FlagEmbedding 1.4.2, at most 512 tokens a pair\n" in told
    one = dataclasses.replace(found, windows={"best": 1, "overlap": 64})
    assert Words("en")("performance.windows.one", overlap=64) in model_card(reference(performance=one))


def test_the_command_that_exports_again_makes_the_same_files_of_the_same_weights() -> None:
    def again(**changed: Any) -> str:
        facts = CardFacts("ko", "base", False, Contract(), "fp32")
        (command,) = re.findall(
            r"^reranker export (.*)$", model_card(dataclasses.replace(facts, **changed)), re.MULTILINE
        )
        return str(command)

    quantised = {"onnx": Fusion(24), "int8": reference().int8}
    assert again() == again(gate=verdict(0.0)) == "run=RUN"
    assert again(checkpoint="last", dtype="fp16", **quantised, gate=verdict(0.1)) == (
        "run=RUN checkpoint=last dtype=fp16 onnx=true int8=dev.jsonl gate.action=mark"
    )
    for least, told in ((None, ""), (ExportConfig.int8_agreement, ""), (0.9, " int8_agreement=0.9")):
        assert again(**quantised, int8_agreement=least) == f"run=RUN onnx=true int8=dev.jsonl{told}"
    assert again(onnx=Fusion(24), int8_agreement=0.9) == "run=RUN onnx=true"


def test_the_environment_is_told_as_far_as_it_is_known() -> None:
    card = parts(model_card(reference()))["en"].split("## Environment")[1]
    assert "| device | NVIDIA A100 |\n| GPUs or processes | 4 |\n| precision | fp16 |\n| ZeRO stage | 1 |" in card
    assert "## Environment" not in model_card(CardFacts("ko", "base", False, Contract(), "fp32"))


def test_the_limits_are_those_of_this_model() -> None:
    def limits(**changed: Any) -> str:
        return parts(model_card(reference(**changed)))["en"].split("## Limits")[1]

    assert "What a pair has beyond 512 tokens is not read." in limits()
    assert "trained for Korean" in limits()
    assert "was not measured.\n- The checkpoint was chosen" in limits(performance=None)
    assert "No license is stated" not in limits()
    assert "No license is stated" in limits(license=None)
    assert "dev groups" not in limits(chosen_by=None)


def test_a_set_that_chose_the_checkpoint_is_named_with_its_figures() -> None:
    metrics = {
        "eval/mrr": 0.5,
        "eval/faq/mrr": 0.75,
        "eval/faq/ndcg@10": 0.625,
        "eval/wiki/mrr": 0.25,
        "gate/passed": 1.0,
    }

    def cards(metric: str) -> dict[str, str]:
        facts = _facts(recipe_settings(), {"metrics": metrics}, metric, Contract(), Precision.fp32, 7)
        return parts(model_card(dataclasses.replace(facts, chosen_by=metric)))

    card = cards("faq/ndcg@10")
    assert "| dev MRR | 0.5000 |\n| MRR on faq | 0.7500 |\n| nDCG@10 on faq | 0.6250 |\n" in card["en"]
    assert "chosen by its nDCG@10 on the evaluation set faq, which flatters it" in card["en"]
    assert "dev groups, which" not in card["en"]
    assert "| faq의 nDCG@10 | 0.6250 |" in card["ko"]
    assert "평가 세트 faq의 nDCG@10 값을 보고" in card["ko"]
    # One that is only looked at has chosen nothing, and says nothing of the checkpoint.
    card = cards("mrr")
    assert "| dev MRR | 0.5000 |" in card["en"]
    assert "faq" not in card["en"] + card["ko"]
    assert "chosen by its figures on the dev groups" in card["en"]


def of_state(state: dict[str, Any]) -> dict[str, str]:
    """The card of each language of a checkpoint with this state."""
    return parts(model_card(_facts(recipe_settings(), state, None, Contract(), Precision.fp32, 7)))


def described(source: Any, groups: int = 400, weight: float = 1.0) -> dict[str, Any]:
    """One source, as a training describes it in its checkpoints."""
    return {"groups": groups, "shards": 1, "weight": weight, "from": source}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with groups, their shards and an index of those shards."""
    root = tmp_path_factory.mktemp("made")
    write_groups(root / "train.jsonl", [Group(f"q{number}", ("p",), ("n",)) for number in range(5)])
    assert pack_command(PackConfig(groups=str(root / "train.jsonl"), output=str(root / "shards"))) == 0
    assert index_command(IndexConfig(shards=str(root / "shards"), output=str(root / "index"))) == 0
    return root


def test_the_file_that_the_groups_come_from_is_told_by_its_name_and_sha256(made: Path) -> None:
    digest = sha256(made / "train.jsonl")
    source = load_manifest(made / "shards").source
    cards = of_state({"description": {"data.shards": described(source)}})
    assert f" They come from `train.jsonl` with the sha256 `{digest[:16]}…`. " in cards["en"]
    assert f" 출처는 sha256이 `{digest[:16]}…`인 `train.jsonl` 파일입니다. " in cards["ko"]
    own = described(load_manifest(made / "index").source, 30, 2.5)
    cards = of_state({"description": {"data.shards": {"msmarco": described(source), "own": own, "old": described({})}}})
    assert "The training data are 830 groups" in cards["en"]
    assert (f"They come from msmarco (400 groups of `train.jsonl` with the sha256 `{digest[:16]}…`, weight 1), "
            "own (30 groups of indexed tar files, weight 2.5), old (400 groups, weight 1).") in cards["en"]  # fmt: skip
    assert (f"출처는 msmarco(sha256이 `{digest[:16]}…`인 `train.jsonl` 파일의 그룹 400개, 가중치 1), "
            "own(색인한 tar 파일의 그룹 30개, 가중치 2.5), old(그룹 400개, 가중치 1)입니다.") in cards["ko"]  # fmt: skip


def test_an_index_is_told_without_the_sha256_of_its_locations(made: Path) -> None:
    source = load_manifest(made / "index").source
    card = of_state({"description": {"data.shards": described(source)}})["en"]
    assert " They come from indexed tar files. " in card
    assert source["sha256"][:8] not in card


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"name": "train.jsonl"}, " They come from `train.jsonl`. "),
        ({"name": "train.jsonl", "sha256": 7}, " They come from `train.jsonl`. "),
        ({"name": "/home/someone/train.jsonl", "sha256": "</p>"}, " They come from `train.jsonl`. "),
        ({"name": "C:\\someone\\`my`\n\nfile.jsonl"}, " They come from `'my' file.jsonl`. "),
        ({"name": ""}, None), ({"name": ["a"]}, None), ({}, None), ("train.jsonl", None), (None, None),
    ],
)  # fmt: skip
def test_a_manifest_of_others_can_neither_break_the_card_nor_name_a_directory(source: Any, told: str | None) -> None:
    card = of_state({"description": {"data.shards": described(source)}})["en"]
    assert "someone" not in card
    assert "</p>" not in card
    assert "The training data are 400 groups" in card
    assert told is None or told in card
    assert ("They come from" in card) == (told is not None)


def test_a_checkpoint_of_a_version_that_described_nothing_has_a_card_without_an_origin() -> None:
    for state in ({}, {"description": {}}, {"description": {"tokenizer": {}}}):
        card = of_state({**state, "cursor": {"fingerprint": "abc"}})["en"]
        assert "## Data\n\nThe training data are groups: a query with" in card
        assert "The fingerprint of the shards is `abc`." in card
        assert "They come from" not in card


def test_what_the_user_says_of_the_origin_stands_before_all_of_the_data_in_each_language() -> None:
    for language, card in parts(model_card(reference())).items():
        assert f"\n## {Words(language)('data.title')}\n\n{ORIGIN}\n\n" in card
    settings = recipe_settings()
    for nothing in (None, "", " \n"):
        settings["data"]["origin"] = nothing
        assert "\n## Data\n\nThe training data are" in model_card(reference(settings=settings))


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ("[MS MARCO](https://microsoft.github.io/msmarco/), *translated*; a < b", None),
        ("Two\nlines,\r\n\r\nin a config of before  ", "Two lines, in a config of before"),
        ("# Data of ours", "\\# Data of ours"),
        ("```", "\\```"),
        ("~~~sh", "\\~~~sh"),
        ("ours <!-- of the </details> <b>", "ours \\<!-- of the \\</details> \\<b>"),
        ("    four blanks", "four blanks"),
    ],
)
def test_no_origin_breaks_the_card_around_it(origin: str, told: str | None) -> None:
    settings = recipe_settings()
    settings["data"]["origin"] = origin
    plain = model_card(reference())
    assert model_card(reference(settings=settings)) == plain.replace(ORIGIN, told or origin)


def test_the_demo_says_where_its_groups_come_from() -> None:
    """As the shell makes the word, and Hydra reads it."""
    script = (Path(__file__).parents[2] / "launch" / "demo.sh").read_text("utf-8")
    (line,) = re.findall(r'^origin=".*?"$', script, re.MULTILINE | re.DOTALL)
    word = subprocess.run(
        ["bash", "-c", f"{line}\nprintf %s \"data.origin='$origin'\""], check=True, capture_output=True
    )
    origin = recipe_settings("demo", word.stdout.decode())["data"]["origin"]
    (license,) = {row["license"] for row in corpus.passages() if row["src"] == corpus.TRAIN_SOURCE}
    notice = (corpus.DOCUMENTS / "NOTICE.md").read_text("utf-8")
    (row,) = [line for line in notice.splitlines() if line.startswith(f"| {corpus.TRAIN_SOURCE} |")]
    assert f"under {license}." in origin
    for fact in ("libreoffice-help-ko", "7.4.7", license):
        assert fact in origin
        assert fact in row


@pytest.mark.parametrize("recipe", ["demo", "ko_docs", "ko_reranker"])
def test_a_recipe_says_nothing_of_data_that_others_have(recipe: str) -> None:
    assert recipe_settings(recipe)["data"]["origin"] is None


def test_the_code_is_the_same_in_each_language() -> None:
    def code(language: str) -> list[str]:
        blocks = re.findall(r"```\w+\n(.*?)```", usage("m", Contract(), Words(language), onnx=Fusion(24)), re.DOTALL)
        return [re.sub(r"  # .*", "", block) for block in blocks]

    assert code("ko") == code("en")
    assert len(code("ko")) == 6
