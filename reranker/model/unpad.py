"""The packed forward: a stock encoder on the tokens of many pairs in one row, none of them padding.

In: a stock `AutoModelForSequenceClassification`; `PackedPairs`. Out: the same scores as of the padded rectangle, to
rounding, from the same weights: `pack` changes no module and no parameter. Linear layers see one row of T tokens;
attention, registered with transformers, stays within each pair; positions begin anew with each pair; and of the last
layer only each pair's first token goes on, as a pair of one token, which is all that the heads look at: of the others
it computes queries, keys and values alone.

Attention is torch's variable-length kernel on a GPU, or flash-attn's where it is installed and torch has none, and one
fused call for each pair on a CPU. None drops attention weights: attention dropout is 0 here, whatever the config says.
Hidden dropout stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F

from reranker.data.collate import PackedPairs
from reranker.errors import UserError

ATTENTION = "reranker_packed"
"""Name of the attention among transformers' own."""

MODEL_TYPES = frozenset(("bert", "camembert", "electra", "roberta", "xlm-roberta"))
"""Encoders whose packed forward is proved equal to the padded one (`tests/unit/test_unpad.py`)."""

COUNT_FROM_PADDING = frozenset(
    ("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet",
     "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod")
)  # fmt: skip
"""Model types whose first token has the position after the padding id, as in fairseq's RoBERTa."""


def why_padded(config: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a model of this config cannot run packed on this device in this precision; None where it can."""
    if config.model_type not in MODEL_TYPES or getattr(config, "is_decoder", False):
        return f"{config.model_type} models have no packed forward"
    if device.type != "cuda":
        return None
    if dtype is torch.float32:
        return "attention over pairs of any length has no float32 kernel on a GPU"
    if kernel() is None:
        return f"neither torch {torch.__version__} nor flash-attn has attention over pairs of any length here"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than the attention kernel (compute capability 8.0)"
    width = config.hidden_size // config.num_attention_heads
    if width % 8 or width > 256:
        return f"the attention kernel takes heads of 8, 16, ... 256, not of {width}"
    return None


def resolve_packing(
    requested: str,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    key: str = "batch.packing",
    dropout: float | None = None,
) -> tuple[bool, list[str]]:
    """(whether to run packed, what to tell the user). Raises UserError for `packed` where it cannot be.

    `dropout` is what replaces the config's, if anything does.
    """
    reason = None if requested == "padded" else why_padded(config, device, dtype)
    if requested == "packed" and reason:
        raise UserError(key, f"packed, but {reason}", "padded or auto", f"say {key}=auto")
    if reason:
        return False, [f"{key}=auto: padded, as {reason}"]
    packed = requested != "padded"
    dropped = getattr(config, "attention_probs_dropout_prob", 0.0) if dropout is None else dropout
    return packed, [f"{key}: packed, attention dropout is 0 instead of {dropped}"] if packed and dropped else []


def pack(model: Any) -> None:
    """Let a model of MODEL_TYPES run packed: from now on it takes what `packed_inputs` makes, and nothing else."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
    model.set_attn_implementation(ATTENTION)
    encoder = model.base_model.encoder
    last = encoder.layer[-1].attention
    last.forward = MethodType(_of_first_tokens, last)
    encoder.register_forward_hook(_as_pairs)


@functools.cache
def kernel() -> Callable[..., Any] | None:
    """(q, k, v, cu_q, cu_k, longest_q, longest_k, scale) -> out, on a GPU; None where neither library is there."""
    try:
        from torch.nn.attention.varlen import varlen_attn

        return lambda *args: varlen_attn(*args[:-1], scale=args[-1])
    except ImportError:
        pass
    try:
        from flash_attn import flash_attn_varlen_func

        return lambda *args: flash_attn_varlen_func(*args[:-1], softmax_scale=args[-1])
    except ImportError:
        return None


def is_packed(config: Any) -> bool:
    """Whether the model of this config was given to `pack`."""
    return getattr(config, "_attn_implementation", None) == ATTENTION


def packed_inputs(config: Any, pairs: PackedPairs) -> dict[str, Any]:
    """What the forward of a packed model takes, on the device of `pairs`; nothing is read back from there."""
    inputs: dict[str, Any] = {
        "input_ids": pairs.ids_T[None],
        "position_ids": position_ids(config, pairs)[None],
        "cu_seq_lens_q": pairs.cu_seqlens,
        "max_length_q": pairs.longest,
    }
    if getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = pairs.types_T[None]
    return inputs


def position_ids(config: Any, pairs: PackedPairs) -> torch.Tensor:
    """positions_T as the model counts them for each pair by itself."""
    lengths_N = pairs.cu_seqlens.diff()
    starts_T = pairs.cu_seqlens[:-1].long().repeat_interleave(lengths_N, output_size=pairs.tokens)
    if config.model_type not in COUNT_FROM_PADDING:
        return torch.arange(pairs.tokens, device=starts_T.device) - starts_T
    # These count the tokens that are not the padding id, which a text may contain: such a token has its own position.
    counted_T = (pairs.ids_T != config.pad_token_id).long()
    before_T = counted_T.cumsum(0) - counted_T
    return (before_T - before_T[starts_T] + 1) * counted_T + config.pad_token_id


def _of_first_tokens(
    attention: Any, hidden_states: torch.Tensor, attention_mask: Any = None, *, cu_seq_lens_q: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The last layer's attention, [1, T, H] -> [1, N, H]: what comes behind it sees each pair's first token alone."""
    out_1TH, _ = attention.self(
        hidden_states, attention_mask=attention_mask, cu_seq_lens_q=cu_seq_lens_q, first_alone=True, **kwargs
    )
    starts_N = cu_seq_lens_q[:-1]
    return attention.output(out_1TH[:, starts_N], hidden_states[:, starts_N]), None


def _as_pairs(encoder: Any, args: Any, output: Any) -> Any:
    """The last layer's one row of first tokens as N pairs of one token, [1, N, H] -> [N, 1, H], for pooler and head."""
    output["last_hidden_state"] = output["last_hidden_state"].squeeze(0)[:, None]
    return output


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, *,
    cu_seq_lens_q: torch.Tensor, max_length_q: int, scaling: float | None = None, first_alone: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """[1, heads, T, width] each -> [1, T, heads, width]; no pair sees another.

    `first_alone`: only the first token of each pair asks, and behind the others stands 0, as transformers gives what
    comes out the shape of what went in.
    """
    dtype = query.dtype
    # squeeze, not [0]: the gradient of an index is a tensor of zeros as large as the whole, and a copy into it.
    q_THW, k_THW, v_THW = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    if not first_alone:
        out_THW = _attend(q_THW, k_THW, v_THW, cu_seq_lens_q, max_length_q, cu_seq_lens_q, max_length_q, scaling)
        return out_THW[None].to(dtype), None
    starts_N = cu_seq_lens_q[:-1].long()
    each = torch.arange(len(cu_seq_lens_q), dtype=cu_seq_lens_q.dtype, device=cu_seq_lens_q.device)
    out_NHW = _attend(q_THW[starts_N], k_THW, v_THW, each, 1, cu_seq_lens_q, max_length_q, scaling)
    return torch.zeros_like(q_THW).index_copy(0, starts_N, out_NHW.to(dtype))[None], None


def _attend(
    q_QHW: torch.Tensor, k_THW: torch.Tensor, v_THW: torch.Tensor, cu_q: torch.Tensor, longest_q: int,
    cu_k: torch.Tensor, longest_k: int, scaling: float | None,
) -> torch.Tensor:  # fmt: skip
    """out_QHW: the tokens that ask, of N pairs side by side as `cu_q` says, see those of their pair as `cu_k` says."""
    if q_QHW.device.type == "cuda":
        attend = kernel()
        assert attend is not None
        out_QHW = attend(q_QHW, k_THW, v_THW, cu_q, cu_k, longest_q, longest_k, scaling)
        assert isinstance(out_QHW, torch.Tensor)
        return out_QHW
    if torch.is_grad_enabled() and q_QHW.dtype.itemsize == 2:
        # The kernel's backward takes nearly three times as long in 16 bits as in float32.
        q_QHW, k_THW, v_THW = q_QHW.float(), k_THW.float(), v_THW.float()
    # Taken apart and put together along T in the layout of the linear layers: nothing is copied for another one.
    asking, asked = cu_q.diff().tolist(), cu_k.diff().tolist()
    rows = zip(q_QHW.split(asking), k_THW.split(asked), v_THW.split(asked), strict=True)
    with torch.autocast("cpu", enabled=False):  # which would take 16 bits after all
        outs_1HLW = [
            F.scaled_dot_product_attention(
                q_LHW.transpose(0, 1)[None], k_LHW.transpose(0, 1)[None], v_LHW.transpose(0, 1)[None], scale=scaling
            )
            for q_LHW, k_LHW, v_LHW in rows
        ]
    return torch.cat([out_1HLW.squeeze(0).transpose(0, 1) for out_1HLW in outs_1HLW])
