"""Long passages in windows: every token is seen, each window as it would be alone, and what is found counts."""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker import Reranker
from reranker.config.common import LongPassages
from reranker.config.models import ScoreConfig
from reranker.data.tokenize import CONFIG_KEY, Contract, PairTokenizer
from reranker.data.windows import Windows, window_starts, windows_of
from reranker.errors import UserError
from reranker.model import reranker as scoring
from reranker.model.score import score_command
from reranker.model.windows import Layout, sizes_of
from tests.tiny import tiny_model
from tests.unit.test_tokenize import WORDS, made, wordpiece

TEXTS = st.lists(st.sampled_from([*WORDS, "다른", "xyz", "표를!"]), min_size=1, max_size=12).map(" ".join)
LONG_TEXTS = st.lists(st.sampled_from([*WORDS, "다른", "xyz", "표를!"]), min_size=1, max_size=90).map(" ".join)
FILLER, ANSWER = "문서", "정답"


@given(tokens=st.integers(1, 3000), size=st.integers(1, 500), overlap=st.integers(0, 600))
def test_windows_cover_every_token_in_order_and_are_as_few_as_will_do(tokens: int, size: int, overlap: int) -> None:
    starts = window_starts(tokens, size, overlap)
    assert starts[0] == 0
    assert max(starts[-1] + size, size) >= tokens
    shared = min(overlap, size // 2)
    for before, after in itertools.pairwise(starts):
        assert before < after <= before + size - shared, "a gap, or neighbours that share too little"
    if len(starts) > 1:
        assert starts[-1] + size == tokens, "a window is shorter than the others"
        # One window less would leave tokens out, or let neighbours share less than is asked.
        assert (len(starts) - 2) * (size - shared) + size < tokens


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoTokenizer

    directory = tiny_model(tmp_path_factory.mktemp("model"), vocabulary=WORDS)
    return {"unigram": AutoTokenizer.from_pretrained(directory), "wordpiece": wordpiece()}


CONTRACTS = st.builds(
    Contract, st.integers(20, 60), st.none() | st.integers(6, 30), st.sampled_from(["longest_first", "only_second"]),
    st.none() | st.integers(8, 40), st.sampled_from(["", "the "]), st.sampled_from(["", "of ", "of: ", "a"]),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
@settings(max_examples=150)
@given(query=TEXTS, passage=LONG_TEXTS, contract=CONTRACTS, overlap=st.integers(0, 20))
def test_a_window_is_the_pair_of_the_query_with_a_slice_of_the_passages_tokens(
    kind: str, query: str, passage: str, contract: Contract, overlap: int, tokenizers: dict[str, Any]
) -> None:
    tokenizer = made(tokenizers[kind], contract)
    (windows,) = windows_of(tokenizer, query, [passage], overlap)
    (cut,) = tokenizer.encode(query, [passage])
    whole = tokenizers[kind](contract.passage_prefix + passage, add_special_tokens=False)["input_ids"]
    assert windows[0] == cut, "the first window is not what truncation makes"
    assert len({len(window.ids) for window in windows}) == 1
    assert all(window.types == cut.types for window in windows)
    if len(windows) == 1:
        assert windows.tokens_T is None
        (uncut,) = tokenizer.encode_uncut(query, [passage])
        assert uncut.end - uncut.start == len(whole), "a passage that was cut has one window"
        return
    # The tokens before and behind are the query's, the special ones and the prefix's, in each window.
    before, behind = cut.ids[: windows.start], cut.ids[windows.end :]
    prefix = len(whole) - len(windows.tokens_T)  # type: ignore[arg-type]
    assert windows.start - prefix >= cut.ids.index(whole[0])
    covered = [0] * (len(whole) - prefix)
    for window, start in zip(windows, windows.starts, strict=True):
        size = windows.end - windows.start
        assert window.ids == [*before, *whole[prefix + start : prefix + start + size], *behind]
        for place in range(start, start + size):
            covered[place] += 1
    assert min(covered) >= 1, "a token is in no window"
    assert len(cut.ids) <= contract.max_length


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_every_window_begins_with_the_passages_prefix(kind: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = PairTokenizer(tokenizers[kind], Contract(24, passage_prefix="of the: "))
    passages = [" ".join(WORDS * 9), "서울", " ".join(WORDS * 3)]
    prefix = tokenizers[kind]("of the:", add_special_tokens=False)["input_ids"]
    for windows in windows_of(tokenizer, "서울 수도", passages, 2):
        for window in windows:
            start = 2 + window.ids[2:].index(prefix[0])
            assert window.ids[start : start + len(prefix)] == prefix
    many, one, several = windows_of(tokenizer, "서울 수도", passages, 2)
    assert len(many) > len(several) > len(one) == 1


def test_a_query_that_fills_the_pair_leaves_room_for_windows(tokenizers: dict[str, Any]) -> None:
    """It is cut as truncation cuts it beside a long passage: to one half, or to three quarters."""
    for truncation, kept in (("longest_first", 14), ("only_second", 24)):
        tokenizer = PairTokenizer(tokenizers["unigram"], Contract(32, truncation=truncation))
        (windows,) = windows_of(tokenizer, " ".join(["서울"] * 99), [" ".join(WORDS * 9)], 0)
        assert len(windows) == -(-72 // (32 - 4 - kept))
        assert all(window.ids[: 1 + kept] == windows[0].ids[: 1 + kept] for window in windows)


def test_a_long_passage_is_one_lot_and_short_ones_are_encoded_together(
    tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = PairTokenizer(tokenizers["unigram"], Contract(24))
    passages = [" ".join(WORDS * count) for count in (1, 40, 2, 3, 1, 1, 90, 1)]
    together = list(windows_of(tokenizer, "서울", passages, 3))
    monkeypatch.setattr("reranker.data.tokenize._LOT", 100)
    for (one,), expected in zip(
        (windows_of(tokenizer, "서울", [passage], 3) for passage in passages), together, strict=True
    ):
        assert list(one) == list(expected)
    assert [list(one) for one in windows_of(tokenizer, "서울", passages, 3)] == [list(one) for one in together]


def test_a_window_holds_no_more_than_its_passages_tokens_in_memory(tokenizers: dict[str, Any]) -> None:
    tokenizer = PairTokenizer(tokenizers["unigram"], Contract(64))
    (windows,) = windows_of(tokenizer, "서울", [" ".join(WORDS * 10_000)], 32)
    assert isinstance(windows, Windows)
    assert windows.tokens_T is not None
    assert windows.tokens_T.nbytes == 4 * 80_000
    assert len(windows) > 2000


def test_no_window_hides_a_score_that_is_not_a_number() -> None:
    layout = Layout([(2, 5), (1, 9), (3, 4)])
    assert layout.lengths == [5, 5, 9, 4, 4, 4]
    values_W = np.array([1.0, 3.0, -2.0, 0.5, 7.0, 2.0], dtype=np.float32)
    assert layout.scores(values_W).tolist() == [3.0, -2.0, 7.0]
    assert layout.scores(values_W, best=2).tolist() == [2.0, -2.0, 4.5]
    for lost in (np.nan, np.inf, -np.inf):
        spoilt_W = values_W.copy()
        spoilt_W[3] = lost
        for best in (1, 2):
            scores_N = layout.scores(spoilt_W, best)
            assert np.isfinite(scores_N).tolist() == [True, True, False]


def test_each_pair_is_begun_once_over_all_batches() -> None:
    layout = Layout([(2, 5), (1, 9), (3, 4)])
    assert [layout.begun(batch) for batch in ([5, 0], [1, 2, 4], [3])] == [1, 1, 1]
    assert layout.pairs_of([5, 1, 0]) == [0, 2]
    assert layout.pairs_of([]) == []
    assert Layout([]).scores(np.empty(0, dtype=np.float32)).shape == (0,)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_model(tmp_path_factory.mktemp("model") / "tiny", vocabulary=[FILLER, ANSWER])
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {CONFIG_KEY: {"max_length": 32}}))
    return path


PASSAGES = ["글을 쓰는 방법 " * (1 + 5 * (number % 7)) + str(number) for number in range(15)]
PAIRS = [(f"질문 {number // 4}", passage) for number, passage in enumerate(PASSAGES)]


def test_where_all_passages_fit_the_scores_are_those_of_truncation_to_the_last_bit(model: Path) -> None:
    fitting = [(query, passage[:12]) for query, passage in PAIRS]
    expected = Reranker(model, batch_tokens=200).score_pairs(fitting)
    for best in (1, 3):
        windows = Reranker(model, batch_tokens=200, long="windows", window_best=best)
        assert all(len(of_pair) == 1 for of_pair in windows.windows(fitting))
        assert (windows.score_pairs(fitting) == expected).all()


@pytest.mark.parametrize(("best", "portion"), [(1, 8192), (1, 4), (3, 8192)])
def test_a_score_is_that_of_the_best_windows_as_transformers_scores_each(
    best: int, portion: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification

    monkeypatch.setattr(scoring, "PORTION", portion)
    reranker = Reranker(model, long="windows", window_overlap=4, window_best=best, batch_tokens=200)
    stock = AutoModelForSequenceClassification.from_pretrained(model).eval()
    expected = []
    with torch.no_grad():
        for query, passage in PAIRS:
            (windows,) = windows_of(reranker.tokenizer, query, [passage], 4)
            scores = [float(stock(torch.tensor([window.ids])).logits) for window in windows]
            expected.append(float(np.mean(sorted(scores)[-best:])))
    counted: list[int] = []
    found = reranker.score_pairs(PAIRS, progress=counted.append)
    assert found == pytest.approx(expected, abs=1e-5)
    assert sum(counted) == len(PAIRS)
    assert max(len(of_pair) for of_pair in reranker.windows(PAIRS)) > 5
    differing = np.abs(found - Reranker(model).score_pairs(PAIRS)) > 1e-4
    assert differing.sum() > len(PAIRS) // 2


def test_long_passages_are_tokenized_a_few_at_a_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Reranker(model, long="windows")
    expected = whole.score_pairs(PAIRS)
    assert list(whole.portions(PAIRS)) == [(0, len(PAIRS))]
    monkeypatch.setattr(scoring, "CHARACTERS", 300)
    portions = list(whole.portions(PAIRS))
    assert [start for start, _ in portions[1:]] == [end for _, end in portions[:-1]]
    assert (portions[0][0], portions[-1][1]) == (0, len(PAIRS))
    lengths = [[len(passage) for _, passage in PAIRS[start:end]] for start, end in portions]
    assert all(sum(of) <= 300 or len(of) == 1 for of in lengths)
    assert len(portions) > 3
    assert whole.score_pairs(PAIRS) == pytest.approx(expected, abs=1e-6)
    assert list(Reranker(model).portions(PAIRS)) == [(0, len(PAIRS))], "what is cut takes no more memory"


def finder(directory: Path) -> Path:
    """A model, its weights set by hand, that scores higher the more of a pair's tokens are ANSWER."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = tiny_model(directory / "finder", vocabulary=[FILLER, ANSWER])
    model = AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    (answer,) = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    identity = torch.eye(32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" not in name:
                parameter.zero_()
        embeddings = model.roberta.embeddings.word_embeddings.weight
        embeddings[answer, 0] = embeddings[tokenizer.cls_token_id, 1] = 1.0
        for layer in model.roberta.encoder.layer:
            # Queries and keys of zero: each token takes in the mean of all tokens.
            layer.attention.self.value.weight.copy_(identity)
            layer.attention.output.dense.weight.copy_(identity)
        model.classifier.dense.weight.copy_(identity)
        model.classifier.out_proj.weight[0, 0] = 1.0
    model.config.reranker = {"max_length": 40}
    model.save_pretrained(path)
    return path


def test_what_stands_at_the_end_of_a_long_passage_is_found_in_windows_and_not_by_truncation(tmp_path: Path) -> None:
    path = finder(tmp_path)
    right, wrong = f"{FILLER} " * 300 + ANSWER, f"{FILLER} " * 301
    short = f"{FILLER} {ANSWER} {FILLER}"
    cut = Reranker(path).score("질문", [right, wrong, short])
    assert cut[0] == cut[1] < cut[2] - 0.1, "truncation shows the same of both"
    windows = Reranker(path, long="windows", window_overlap=8)
    found = windows.score("질문", [right, wrong, short])
    assert found[0] > found[1] + 0.05
    assert [found[1], found[2]] == pytest.approx([cut[1], cut[2]], abs=1e-6)
    assert windows.rerank("질문", [wrong, right])[0].index == 1
    # In the mean of all windows the one that holds it counts for little.
    mean = Reranker(path, long="windows", window_overlap=8, window_best=99).score("질문", [right, wrong])
    assert 0 < mean[0] - mean[1] < (found[0] - found[1]) / 5


def test_the_command_scores_windows(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = json.dumps({"query": "질문", "passages": PASSAGES}) + "\n"
    answers = []
    for long in LongPassages:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(request.encode())))
        assert score_command(ScoreConfig(model=str(model), long=long, window_overlap=4, window_best=2)) == 0
        answers.append(json.loads(capsys.readouterr().out)["scores"])
    expected = Reranker(model, long="windows", window_overlap=4, window_best=2).score("질문", PASSAGES)
    assert answers[0] == pytest.approx(Reranker(model).score("질문", PASSAGES), abs=1e-6)
    assert answers[1] == pytest.approx(expected, abs=1e-6)
    assert answers[0] != pytest.approx(answers[1], abs=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"long": "middle"}, "long: found middle, expected truncate or windows; change the value"),
        ({"window_overlap": -1}, "window_overlap: found -1, expected 0 or more; change the value"),
        ({"window_best": 0}, "window_best: found 0, expected 1 or more; change the value"),
    ],
)
def test_settings_of_windows_that_cannot_be_are_refused(model: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Reranker(model, **given)
    assert str(caught.value) == message


def test_sizes_tell_how_many_windows_and_how_long(model: Path) -> None:
    reranker = Reranker(model, long="windows", window_overlap=0)
    sizes = sizes_of(reranker.windows(PAIRS))
    assert sizes[0][0] == 1
    assert all(length == 32 for count, length in sizes if count > 1)
