"""A pair is cut and joined exactly as the tokenizer of transformers does it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from reranker.data.tokenize import CONFIG_KEY, Contract, PairTokenizer
from reranker.errors import UserError
from reranker.groups import Group
from tests.tiny import tiny_model

WORDS = ["안녕", "서울", "수도", "문서", "글꼴", "the", "a", "of"]
texts = st.lists(st.sampled_from([*WORDS, "다른", "xyz", "표를!"]), min_size=1, max_size=30).map(" ".join)
PREFIXES = st.sampled_from(["", "the ", "of: ", "a", "xyz"])
CONTRACTS = st.builds(
    Contract, st.integers(14, 60), st.none() | st.integers(1, 30), st.sampled_from(["longest_first", "only_second"]),
    st.none() | st.integers(1, 40), PREFIXES, PREFIXES,
)  # fmt: skip


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


def made(tokenizer: Any, contract: Contract) -> PairTokenizer:
    """A tokenizer for a drawn contract; one whose prefixes leave no room, which is refused, is no example."""
    try:
        return PairTokenizer(tokenizer, contract)
    except UserError:
        reject()


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


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
@pytest.mark.parametrize("truncation", ["longest_first", "only_second"])
@settings(max_examples=60)
@given(
    query=texts, passages=st.lists(texts, min_size=1, max_size=3), max_length=st.integers(24, 60),
    query_prefix=PREFIXES, passage_prefix=PREFIXES,
)  # fmt: skip
def test_a_prefix_is_the_same_as_texts_that_have_it(
    kind: str, truncation: str, query: str, passages: list[str], max_length: int, query_prefix: str,
    passage_prefix: str, tokenizers: dict[str, Any],
) -> None:  # fmt: skip
    plain = Contract(max_length, 12, truncation)
    prefixed = dataclasses.replace(plain, query_prefix=query_prefix, passage_prefix=passage_prefix)
    by_hand = PairTokenizer(tokenizers[kind], plain).encode(
        query_prefix + query, [passage_prefix + passage for passage in passages]
    )
    assert PairTokenizer(tokenizers[kind], prefixed).encode(query, passages) == by_hand


@pytest.mark.parametrize("truncation", ["longest_first", "only_second"])
@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_a_passage_is_cut_to_its_own_length_first(kind: str, truncation: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    contract = Contract(40, truncation=truncation, passage_max_length=7)
    passages = [" ".join(["수도"] * count) for count in (100, 7, 3)]
    pairs = PairTokenizer(tokenizer, contract).encode("서울 글꼴", passages)
    short = [" ".join(["수도"] * count) for count in (7, 7, 3)]
    assert [pair.ids for pair in pairs] == [tokenizer("서울 글꼴", passage)["input_ids"] for passage in short]


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
@settings(max_examples=200)
@given(query=texts, passage=texts, contract=CONTRACTS)
def test_the_length_of_a_pair_is_known_from_those_of_its_texts(
    kind: str, query: str, passage: str, contract: Contract, tokenizers: dict[str, Any]
) -> None:
    tokenizer = made(tokenizers[kind], contract)
    lengths = tokenizer.lengths([contract.query_prefix + query, contract.passage_prefix + passage])
    assert tokenizer.pair_length(*lengths) == len(tokenizer.encode(query, [passage])[0].ids)


def test_a_groups_own_prompt_stands_behind_the_prefix_of_all_queries(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["unigram"]
    group = Group("서울", ("수도",), ("글꼴",), prompt="the:")
    (pair,) = PairTokenizer(tokenizer, Contract(query_prefix="of ")).encode(group.prompted_query, group.pos)
    assert pair.ids == tokenizer("of the: 서울", "수도")["input_ids"]


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (Contract(24, query_prefix="the " * 10),
         "data.query_prefix: found 10 tokens, expected fewer than the 10 that a query has in a long pair; shorten it "
         "or raise data.max_length"),
        (Contract(24, 5, query_prefix="the " * 5),
         "data.query_prefix: found 5 tokens, expected fewer than the 5 that a query has in a long pair; shorten it or "
         "raise data.max_length"),
        (Contract(24, truncation="only_second", passage_prefix="the " * 2),
         "data.passage_prefix: found 2 tokens, expected fewer than the 2 that a passage has in a long pair; shorten it "
         "or raise data.max_length"),
        (Contract(48, passage_max_length=3, passage_prefix="the of a"),
         "data.passage_prefix: found 3 tokens, expected fewer than the 3 that a passage has in a long pair; shorten it "
         "or raise data.max_length"),
    ],
)  # fmt: skip
def test_a_prefix_that_leaves_no_token_of_the_text_is_refused(
    contract: Contract, message: str, tokenizers: dict[str, Any]
) -> None:
    with pytest.raises(UserError) as caught:
        PairTokenizer(tokenizers["unigram"], contract, "data.")
    assert str(caught.value) == message
    words = {key: getattr(contract, key)[:-4].strip() for key in ("query_prefix", "passage_prefix")}
    PairTokenizer(tokenizers["unigram"], dataclasses.replace(contract, **words))


def test_lengths_are_told_apart_by_tokenizer_and_prefixes_and_not_by_what_is_cut(tokenizers: dict[str, Any]) -> None:
    def fingerprint(kind: str = "unigram", **contract: Any) -> str:
        return PairTokenizer(tokenizers[kind], Contract(**contract)).lengths_fingerprint

    bare = fingerprint()
    assert bare == PairTokenizer(tokenizers["unigram"], Contract()).fingerprint
    assert bare == fingerprint(max_length=99, query_max_length=9, passage_max_length=9, truncation="only_second")
    others = [
        fingerprint("wordpiece"), fingerprint(query_prefix="the"), fingerprint(passage_prefix="the"),
        fingerprint(query_prefix="the "), fingerprint(query_prefix="the", passage_prefix="the"),
        fingerprint("wordpiece", query_prefix="the"),
    ]  # fmt: skip
    assert len({bare, *others}) == 7
    prefixed = PairTokenizer(tokenizers["unigram"], Contract(query_prefix="the"))
    assert prefixed.fingerprint == bare, "the tokenizer is the same"


def test_the_contract_of_an_exported_model_is_read_again() -> None:
    class Config:
        pass

    config = Config()
    assert Contract.of_model(config) == Contract(512, None, "longest_first")
    contract = Contract(256, 64, "only_second", 128, "질문: ", "글: ")
    setattr(config, CONFIG_KEY, {**contract.to_dict(), "later": 1})
    assert Contract.of_model(config) == contract
    assert Contract.of_model(config, max_length=128) == Contract(128, 64, "only_second", 128, "질문: ", "글: ")
    # What an earlier version wrote has no prefixes.
    setattr(config, CONFIG_KEY, {"max_length": 256, "query_max_length": 64, "truncation": "only_second"})
    assert Contract.of_model(config) == Contract(256, 64, "only_second")


def test_a_tokenizer_in_python_is_refused() -> None:
    class Slow:
        pad_token_id = 0

    with pytest.raises(UserError) as caught:
        PairTokenizer(Slow(), Contract())
    assert str(caught.value) == (
        "model.name: found a Slow in Python, expected a tokenizer with a tokenizer.json; "
        "save it with a fast tokenizer first"
    )
