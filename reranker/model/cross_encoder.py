"""A name or directory -> a stock `AutoModelForSequenceClassification` with one score, and its tokenizer.

In: settings. Out: the model in float32 masters' precision, ready for an engine; `score` turns a micro-batch
into scores_GP. A model without a trained head gets a fresh one, drawn from the seed. Raises UserError for a
name that cannot be loaded.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Any

import torch

from reranker.data.collate import MicroBatch, PackedPairs
from reranker.errors import UserError
from reranker.model.unpad import COUNT_FROM_PADDING, is_packed, packed_inputs
from reranker.progress import without_hub_bars

HEAD_NAMES = ("classifier", "score", "head", "pooler", "out_proj")


def load_config(name: str, revision: str | None = None, key: str = "model.name") -> Any:
    """The Hugging Face config of a model with one score. `key` is named in the error."""
    from transformers import AutoConfig

    directory = Path(name)
    if directory.exists() and not (directory / "config.json").is_file():
        kind = "a directory without config.json" if directory.is_dir() else "a file"
        raise UserError(key, f"{name}, {kind}", "a Hugging Face model directory or hub name", "check the path")
    # One slash or none may be a hub name: BAAI/bge-reranker-large, and xlm-roberta-base from before there were owners.
    if not directory.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(key, f"{name}, which does not exist", "a Hugging Face model directory or hub name",
                        "check the path")  # fmt: skip
    with _told_as_ours(name, key):
        return AutoConfig.from_pretrained(name, revision=revision, num_labels=1)


def positions(config: Any) -> int | None:
    """How many tokens of a pair the model has positions for; None where its config sets no limit.

    The RoBERTa family counts positions from after the padding id: of XLM-RoBERTa's 514, tokens can use 512.
    """
    table: int | None = getattr(config, "max_position_embeddings", None)
    if table is None or config.model_type not in COUNT_FROM_PADDING or config.pad_token_id is None:
        return table
    return table - (config.pad_token_id + 1)


def has_segments(config: Any) -> bool:
    """Whether the model takes segment ids: with one segment (XLM-R, RoBERTa) or none (ModernBERT) it does not."""
    return bool(getattr(config, "type_vocab_size", 0) > 1)


def load_tokenizer(name: str, revision: str | None = None, key: str = "model.name") -> Any:
    from transformers import AutoTokenizer

    load_config(name, revision, key)
    with _told_as_ours(name, key):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    # Without the files transformers 5 makes a tokenizer of special tokens only, to which every text is unknown.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(key, f"{name} without the files of its tokenizer", "a tokenizer.json beside the weights",
                        "save the tokenizer there as well")  # fmt: skip
    return tokenizer


def load_model(
    name: str,
    *,
    revision: str | None = None,
    seed: int = 0,
    dropout: float | None = None,
    gradient_checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
    key: str = "model.name",
) -> tuple[Any, bool]:
    """(model, whether its score head is freshly drawn).

    `dtype` is explicit, as from_pretrained otherwise keeps the checkpoint's own. `dropout` replaces the
    hidden and attention dropout of the config.
    """
    model, fresh = load_weights(name, dtype, revision=revision, seed=seed, dropout=dropout, key=key)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, bool(fresh)


def load_weights(
    name: str,
    dtype: torch.dtype | None,
    *,
    revision: str | None = None,
    seed: int = 0,
    dropout: float | None = None,
    key: str = "model.name",
) -> tuple[Any, list[str]]:
    """(model, names of the weights of its score head that the checkpoint lacks). `dtype` None: the checkpoint's own."""
    from transformers import AutoModelForSequenceClassification

    config = load_config(name, revision, key)
    set_dropout(config, dropout)
    with _told_as_ours(name, key), _seeded(seed):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, revision=revision, config=config, dtype=dtype or "auto", output_loading_info=True
        )
    fresh = sorted(info["missing_keys"])
    body = [weight for weight in fresh if not any(part in HEAD_NAMES for part in weight.split("."))]
    if body:
        raise UserError(key, f"{name} without {len(body)} weights of its encoder, {body[0]} the first",
                        "a whole checkpoint", "check how it was saved")  # fmt: skip
    return model, fresh


def set_dropout(config: Any, dropout: float | None) -> None:
    """Replace the dropout of a Hugging Face config, whatever its model calls it; None keeps the model's own."""
    if dropout is None:
        return
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
                  "attention_dropout", "mlp_dropout", "embedding_dropout"):  # fmt: skip
        if hasattr(config, field):
            setattr(config, field, dropout)


def autocast(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """From now on the model multiplies in `dtype` on this device; its weights and what it adds up stay in float32."""
    # Inside of the model, so that every caller has it, and DeepSpeed, which switches off a GPU's around its engine.
    model.forward = MethodType(torch.autocast(device.type, dtype)(type(model).forward), model)


def score(model: Any, batch: MicroBatch) -> torch.Tensor:
    """scores_GP of a micro-batch, in the precision that the model multiplies in."""
    return score_pairs(model, batch.packed).view(batch.present_GP.shape)


def score_pairs(model: Any, pairs: PackedPairs) -> torch.Tensor:
    """A raw score (logit) for each of N pairs, from the forward that the model runs: packed or padded."""
    config = _config(model)
    if is_packed(config):
        return model(**packed_inputs(config, pairs)).logits[:, 0]
    ids_NL, types_NL, mask_NL = pairs.padded()
    inputs = {"input_ids": ids_NL, "attention_mask": mask_NL}
    if has_segments(config):
        inputs["token_type_ids"] = types_NL
    return model(**inputs).logits[:, 0]


def _config(model: Any) -> Any:
    return model.config if hasattr(model.config, "hidden_size") else model.module.config


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _told_as_ours(name: str, key: str) -> Iterator[None]:
    """Loading errors of the hub libraries as one line; their progress bars and reports stay away."""
    from safetensors import SafetensorError  # a RuntimeError it is not: weights cut short, for example
    from transformers.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    client = logging.getLogger("huggingface_hub")  # tells of every retry where there is no network
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        with without_hub_bars():
            yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()).split(". ")[0]
        found = f"{name}, which cannot be loaded ({reason[:160]})"
        raise UserError(
            key, found, "a Hugging Face encoder directory or hub name", "check the name and the network"
        ) from error
    finally:
        client.setLevel(level)
        hub_logging.set_verbosity(verbosity)
