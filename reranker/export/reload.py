"""A directory that was just written, loaded again as any user loads it: it must score as the model that is in memory.

In: the model with the weights as they were rounded, in float32, its tokenizer and contract, and the directory. Out:
nothing, or a UserError: whatever the type on the disk, its scores are those of the rounded weights to 1e-5. The pairs
are of both scripts that the demo knows, and such as the contract cuts in the passage and in the query.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from reranker.data.collate import pack_pairs
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.model.cross_encoder import score_pairs
from reranker.model.reranker import Reranker

TOLERANCE = 1e-5
"""Of a score, absolute, in float32."""
_QUERY, _PASSAGE = "파이썬에서 리스트를 정렬하는 방법은?", "list.sort() sorts a list in place. 튜플은 바꿀 수 없다."


def check_reload(model: Any, tokenizer: Any, contract: Contract, directory: Path) -> None:
    """Raise UserError if `directory` does not reproduce the scores of `model`, which is in float32 and eval mode."""
    long = contract.max_length // 8 + 1  # each repetition has eight tokens or more
    pairs = [(_QUERY, _PASSAGE), (_PASSAGE, _QUERY), (_QUERY, _PASSAGE * long), (_QUERY * long, _PASSAGE * long)]
    encoder = PairTokenizer(tokenizer, contract)
    encoded = [encoder.encode(query, [passage])[0] for query, passage in pairs]
    with torch.inference_mode():
        expected = [score_pairs(model, pack_pairs([pair], encoder.pad_id)).item() for pair in encoded]
    loaded = Reranker(directory, device="cpu", precision="fp32", packing="padded", key="output")
    scores = [loaded.score(query, [passage])[0] for query, passage in pairs]
    difference = float(np.abs(np.array(scores) - np.array(expected)).max())
    if not difference <= TOLERANCE:  # written so that NaN is refused
        found = f"a saved model whose scores are up to {difference:.2g} from those of its weights"
        fix = "export again; if it stays, try another version of transformers"
        raise UserError("output", found, f"at most {TOLERANCE:g}", fix)
