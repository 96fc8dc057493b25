"""A model whose vocabulary is cut: the rows of its embedding that stay, and a config that says so.

In: a Hugging Face encoder and the ids that stay. Out: the same model with these rows, to the bit, in this order.
Positions stay what they were: models that count them from the padding id keep that id (`ids_of_the_config`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from reranker.model.unpad import COUNT_FROM_PADDING


def ids_of_the_config(config: Any) -> set[int]:
    """Ids that must stay: those that the config names, and all before the padding where positions count from it."""
    named = {number for _, number in _named(config)}
    if config.model_type in COUNT_FROM_PADDING and config.pad_token_id is not None:
        named.update(range(config.pad_token_id))
    return named


def cut_embedding(model: Any, ids: Sequence[int]) -> None:
    """Keep the rows `ids` of the model's input embedding, in this order, and set the config to it."""
    table = model.get_input_embeddings()
    new = {old: number for number, old in enumerate(ids)}
    padding = None if table.padding_idx is None else new.get(table.padding_idx)
    rows = table.weight.detach()[torch.tensor(ids)]
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=padding))
    for key, number in _named(model.config):
        setattr(model.config, key, new.get(number))  # some name what their tokenizer lacks
    model.config.vocab_size = len(ids)


def _named(config: Any) -> list[tuple[str, int]]:
    """(key, id) of the tokens that a config names."""
    values = config.to_dict().items()
    return [(key, value) for key, value in values if key.endswith("_token_id") and isinstance(value, int)]
