"""Each attention of an ONNX graph as one operator of ONNX Runtime's, com.microsoft.Attention.

In: the graph that torch exported, an onnx_ir.Model, and batches with padding. Out: the same graph, changed in place,
and how many attentions it has; its nodes are those of ONNX Runtime's operators (also SkipLayerNormalization and
BiasGelu), its weights as many bytes as before. ONNX Runtime fuses the latter two when it loads a file; its attention
it finds in graphs of torch's older exporter alone, so that it is done here, by onnxscript.

    onnxscript                            here
    Attention(x, Concat(q, k, v), bias,   Attention(x, qkv, bias, Cast(attention_mask))
              attention_bias=...)

What is done here is for 8 bits: quantize_dynamic sees weights that are stored, not those that a Concat makes, and the
quantised operator, QAttention, has no attention_bias: it would leave it out and attend to padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LOWEST = float(np.finfo(np.float32).min)
"""What padding has added to its scores before the softmax: as the models themselves do."""
_MASK, _BIAS = 3, 5
"""Inputs of the operator."""
_TOO_LOW = -1e4
"""exp() of it is 0, by far."""


def fuse_attention(program: Any, batches: Sequence[Mapping[str, np.ndarray]]) -> int:
    """Fuse every attention of `program` and return how many they are.

    Raises ValueError where one is of another form: what `program` is then is not said. onnxscript's own errors are
    of any class.
    """
    from onnxscript.optimizer import fold_constants_ir, remove_unused_nodes
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    wanted = sum(node.op_type == "Softmax" for node in program.graph)
    optimize_for_ort(program)
    attentions = [node for node in program.graph if node.op_type == "Attention" and len(node.inputs) > _BIAS]
    if not 0 < len(attentions) == wanted:
        raise ValueError(f"onnxscript knows {len(attentions)} of {wanted} attentions")
    fold_constants_ir(program, should_fold=_joins_weights)
    _take_the_mask(program, attentions, batches)
    remove_unused_nodes(program)
    return len(attentions)


def _joins_weights(node: Any) -> bool | None:
    """True for a Concat of weights, however large; None leaves the rest to onnxscript's limits."""
    return True if node.op_type == "Concat" and all(value.is_initializer() for value in node.inputs) else None


def _take_the_mask(program: Any, attentions: Sequence[Any], batches: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Give each attention attention_mask in place of a bias that says the same. Raises ValueError if it says more."""
    import onnx_ir as ir

    for bias in dict.fromkeys(node.inputs[_BIAS] for node in attentions):
        _check_bias(program, bias, batches)
    (given,) = (value for value in program.graph.inputs if value.name == "attention_mask")
    mask = ir.Value(name="attention_mask_int32", shape=given.shape, type=ir.TensorType(ir.DataType.INT32))
    cast = ir.node("Cast", [given], {"to": ir.DataType.INT32}, name="node_attention_mask_int32", outputs=[mask])
    program.graph.insert_before(program.graph[0], cast)
    for node in attentions:
        node.replace_input_with(_BIAS, None)
        node.replace_input_with(_MASK, mask)
        node.attributes["mask_filter_value"] = ir.AttrFloat32("mask_filter_value", LOWEST)
        sizes = node.attributes["qkv_hidden_sizes"].as_ints()
        if len(set(sizes)) != 1:
            raise ValueError(f"query, key and value of an attention have {sizes} numbers")
        del node.attributes["qkv_hidden_sizes"]  # equal, as they are without it; with it 8 bits leave the node alone


def _check_bias(program: Any, bias: Any, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Raise ValueError unless the bias of scores is 0 for what attention_mask keeps and too low for what it leaves out.

    Relative positions and sliding windows are such biases too. What it is comes from ONNX Runtime, for these batches.
    """
    import onnx_ir as ir
    import onnxruntime

    part = ir.Model(ir.convenience.extract(program.graph, program.graph.inputs, [bias]), ir_version=program.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    content = ir.to_proto(part).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    for batch in batches:
        (bias_BHLL,) = session.run([bias.name], dict(batch))
        kept_B11L = batch["attention_mask"][:, None, None, :] == 1
        if not np.where(kept_B11L, bias_BHLL == 0, bias_BHLL <= _TOO_LOW).all():
            raise ValueError("an attention whose bias is more than a mask")
