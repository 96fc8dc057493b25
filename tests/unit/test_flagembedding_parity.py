"""Our objective is FlagEmbedding's: the same groups, weights and truncation give the same loss and gradients.

On one side FlagEmbedding's own dataset (it reads the groups, chooses and tokenizes), collator and model; on the
other our reader, choice, tokenizer, collate and loss, divided by the number of groups.

The settings under which truncation is the same: FlagEmbedding's training cuts the query to
`query_max_len + passage_max_len // 4` tokens, the passage to `passage_max_len + query_max_len // 2`, and then of
the pair only the passage, to `query_max_len + passage_max_len` with special tokens. That is `only_second` with
this `max_length` and this `query_max_length`, except where a query of fewer than `query_max_len // 2 - 4` tokens
meets a passage over its own limit: no query here is that short. (`longest_first`, our default, agrees with both
wherever nothing is cut.)

A group has exactly `train_group_size - 1` negatives, or one that is repeated, so that nothing is drawn but the
order of the negatives, to which the loss is blind. Dropout is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from reranker.data.choose import Choice, Neighbours, choose
from reranker.data.collate import MicroBatch, collate
from reranker.data.index import GroupTexts, text_hash
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.groups import Group, read_groups, write_groups
from reranker.model.cross_encoder import load_model, load_tokenizer, score
from reranker.model.losses import listwise_cross_entropy
from tests.pairs import pair_ids
from tests.tiny import tiny_model

QUERY_LEN, PASSAGE_LEN, GROUP_SIZE = 32, 64, 3
CONTRACT = Contract(QUERY_LEN + PASSAGE_LEN, QUERY_LEN + PASSAGE_LEN // 4, "only_second")

GROUPS = [
    Group("파이썬에서 리스트를 정렬하는 방법은?", ("list.sort()는 리스트를 제자리에서 정렬한다.",),
          ("튜플은 바꿀 수 없다.", "사전은 키와 값을 잇는다.")),
    Group("What is a tuple in Python?", ("A tuple is an immutable sequence.",), ("A list can be changed.", "None.")),
    # A strict triplet: its one negative takes both places.
    Group("함수의 기본 인자는 언제 평가되는가?", ("기본 인자는 정의될 때 한 번 평가된다.",),
          ("반복자는 한 번만 돈다.",)),
    # Both limits are met: a query and passages that are cut.
    Group("파일을 열고 닫는 방법은 무엇인가? " * 6, ("with 문은 파일을 닫아 준다. " * 9,),
          ("문자열은 바꿀 수 없다. " * 9, "set은 순서가 없다.")),
]  # fmt: skip


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    """A tiny model whose tokenizer decodes as XLM-R's does: FlagEmbedding decodes and encodes texts again."""
    from tokenizers import decoders

    directory = tiny_model(tmp_path / "model", seed=3)
    tokenizer = load_tokenizer(str(directory))
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.save_pretrained(directory)
    return directory


def our_batch(directory: Path, groups: Sequence[Group]) -> MicroBatch:
    encoder = PairTokenizer(load_tokenizer(str(directory)), CONTRACT)
    encoded = []
    for number, group in enumerate(groups):
        texts = GroupTexts(tuple(map(text_hash, group.pos)), tuple(map(text_hash, group.neg)))
        shown = choose(texts, number, Neighbours(1, 0, lambda _, texts=texts: texts), seed=5, pass_=0, progress=0.0,
                       choice=Choice(GROUP_SIZE))  # fmt: skip
        passages = [(*group.pos, *group.neg)[passage.passage] for passage in shown]
        encoded.append(encoder.encode(group.query, passages))
    return collate(encoded, range(len(groups)), GROUP_SIZE, encoder.pad_id)


def their_batch(directory: Path, path: Path) -> dict[str, Any]:
    from FlagEmbedding.abc.finetune import reranker

    arguments = reranker.AbsRerankerDataArguments(
        train_data=[str(path)], cache_path=str(path.parent / "cache"), train_group_size=GROUP_SIZE,
        query_max_len=QUERY_LEN, passage_max_len=PASSAGE_LEN,
    )  # fmt: skip
    tokenizer = load_tokenizer(str(directory))
    dataset = reranker.AbsRerankerTrainDataset(args=arguments, tokenizer=tokenizer)
    collator = reranker.AbsRerankerCollator(
        tokenizer=tokenizer, query_max_len=QUERY_LEN, passage_max_len=PASSAGE_LEN, padding=True, return_tensors="pt"
    )
    return dict(collator([dataset[index] for index in range(len(dataset))]))


def their_model(directory: Path, groups: int) -> Any:
    from FlagEmbedding.finetune.reranker.encoder_only import base as encoder_only

    model, _ = load_model(str(directory), dropout=0.0)
    wrapped = encoder_only.CrossEncoderModel(model, tokenizer=load_tokenizer(str(directory)), train_batch_size=groups)
    return wrapped.train()


def rows(pairs: list[list[int]]) -> list[list[int]]:
    """The token ids of each pair, in an order of their own within each group."""
    groups = [pairs[start : start + GROUP_SIZE] for start in range(0, len(pairs), GROUP_SIZE)]
    return [pair for positive, *negatives in groups for pair in (positive, *sorted(negatives))]


def test_loss_and_gradients_equal_flagembedding_on_the_same_groups(tmp_path: Path, model_directory: Path) -> None:
    path = tmp_path / "groups.jsonl"
    write_groups(path, GROUPS)
    theirs = their_model(model_directory, len(GROUPS))
    their_loss = theirs(**their_batch(model_directory, path)).loss
    their_loss.backward()

    ours, _ = load_model(str(model_directory), dropout=0.0)
    batch = our_batch(model_directory, list(read_groups(path)))
    loss = listwise_cross_entropy(score(ours.train(), batch), batch.present_GP, batch.weight_G) / len(GROUPS)
    loss.backward()

    torch.testing.assert_close(loss, their_loss, rtol=0, atol=1e-5)
    assert abs(loss.item() - torch.tensor(GROUP_SIZE).log().item()) > 1e-3, "equal scores would prove nothing"
    # By norm over all parameters: the key and score biases have gradients of zero, of which only noise is left.
    gradients = [(ours_.grad, theirs_.grad) for ours_, theirs_ in
                 zip(ours.parameters(), theirs.model.parameters(), strict=True)]  # fmt: skip
    difference = torch.stack([(mine - other).norm() for mine, other in gradients]).norm()
    assert difference < 1e-5 * torch.stack([mine.norm() for mine, _ in gradients]).norm()


def test_pairs_are_cut_to_the_same_tokens_as_in_flagembedding(tmp_path: Path, model_directory: Path) -> None:
    path = tmp_path / "groups.jsonl"
    write_groups(path, GROUPS)
    batch = our_batch(model_directory, GROUPS)
    pair = their_batch(model_directory, path)["pair"]
    theirs = [ids[mask > 0].tolist() for ids, mask in zip(pair["input_ids"], pair["attention_mask"], strict=True)]
    assert rows(pair_ids(batch.packed)) == rows(theirs)
    # The last group reaches both limits, the others neither.
    assert batch.packed.longest == CONTRACT.max_length
    queries = load_tokenizer(str(model_directory))([group.query for group in GROUPS], add_special_tokens=False)
    lengths = [len(ids) for ids in queries["input_ids"]]
    assert CONTRACT.query_max_length is not None
    assert max(lengths) > CONTRACT.query_max_length > min(lengths) >= QUERY_LEN // 2 - 4
