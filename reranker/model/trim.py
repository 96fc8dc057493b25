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
    named = {number for _, value in _named(config) for number in (value if isinstance(value, list) else [value])}
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
    for key, value in _named(model.config):  # some name what their tokenizer lacks
        several = isinstance(value, list)
        setattr(model.config, key, [new[one] for one in value if one in new] or None if several else new.get(value))
    model.config.vocab_size = len(ids)


def _named(config: Any) -> list[tuple[str, Any]]:
    """(key, id or list of ids) of the tokens that a config names."""
    found = [(key, list(value) if isinstance(value, (list, tuple)) else value)
             for key, value in config.to_dict().items() if key.endswith("_token_id")]  # fmt: skip
    return [(key, value) for key, value in found if isinstance(value, (int, list))]
