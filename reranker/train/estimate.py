"""What a training will take, before it starts: devices, batch arithmetic, steps, parameters, memory.

Pure arithmetic on settings and sizes; the model's weights are not loaded. Memory is an estimate: states by
the sizes that ZeRO keeps (Rajbhandari et al., 2020), activations by Korthikanti et al. (2022) without the
attention matrix, which fused attention never stores.
"""

from __future__ import annotations

from typing import Any

import torch

from reranker.config.common import BatchPolicy, Precision
from reranker.model.cross_encoder import load_config
from reranker.train.distributed import Ranks, device_name
from reranker.train.job import Job

GIB = 2**30


def state_bytes(parameters: int, precision: Precision, stage: int, world: int) -> dict[str, float]:
    """Bytes on each rank for weights, gradients and optimizer (masters and two moments in fp32).

    Stage 0 in fp32 has no masters of its own. Gradients are accumulated in fp32.
    """
    weights = parameters * (4.0 if precision is Precision.fp32 else 2.0)
    gradients = parameters * 4.0
    optimizer = parameters * (8.0 if stage == 0 else 12.0)
    return {
        "weights": weights / (world if stage >= 3 else 1),
        "gradients": gradients / (world if stage >= 2 else 1),
        "optimizer": optimizer / (world if stage >= 1 else 1),
    }


def activation_bytes(config: Any, pairs: int, length: int, precision: Precision, checkpointing: bool) -> float:
    """Bytes of a micro-batch's activations: 34 values of 16 bits a token, layer and hidden unit at most."""
    width = 2.0 if precision is Precision.fp32 else 1.0
    layers = getattr(config, "num_hidden_layers", 0)
    hidden = getattr(config, "hidden_size", 0)
    a_layer = 34.0 * pairs * length * hidden * width
    # With checkpointing each layer keeps its input (2 bytes) and one layer at a time is whole.
    return a_layer + layers * 2.0 * pairs * length * hidden * width if checkpointing else layers * a_layer


def count_parameters(config: Any) -> tuple[int, int]:
    """(all parameters, those of the token embedding) of a sequence classification model."""
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    embedding = model.get_input_embeddings()
    return sum(parameter.numel() for parameter in model.parameters()), embedding.weight.numel()


def report(job: Job, ranks: Ranks) -> str:
    """The dry run's text. Every rank need not call this: there are no collectives."""
    config, sources = job.config, job.data.sources
    model = load_config(config.model.name, config.model.revision)
    parameters, embedding = count_parameters(model)
    # Autocast's copies of the matrices are in neither: they are less than what is counted too much for its activations.
    kept = Precision.fp32 if job.arithmetic.autocast else job.precision
    states = state_bytes(parameters, kept, job.stage, ranks.world)
    host = [f"checkpoints {12.0 * parameters / ranks.world / GIB:.2f} GiB while one is written"]
    if config.deepspeed.offload:
        host.insert(0, f"optimizer {states.pop('optimizer') / GIB:.2f} GiB")
    batch, data = config.batch, config.data
    if batch.policy is BatchPolicy.tokens:
        pairs, length = max(data.group_size, (job.tokens or 0) // data.max_length), data.max_length
        most = f"at most {job.tokens:,} tokens" if job.tokens else "as many tokens as will fit"
        made = f"micro-batches of {most} per rank on {ranks.world} ranks"
    else:
        pairs, length = batch.per_gpu * data.group_size, data.max_length
        each = batch.groups // (batch.per_gpu * ranks.world)
        made = f"{batch.per_gpu} per rank x {ranks.world} ranks x {each} micro-batches"
    if batch.chunk_tokens is not None:
        pairs = min(pairs, max(1, batch.chunk_tokens // length))
        made += f", in chunks of at most {batch.chunk_tokens:,} tokens"
    least = "at least" if batch.policy is BatchPolicy.tokens and job.tokens is None else "about"
    activations = activation_bytes(model, pairs, length, kept, config.model.gradient_checkpointing)
    seen = min(config.train.epochs * job.data.positions, job.steps * batch.groups)
    rows = [
        ("devices", f"{ranks.world} x {device_name(ranks.device)}"),
        ("precision", f"{job.arithmetic.told}, ZeRO stage {job.stage}"),
    ]
    for source, share in zip(sources, job.data.mixture.shares, strict=True):
        packed = f"{source.manifest.groups:,} groups in {len(source.manifest.shards)} shards"
        taken = f"{source.name}: {packed}, {share.positions:,} an epoch" if source.name else packed
        rows.append(("data", f"{taken}, {data.group_size} passages each"))
    if job.set_names:
        rows.append(("evaluation sets", f"{', '.join(job.set_names)}: {job.evaluator.sets.queries:,} queries"))
    if job.guards is not None:
        guarded = f"{', '.join(job.guards.names)}: {job.guards.queries:,} queries"
        rows.append(("gate", f"{guarded}, at most {config.gate.max_drop:g} {config.gate.metric} may be lost on each"))
    rows += [
        ("batch", f"{batch.groups} groups a step = {made}"),
        ("forward", "packed, no padding" if job.packed else "padded to the longest pair of a micro-batch"),
        ("steps", f"{job.steps:,}, {seen:,} groups, {seen * data.group_size:,} pairs"),
        ("parameters", f"{parameters / 1e6:.1f}M, of which {embedding / 1e6:.1f}M token embeddings"),
        ("memory per rank", ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in states.items())),
        ("", f"activations up to {activations / GIB:.2f} GiB ({pairs} pairs of {length} tokens)"),
        ("", f"of the machine's memory: {', '.join(host)}"),
        ("", f"{least} {(sum(states.values()) + activations) / GIB:.2f} GiB in all (an estimate)"),
    ]
    return "dry run: nothing is trained\n" + "\n".join(f"  {name:16s} {value}" for name, value in rows)
