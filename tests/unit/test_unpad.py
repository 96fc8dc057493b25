"""The packed forward equals the padded one: scores, gradients, whatever the lengths; and no pair sees another."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.data.collate import PackedPairs, pack_pairs
from reranker.data.tokenize import Pair
from reranker.errors import UserError
from reranker.model.cross_encoder import autocast, score_pairs
from reranker.model.unpad import (
    COUNT_FROM_PADDING,
    MODEL_TYPES,
    is_packed,
    kernel,
    pack,
    packed_inputs,
    position_ids,
    resolve_packing,
    why_padded,
)

CPU = torch.device("cpu")
VOCABULARY = 60
GROUP = 3


def model_of(kind: str, **changes: Any) -> Any:
    """A random stock model: two layers, wide enough weights for scores to differ."""
    import transformers

    behind_padding = kind in COUNT_FROM_PADDING
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=514 if behind_padding else 512, type_vocab_size=1 if behind_padding else 2,
        pad_token_id=1 if behind_padding else 0, num_labels=1, **changes,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("LayerNorm.weight" in name), std=0.2)
    return model.eval()


def packed_copy(model: Any) -> Any:
    other = copy.deepcopy(model)
    pack(other)
    return other


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, Any, Any]]:
    """{kind: (padded float64, padded, packed)} with the same weights."""
    found = {}
    for kind in sorted(MODEL_TYPES):
        model = model_of(kind)
        found[kind] = (copy.deepcopy(model).double(), model, packed_copy(model))
    return found


def some_pairs(lengths: list[int], pad_id: int = 1, seed: int = 0) -> PackedPairs:
    draw = torch.Generator().manual_seed(seed)
    return pack_pairs(
        [Pair(torch.randint(5, VOCABULARY, (n,), generator=draw).tolist(), [0] * (n // 2) + [1] * (n - n // 2))
         for n in lengths], pad_id,
    )  # fmt: skip


def centred(scores_N: torch.Tensor) -> torch.Tensor:
    """Scores less the mean of their group: the loss sees nothing else."""
    scores_GP = scores_N.detach().double().view(-1, GROUP)
    return scores_GP - scores_GP.mean(1, keepdim=True)


def scores_and_gradients(model: Any, pairs: PackedPairs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    scores_N = score_pairs(model, pairs)
    torch.nn.functional.cross_entropy(
        scores_N.to(torch.promote_types(scores_N.dtype, torch.float32)).view(-1, GROUP),
        torch.zeros(len(pairs) // GROUP, dtype=torch.long, device=scores_N.device), reduction="sum",
    ).backward()  # fmt: skip
    return scores_N, {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def gradient_error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """The largest, over the tensors, of the difference's norm relative to the tensor's own.

    The key biases and the score's own have a gradient of exactly zero (the loss does not change with them), of which
    rounding leaves noise: it is measured against the largest gradient.
    """
    assert found.keys() == exact.keys()
    largest = max(float(gradient.norm()) for gradient in exact.values())
    norms = {name: float(gradient.norm()) for name, gradient in exact.items()}
    return max(
        float((found[name].double() - gradient).norm()) / (norms[name] if norms[name] > 1e-12 * largest else largest)
        for name, gradient in exact.items()
    )


LENGTHS = [5, 90, 3, 12, 512, 4, 1, 33, 33]


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_packed_scores_and_gradients_equal_float64_as_the_padded_do(kind: str, models: Any) -> None:
    exact, padded, packed = models[kind]
    pairs = some_pairs(LENGTHS, exact.config.pad_token_id)
    scores, gradients = scores_and_gradients(exact, pairs)
    assert float(centred(scores).norm()) > 0.1
    for model in (padded, packed):
        found, found_gradients = scores_and_gradients(model, pairs)
        assert error(centred(found), centred(scores)) < 1e-5
        assert gradient_error(found_gradients, gradients) < 1e-5


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bit_packing_is_as_exact_as_padding(kind: str, dtype: torch.dtype, models: Any) -> None:
    exact, padded, packed = models[kind]
    # Weights of 16 bits, exactly the same in all three.
    rounded = [copy.deepcopy(model).to(dtype) for model in (padded, packed)]
    reference = copy.deepcopy(rounded[0]).double()
    errors: dict[str, list[float]] = {"scores": [], "gradients": []}
    for seed in range(8):
        pairs = some_pairs(LENGTHS, exact.config.pad_token_id, seed)
        scores, gradients = scores_and_gradients(reference, pairs)
        for model in rounded:
            found, found_gradients = scores_and_gradients(model, pairs)
            errors["scores"].append(error(centred(found), centred(scores)))
            errors["gradients"].append(error(together(found_gradients, gradients), together(gradients, gradients)))
    for values in errors.values():
        of_padded, of_packed = sum(values[::2]), sum(values[1::2])
        assert 0 < of_packed < 1.3 * of_padded, (of_packed, of_padded)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_under_autocast_packing_is_as_exact_as_padding(kind: str, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, padded, packed = models[kind]
    both = [copy.deepcopy(model) for model in (padded, packed)]
    for model in both:
        autocast(model, torch.device("cpu"), torch.bfloat16)
    attention = torch.nn.functional.scaled_dot_product_attention
    seen: list[tuple[torch.dtype, bool]] = []

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((args[0].dtype, torch.is_autocast_enabled("cpu")))
        return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    errors: dict[str, list[float]] = {"scores": [], "gradients": []}
    for seed in range(8):
        pairs = some_pairs(LENGTHS, exact.config.pad_token_id, seed)
        scores, gradients = scores_and_gradients(exact, pairs)
        for model in both:
            seen.clear()
            found, found_gradients = scores_and_gradients(model, pairs)
            assert found.dtype is torch.bfloat16, "nothing was cast"
            errors["scores"].append(error(centred(found), centred(scores)))
            errors["gradients"].append(error(together(found_gradients, gradients), together(gradients, gradients)))
        # The kernel's backward takes nearly three times as long in 16 bits.
        assert set(seen) == {(torch.float32, False)}
    for values in errors.values():
        of_padded, of_packed = sum(values[::2]), sum(values[1::2])
        assert 0 < of_packed < 1.3 * of_padded, (of_packed, of_padded)


def together(gradients: dict[str, torch.Tensor], names: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].double().flatten() for name in names])


@settings(max_examples=25)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 40), st.integers(1, 512)), min_size=1, max_size=96),
    kind=st.sampled_from(sorted(MODEL_TYPES)),
    seed=st.integers(0, 2**31),
)
def test_any_lengths_of_1_to_96_pairs_give_the_scores_and_gradients_of_float64(
    lengths: list[int], kind: str, seed: int
) -> None:
    exact, padded, packed = _MODELS[kind]
    pairs = some_pairs(lengths, exact.config.pad_token_id, seed)
    scores, gradients = weighed(exact, pairs, seed)
    for_padded, for_packed = (weighed(model, pairs, seed) for model in (padded, packed))
    # A sum over pairs may cancel out: then padding is no more exact than packing is.
    assert error(for_packed[0], scores) <= max(1e-5, 2 * error(for_padded[0], scores))
    assert gradient_error(for_packed[1], gradients) <= max(1e-5, 2 * gradient_error(for_padded[1], gradients))


def weighed(model: Any, pairs: PackedPairs, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(scores_N, the gradient of their sum, each with a random weight): of any number of pairs."""
    model.zero_grad()
    scores_N = score_pairs(model, pairs)
    weight_N = torch.randn(len(pairs), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (scores_N * weight_N.to(scores_N.dtype)).sum().backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return scores_N.detach(), gradients


_MODELS = {
    kind: (copy.deepcopy(model).double(), model, packed_copy(model))
    for kind in sorted(MODEL_TYPES)
    for model in [model_of(kind)]
}


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_no_pair_sees_another(kind: str, models: Any) -> None:
    _, _, packed = models[kind]
    pairs = some_pairs(LENGTHS, packed.config.pad_token_id)
    before = score_pairs(packed, pairs)
    for changed in range(len(LENGTHS)):
        ids = [list(row) for row in pairs.ids_T.split(LENGTHS)]
        ids[changed] = [5 + (int(token) + 7) % (VOCABULARY - 5) for token in ids[changed]]
        types = [row.tolist() for row in pairs.types_T.split(LENGTHS)]
        other = pack_pairs(
            [Pair([int(token) for token in row], kinds) for row, kinds in zip(ids, types, strict=True)], pairs.pad_id
        )
        after = score_pairs(packed, other)
        same = torch.ones(len(LENGTHS), dtype=torch.bool)
        same[changed] = False
        assert torch.equal(after[same], before[same])
        assert after[changed] != before[changed]


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_positions_are_the_models_own(kind: str, models: Any) -> None:
    """The padding id in the middle of a text, which the RoBERTa family does not count, among them."""
    _, padded, packed = models[kind]
    pad_id = padded.config.pad_token_id
    pairs = pack_pairs([Pair(ids, [0] * len(ids)) for ids in ([7, 8, pad_id, 9], [7], [pad_id, 9, 8])], pad_id)
    torch.testing.assert_close(score_pairs(packed, pairs), score_pairs(padded, pairs), rtol=1e-5, atol=1e-5)
    first = pad_id + 1 if kind in COUNT_FROM_PADDING else 0
    whole = position_ids(padded.config, some_pairs([3, 1, 2], pad_id)).tolist()
    assert whole == [first, first + 1, first + 2, first, first, first + 1]


def test_a_packed_micro_batch_computes_its_tokens_and_no_more(models: Any) -> None:
    _, _, packed = models["xlm-roberta"]
    seen: list[tuple[int, ...]] = []
    layers = packed.base_model.encoder.layer
    hooks = [layer.register_forward_hook(lambda *call: seen.append(tuple(call[2].shape))) for layer in layers]
    score_pairs(packed, some_pairs(LENGTHS))
    for hook in hooks:
        hook.remove()
    # Of the last layer only the first token of each pair is read.
    assert seen == [(1, sum(LENGTHS), 16), (1, len(LENGTHS), 16)]


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
def test_gradient_checkpointing_changes_no_gradient_of_a_packed_model(kind: str, models: Any) -> None:
    _, _, packed = models[kind]
    pairs = some_pairs(LENGTHS, packed.config.pad_token_id)
    expected = {name: gradient.clone() for name, gradient in scores_and_gradients(packed, pairs)[1].items()}
    other = copy.deepcopy(packed).train()
    for module in other.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert gradient_error(scores_and_gradients(other, pairs)[1], expected) < 1e-5


def test_hidden_dropout_stays_and_attention_dropout_goes() -> None:
    for hidden, attention in ((0.0, 0.9), (0.5, 0.0)):
        model = model_of("xlm-roberta", hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)
        pack(model.train())
        pairs = some_pairs(LENGTHS)
        torch.manual_seed(0)
        assert torch.equal(score_pairs(model, pairs), score_pairs(model, pairs)) is (hidden == 0.0)


def test_packing_adds_no_weight_and_changes_none() -> None:
    model = model_of("xlm-roberta")
    before = {name: values.clone() for name, values in model.state_dict().items()}
    pack(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert is_packed(model.config)


def test_a_packed_model_refuses_what_is_not_packed(models: Any) -> None:
    _, padded, packed = models["xlm-roberta"]
    ids_NL, _, mask_NL = some_pairs([4, 6]).padded()
    assert padded(input_ids=ids_NL, attention_mask=mask_NL).logits.shape == (2, 1)
    with pytest.raises(TypeError, match="cu_seq_lens_q"):
        packed(input_ids=ids_NL, attention_mask=mask_NL)


def test_segment_ids_go_along_where_a_model_has_segments(models: Any) -> None:
    pairs = some_pairs([4, 6])
    assert "token_type_ids" in packed_inputs(models["bert"][0].config, pairs)
    assert "token_type_ids" not in packed_inputs(models["xlm-roberta"][0].config, pairs)


def config(kind: str, **changes: Any) -> Any:
    values = {"model_type": kind, "hidden_size": 64, "num_attention_heads": 4, "attention_probs_dropout_prob": 0.0}
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("requested", "kind", "packed", "told"),
    [
        ("auto", "xlm-roberta", True, []),
        ("packed", "bert", True, []),
        ("padded", "xlm-roberta", False, []),
        ("padded", "modernbert", False, []),
        ("auto", "modernbert", False, ["batch.packing=auto: padded, as modernbert models have no packed forward"]),
    ],
)
def test_packing_is_chosen_by_the_kind_of_model(requested: str, kind: str, packed: bool, told: list[str]) -> None:
    assert resolve_packing(requested, config(kind), CPU, torch.float32) == (packed, told)


def test_packing_that_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        resolve_packing("packed", config("modernbert"), CPU, torch.float32)
    assert str(caught.value) == (
        "batch.packing: found packed, but modernbert models have no packed forward, expected padded or auto; "
        "say batch.packing=auto"
    )


def test_attention_dropout_that_packing_drops_is_told() -> None:
    found = resolve_packing("auto", config("bert", attention_probs_dropout_prob=0.1), CPU, torch.float32)
    assert found == (True, ["batch.packing: packed, attention dropout is 0 instead of 0.1"])
    with_own = config("bert", attention_probs_dropout_prob=0.1)
    assert resolve_packing("auto", with_own, CPU, torch.float32, dropout=0.0) == (True, [])
    assert resolve_packing("auto", with_own, CPU, torch.float32, dropout=0.3)[1][0].endswith("instead of 0.3")


@pytest.mark.parametrize("library", ["torch", "flash-attn", "neither"])
def test_attention_is_torchs_or_that_of_flash_attn(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def attention(*args: Any, **options: Any) -> str:
        called.append((args, options))
        return "out"

    modules = {
        "torch.nn.attention.varlen": SimpleNamespace(varlen_attn=attention) if library == "torch" else None,
        "flash_attn": SimpleNamespace(flash_attn_varlen_func=attention) if library == "flash-attn" else None,
    }
    for name, module in modules.items():  # None: as if it could not be found
        monkeypatch.setitem(sys.modules, name, module)
    kernel.cache_clear()
    found = kernel()
    kernel.cache_clear()
    assert (found is None) == (library == "neither")
    if found:
        assert found("q", "k", "v", "cu_q", "cu_k", 5, 7, 0.25) == "out"
        scale = {"torch": "scale", "flash-attn": "softmax_scale"}[library]
        assert called == [(("q", "k", "v", "cu_q", "cu_k", 5, 7), {scale: 0.25})]


def test_a_gpu_runs_packed_where_its_kernel_can(monkeypatch: pytest.MonkeyPatch) -> None:
    capability: list[tuple[int, int]] = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    cuda = torch.device("cuda")
    reason: Callable[..., str | None] = lambda dtype=torch.float16, **changes: why_padded(  # noqa: E731
        config("xlm-roberta", **changes), cuda, dtype
    )
    assert reason() is None
    assert "no float32 kernel" in str(reason(torch.float32))
    assert "not of 18" in str(reason(hidden_size=72))
    monkeypatch.setattr("reranker.model.unpad.kernel", lambda: None)
    assert "neither torch" in str(reason())
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert reason() == "Some GPU is older than the attention kernel (compute capability 8.0)"
