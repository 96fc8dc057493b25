"""A pair is cut and joined exactly as the tokenizer of transformers does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.data.tokenize import CONFIG_KEY, Contract, PairTokenizer
from reranker.errors import UserError
from tests.tiny import tiny_model

WORDS = ["안녕", "서울", "수도", "문서", "글꼴", "the", "a", "of"]
texts = st.lists(st.sampled_from([*WORDS, "다른", "xyz", "표를!"]), min_size=1, max_size=30).map(" ".join)


def wordpiece() -> Any:
    """A BERT tokenizer: WordPiece, [CLS] query [SEP] passage [SEP], segments 0 and 1."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    pieces += [f"##{piece}" for piece in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoTokenizer

    directory: Path = tiny_model(tmp_path_factory.mktemp("model"), vocabulary=WORDS)
    return {"unigram": AutoTokenizer.from_pretrained(directory), "wordpiece": wordpiece()}


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
@settings(max_examples=60)
@given(query=texts, passages=st.lists(texts, min_size=1, max_size=3), max_length=st.integers(8, 60))
def test_longest_first_cuts_as_transformers_does(
    kind: str, query: str, passages: list[str], max_length: int, tokenizers: dict[str, Any]
) -> None:
    tokenizer = tokenizers[kind]
    pairs = PairTokenizer(tokenizer, Contract(max_length)).encode(query, passages)
    assert len(pairs) == len(passages)
    for pair, passage in zip(pairs, passages, strict=True):
        theirs = tokenizer(query, passage, truncation="longest_first", max_length=max_length)
        assert pair.ids == theirs["input_ids"]
        if kind == "wordpiece":
            assert pair.types == theirs["token_type_ids"]


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
@settings(max_examples=60)
@given(
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join),
    passage=texts,
    max_length=st.integers(14, 60),
)
def test_only_second_cuts_as_transformers_does(
    kind: str, query: str, passage: str, max_length: int, tokenizers: dict[str, Any]
) -> None:
    tokenizer = tokenizers[kind]
    (pair,) = PairTokenizer(tokenizer, Contract(max_length, truncation="only_second")).encode(query, [passage])
    theirs = tokenizer(query, passage, truncation="only_second", max_length=max_length)
    assert pair.ids == theirs["input_ids"]


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
@pytest.mark.parametrize("max_length", [8, 9, 12, 16, 32, 64])
def test_only_second_keeps_a_long_query_to_three_quarters(
    kind: str, max_length: int, tokenizers: dict[str, Any]
) -> None:
    tokenizer = tokenizers[kind]
    specials = tokenizer.num_special_tokens_to_add(pair=True)
    # Every word is one token. A pair so short that its special tokens need the rest leaves the passage one.
    kept = min(max_length * 3 // 4, max_length - specials - 1)
    (pair,) = PairTokenizer(tokenizer, Contract(max_length, truncation="only_second")).encode(
        " ".join(["서울"] * 100), [" ".join(["수도"] * 100)]
    )
    short = " ".join(["서울"] * kept)
    assert pair.ids == tokenizer(short, " ".join(["수도"] * (max_length - specials - kept)))["input_ids"]
    assert len(pair.ids) == max_length


@pytest.mark.parametrize("truncation", ["longest_first", "only_second"])
@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_a_query_is_cut_to_its_own_length_first(kind: str, truncation: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    contract = Contract(max_length=40, query_max_length=5, truncation=truncation)
    (pair, _) = PairTokenizer(tokenizer, contract).encode(" ".join(["서울"] * 20), [" ".join(["수도"] * 100)] * 2)
    room = 40 - 5 - tokenizer.num_special_tokens_to_add(pair=True)
    assert pair.ids == tokenizer(" ".join(["서울"] * 5), " ".join(["수도"] * room))["input_ids"]


def test_longest_first_has_no_limit_of_its_own_for_the_query(tokenizers: dict[str, Any]) -> None:
    (pair,) = PairTokenizer(tokenizers["unigram"], Contract(40)).encode(" ".join(["서울"] * 35), ["수도"])
    assert pair.ids == tokenizers["unigram"](" ".join(["서울"] * 35), "수도")["input_ids"]
    assert len(pair.ids) == 40


def test_segment_ids_tell_query_and_passage_apart(tokenizers: dict[str, Any]) -> None:
    (pair,) = PairTokenizer(tokenizers["wordpiece"], Contract()).encode("서울 수도", ["the 문서 글꼴"])
    assert pair.types == [0, 0, 0, 0, 1, 1, 1, 1]


def test_each_passage_is_paired_with_the_same_query(tokenizers: dict[str, Any]) -> None:
    tokenizer = PairTokenizer(tokenizers["unigram"], Contract(16))
    passages = ["서울", " ".join(["수도"] * 50), "문서 글꼴"]
    together = tokenizer.encode("안녕 the a of", passages)
    assert together == [tokenizer.encode("안녕 the a of", [passage])[0] for passage in passages]


@pytest.mark.parametrize("words", [1, 20])
def test_the_tokenizers_own_settings_neither_pad_nor_cut(words: int, tokenizers: dict[str, Any]) -> None:
    tokenizer = wordpiece()
    tokenizer(["서울"], ["수도"], padding="max_length", max_length=30, truncation=True)  # leaves its settings behind
    (pair,) = PairTokenizer(tokenizer, Contract(64)).encode("서울 " * words, ["수도 " * words])
    assert len(pair.ids) == 2 * words + 3


def test_the_contract_of_an_exported_model_is_read_again() -> None:
    class Config:
        pass

    config = Config()
    assert Contract.of_model(config) == Contract(512, None, "longest_first")
    contract = Contract(256, 64, "only_second")
    setattr(config, CONFIG_KEY, {**contract.to_dict(), "later": 1})
    assert Contract.of_model(config) == contract
    assert Contract.of_model(config, max_length=128) == Contract(128, 64, "only_second")


def test_a_tokenizer_in_python_is_refused() -> None:
    class Slow:
        pad_token_id = 0

    with pytest.raises(UserError) as caught:
        PairTokenizer(Slow(), Contract())
    assert str(caught.value) == (
        "model.name: found a Slow in Python, expected a tokenizer with a tokenizer.json; "
        "save it with a fast tokenizer first"
    )
