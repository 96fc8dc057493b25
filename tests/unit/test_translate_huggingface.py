"""The huggingface backend on tiny models of real structure and random weights, made here."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from reranker.errors import UserError
from reranker.prepare.translate.backend import Outcome
from reranker.prepare.translate.huggingface import HuggingFace, batches_by_length
from reranker.prepare.translate.languages import tokenizer_code
from tests.translators import TEXTS, tiny_translators


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_translators(tmp_path_factory.mktemp("models"))


def _backend(model: str, **settings: Any) -> HuggingFace:
    return HuggingFace("en", "ko", **{"model": model, "max_new_tokens": 12, "device": "cpu", **settings})


def _one_by_one(backend: HuggingFace, texts: Sequence[str]) -> list[Outcome]:
    return [outcome for text in texts for outcome in backend.translate([text])]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["marian", "m2m100", "llama", "gpt2"])
def test_a_batch_gives_what_its_texts_give_one_by_one(models: dict[str, str], kind: str, beams: int) -> None:
    template = None if kind in ("marian", "m2m100") else "{source} {target}: {text} ="
    backend = _backend(models[kind], num_beams=beams, template=template)
    alone = _one_by_one(backend, TEXTS)
    assert backend.translate(TEXTS) == alone
    assert {outcome.text is None for outcome in alone} == {False, True}, "both whole and truncated ones"
    assert len({outcome.text for outcome in alone}) > 2
    for outcome in alone:
        assert (outcome.text is None) == (outcome.reason == "error: truncated: no end within max_new_tokens=12")


def test_the_translation_begins_with_the_target_language_and_depends_on_it(models: dict[str, str]) -> None:
    found = {}
    for target in ("ko", "de"):
        backend = HuggingFace("en", target, model=models["m2m100"], max_new_tokens=12, device="cpu")
        found[target] = [outcome.text for outcome in backend.translate(TEXTS)]
        assert not any(text.startswith(f"__{target}__") for text in found[target] if text)
    assert found["ko"] != found["de"]


def test_a_text_longer_than_the_model_is_translated_in_parts(models: dict[str, str]) -> None:
    backend = _backend(models["marian"], max_new_tokens=39)
    long = "a list. the file. " * 8 + "a list."
    assert len(backend._prompter.ids([long])[0]) > backend._prompter.most == 40
    [outcome] = backend.translate([long])
    parts = backend._split(long)
    assert parts is not None
    assert len(parts) > 1
    assert "".join(part + separator for part, separator in parts) == long
    assert all(part.endswith(".") for part, _ in parts)
    pieces = _one_by_one(backend, [part for part, _ in parts])
    if all(piece.text is not None for piece in pieces):
        assert outcome.text == " ".join(str(piece.text) for piece in pieces)
    else:
        assert outcome.reason == "error: truncated: no end within max_new_tokens=39"


def test_a_chat_template_is_used_and_its_special_tokens_are_not_doubled(models: dict[str, str], tmp_path: Path) -> None:
    directory = shutil.copytree(models["llama"], tmp_path / "chat")
    template = (
        "<s>{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} Answer:{% endif %}"
    )
    (directory / "chat_template.jinja").write_text(template)
    backend = _backend(str(directory), template="{text}")
    [ids] = backend._prompter.ids(["the list"])
    assert backend._prompter.tokenizer.convert_ids_to_tokens(ids)[0] == "<s>"
    assert ids.count(0) == 1
    assert backend._prompter.tokenizer.decode(ids).replace(" ", "").endswith("Answer:")
    assert backend.translate(TEXTS) == _one_by_one(backend, TEXTS)


def test_what_changes_the_output_changes_the_identity(models: dict[str, str]) -> None:
    identity = _backend(models["marian"]).identity
    assert _backend(models["marian"], batch_tokens=64, batch_texts=3, processes=2).identity == identity
    others: list[dict[str, Any]] = [
        {"num_beams": 2},
        {"max_new_tokens": 13},
        {"template": "x {text}"},
        {"dtype": "bfloat16"},
    ]
    assert len({identity, *(_backend(models["marian"], **other).identity for other in others)}) == 5


def test_other_weights_under_the_same_name_are_another_backend(models: dict[str, str], tmp_path: Path) -> None:
    directory = shutil.copytree(models["marian"], tmp_path / "model")
    identity = _backend(str(directory)).identity
    assert _backend(str(directory)).identity == identity
    weights = load_file(directory / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, directory / "model.safetensors", {"format": "pt"})
    assert _backend(str(directory)).identity != identity


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "backend.num_beams: found 0"),
        ({"dtype": "int8"}, "backend.dtype: found 'int8', expected one of float32, float16, bfloat16"),
        ({"device": "tpu"}, "backend.device: found 'tpu', expected auto, cpu or cuda"),
        ({"batch_tokens": 0}, "backend.batch_tokens: found 0"),
        ({"batch_texts": 1.5}, "backend.batch_texts: found 1.5"),
        ({"template": "no place"}, "backend.template: found 'no place'"),
        ({"template": "{text} {other}"}, "backend.template: found '{text} {other}'"),
        ({"model": "/no/such/model"}, "backend.model: found /no/such/model, which cannot be loaded"),
    ],
)
def test_wrong_settings_are_told(models: dict[str, str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        _backend(**{"model": models["marian"], **settings})
    assert str(error.value).startswith(message)


def test_a_language_that_the_model_lacks_is_told_with_near_ones(models: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"target: found 'kr', expected a language of the model's tokenizer"):
        HuggingFace("en", "kr", model=models["m2m100"], device="cpu")


@pytest.mark.parametrize(
    ("code", "known", "found"),
    [
        ("ko", ["eng_Latn", "kor_Hang"], "kor_Hang"),
        ("ko", ["en_XX", "ko_KR"], "ko_KR"),
        ("zh", ["zho_Hans", "zho_Hant"], "zho_Hans"),
        ("zho_Hant", ["zho_Hans", "zho_Hant"], "zho_Hant"),
        ("ar", ["ary_Arab", "arb_Arab"], "arb_Arab"),
        ("ko", ["ko", "kk"], "ko"),
    ],
)
def test_languages_have_the_names_that_tokenizers_give_them(code: str, known: list[str], found: str) -> None:
    assert tokenizer_code(code, known, "target") == found


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_batches_hold_each_input_once_and_no_more_than_the_limit(lengths: list[int], most: int) -> None:
    batches = list(batches_by_length(lengths, most))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[place] for place in batch) * len(batch) <= most
