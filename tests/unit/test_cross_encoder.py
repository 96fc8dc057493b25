"""Stock encoders of four kinds load, score, and say in one line when they cannot."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reranker.data.collate import MicroBatch, collate, pack_pairs
from reranker.data.tokenize import Pair
from reranker.errors import UserError
from reranker.model.cross_encoder import (
    COUNT_FROM_PADDING,
    load_config,
    load_model,
    load_tokenizer,
    positions,
    score,
    score_pairs,
)
from tests.tiny import tiny_model

KINDS = ("xlm_roberta", "roberta", "bert", "modernbert")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}


def config_of(kind: str) -> Any:
    import transformers

    if kind == "modernbert":
        return transformers.ModernBertConfig(
            **SIZES, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
            sep_token_id=2, global_attn_every_n_layers=2, local_attention=8,
            embedding_dropout=0.1, attention_dropout=0.1, mlp_dropout=0.1, classifier_dropout=0.1,
        )  # fmt: skip
    if kind == "bert":
        return transformers.BertConfig(**SIZES, max_position_embeddings=64, type_vocab_size=2, classifier_dropout=0.1)
    names = {"xlm_roberta": transformers.XLMRobertaConfig, "roberta": transformers.RobertaConfig}
    return names[kind](**SIZES, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """{(kind, with a trained head): directory} of random models."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    root, made = tmp_path_factory.mktemp("models"), {}
    for kind in KINDS:
        for trained in (False, True):
            config = config_of(kind)
            config.num_labels = 1
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                maker = AutoModelForSequenceClassification if trained else AutoModel
                model = maker.from_config(config)
                for parameter in model.parameters():
                    torch.nn.init.normal_(parameter, std=0.2)
            made[kind, trained] = root / f"{kind}-{trained}"
            model.save_pretrained(made[kind, trained])
    return made


def some_pairs() -> list[Pair]:
    draw = torch.Generator().manual_seed(1)
    lengths = [5, 9, 3, 12, 7, 4]
    return [
        Pair(torch.randint(5, 60, (n,), generator=draw).tolist(), [0] * (n // 2) + [1] * (n - n // 2)) for n in lengths
    ]


def some_batch() -> MicroBatch:
    pairs = some_pairs()
    return collate([pairs[:3], pairs[3:]], [0, 1], passages=3, pad_id=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [False, True])
def test_an_encoder_gives_one_finite_score_to_each_pair(
    kind: str, trained: bool, directories: dict[tuple[str, bool], Path]
) -> None:
    model, fresh = load_model(str(directories[kind, trained]))
    assert fresh is not trained
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    scores_GP = score(model.eval(), some_batch())
    assert scores_GP.shape == (2, 3)
    assert scores_GP.isfinite().all()
    assert len(set(scores_GP.flatten().tolist())) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_the_padding(kind: str, directories: dict[tuple[str, bool], Path]) -> None:
    model, _ = load_model(str(directories[kind, True]))
    model.eval()
    batch = some_batch()
    scores_N = score(model, batch).flatten()
    for row, pair in enumerate(some_pairs()):
        alone = score_pairs(model, pack_pairs([pair], pad_id=1))[0]
        torch.testing.assert_close(alone, scores_N[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_head_is_kept(kind: str, directories: dict[tuple[str, bool], Path]) -> None:
    stored = load_file(directories[kind, True] / "model.safetensors")
    for seed in (0, 1):
        model, _ = load_model(str(directories[kind, True]), seed=seed)
        state = model.state_dict()
        assert stored.keys() <= state.keys()
        for name, values in stored.items():
            assert torch.equal(state[name], values), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_head_is_drawn_from_the_seed_alone(kind: str, directories: dict[tuple[str, bool], Path]) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        model, fresh = load_model(str(directories[kind, False]), seed=seed)
        assert fresh
        return model.state_dict()

    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first = state(7)
    # The program's own random numbers are not used up.
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = state(7), state(8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed
    assert all(name.startswith(("classifier", "head", "bert.pooler")) for name in changed)


def test_segment_ids_reach_a_model_that_has_segments_and_no_other(directories: dict[tuple[str, bool], Path]) -> None:
    pairs = some_batch().packed
    for kind in KINDS:
        model, _ = load_model(str(directories[kind, True]))
        model.eval()
        with_types = score_pairs(model, pairs)
        without = score_pairs(model, dataclasses.replace(pairs, types_T=torch.zeros_like(pairs.types_T)))
        assert torch.equal(with_types, without) is (kind != "bert")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [False, True])
def test_dropout_can_be_switched_off_and_on(
    kind: str, trained: bool, directories: dict[tuple[str, bool], Path]
) -> None:
    def scores(dropout: float) -> list[torch.Tensor]:
        model, _ = load_model(str(directories[kind, trained]), dropout=dropout)
        model.train()
        torch.manual_seed(0)
        return [score(model, some_batch()) for _ in range(2)]

    assert torch.equal(*scores(0.0))
    assert not torch.equal(*scores(0.5))


@pytest.mark.parametrize("kind", ["xlm_roberta", "bert", "modernbert"])
def test_gradient_checkpointing_changes_memory_and_not_gradients(
    kind: str, directories: dict[tuple[str, bool], Path]
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, _ = load_model(str(directories[kind, True]), dropout=0.0, gradient_checkpointing=checkpointing)
        model.train()
        assert model.is_gradient_checkpointing is checkpointing
        score(model, some_batch()).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_the_type_of_the_weights_is_the_one_asked_for(
    directories: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    model, _ = load_model(str(directories["bert", True]), dtype=torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    model.save_pretrained(tmp_path)
    model, _ = load_model(str(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["xlm_roberta", "roberta", "bert"])
def test_a_pair_may_have_as_many_tokens_as_the_model_has_positions(
    kind: str, directories: dict[tuple[str, bool], Path]
) -> None:
    model, _ = load_model(str(directories[kind, True]))
    limit = positions(model.config)
    assert limit == 64

    def scored(length: int) -> torch.Tensor:
        return score_pairs(model.eval(), pack_pairs([Pair([7] * length, [0] * length)], pad_id=1))

    assert scored(limit).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        scored(limit + 1)


@pytest.mark.parametrize("kind", sorted(COUNT_FROM_PADDING))
def test_positions_are_those_behind_the_padding_in_the_family_of_roberta(kind: str) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(kind, **SIZES, max_position_embeddings=66, pad_token_id=1)
    if kind == "esm":
        config.position_embedding_type = "absolute"
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    (table,) = (part for name, part in model.named_modules() if name.endswith(".embeddings.position_embeddings"))
    assert positions(config) == len(table.weight) - table.padding_idx - 1 == 64


def test_a_model_without_a_limit_of_positions_has_none() -> None:
    import transformers

    assert positions(transformers.AutoConfig.for_model("modernbert", max_position_embeddings=64)) == 64
    assert positions(transformers.PretrainedConfig()) is None


# What cannot be loaded.


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model")


def refused(name: object, load: Any = load_model, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(str(name), **settings)
    line = str(caught.value)
    assert "\n" not in line
    return line


EXPECTED = "expected a Hugging Face model directory or hub name; check the path"


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
def test_a_path_that_leads_nowhere_is_named_with_its_key(load: Any, tmp_path: Path) -> None:
    gone = tmp_path / "none"
    assert refused(gone, load) == f"model.name: found {gone}, which does not exist, {EXPECTED}"
    assert refused("./none", load, key="base") == f"base: found ./none, which does not exist, {EXPECTED}"
    assert refused("runs/ko/model", load) == f"model.name: found runs/ko/model, which does not exist, {EXPECTED}"


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
def test_what_is_no_model_directory_is_named(load: Any, tmp_path: Path) -> None:
    assert refused(tmp_path, load) == f"model.name: found {tmp_path}, a directory without config.json, {EXPECTED}"
    (tmp_path / "weights.bin").write_bytes(b"x")
    assert refused(tmp_path / "weights.bin", load) == f"model.name: found {tmp_path}/weights.bin, a file, {EXPECTED}"


@pytest.mark.parametrize("name", ["nobody/no-such-reranker", "no-such-reranker"])
@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
def test_a_hub_name_that_cannot_be_had_is_told_in_one_line(load: Any, name: str) -> None:
    line = refused(name, load)
    assert line.startswith(f"model.name: found {name}, which cannot be loaded (")
    assert line.endswith("; check the name and the network")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "no-such-model"}', '{"hidden_size": 3}'])
def test_a_config_that_is_none_is_refused(content: str, tiny: Path) -> None:
    (tiny / "config.json").write_text(content, encoding="utf-8")
    assert refused(tiny).startswith(f"model.name: found {tiny}, which cannot be loaded (")


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_weights_cut_short_are_refused(kept: int, tiny: Path) -> None:
    path = tiny / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert refused(tiny).startswith(f"model.name: found {tiny}, which cannot be loaded (")


def test_missing_weights_are_refused(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    assert refused(tiny).startswith(f"model.name: found {tiny}, which cannot be loaded (")


def test_an_encoder_that_lacks_weights_is_not_filled_up_with_random_ones(tiny: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    lost = "roberta.encoder.layer.1.output.dense.weight"
    del weights[lost]
    save_file(weights, tiny / "model.safetensors", metadata={"format": "pt"})
    assert refused(tiny) == (
        f"model.name: found {tiny} without 1 weights of its encoder, {lost} the first, expected a whole checkpoint; "
        "check how it was saved"
    )


def test_a_head_of_three_labels_is_refused(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "nli", labels=3)
    assert refused(directory).startswith(f"model.name: found {directory}, which cannot be loaded (")


def test_a_directory_without_a_tokenizer_is_refused(tiny: Path) -> None:
    for path in tiny.glob("tokenizer*"):
        path.unlink()
    assert refused(tiny, load_tokenizer) == (
        f"model.name: found {tiny} without the files of its tokenizer, expected a tokenizer.json beside the weights; "
        "save the tokenizer there as well"
    )


def test_the_tokenizer_beside_the_weights_is_read(tiny: Path) -> None:
    assert len(load_tokenizer(str(tiny))("서울", "수도")["input_ids"]) > 8


def test_a_config_asks_for_one_score_whatever_it_says_itself(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text("utf-8"))
    config["id2label"] = {"0": "a", "1": "b"}
    (tiny / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_config(str(tiny)).num_labels == 1
    model, fresh = load_model(str(tiny))
    assert (model.config.num_labels, fresh) == (1, False)
