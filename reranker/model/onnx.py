"""An ONNX file at work: query and passages -> raw scores, by ONNX Runtime on the CPU.

In: the file of `reranker export`, or any that takes input_ids, attention_mask and perhaps token_type_ids, each of
(batch, sequence), and gives one number a pair; the tokenizer and config.json that belong to it. Out: scores in float32.
Pairs are cut by the truncation contract in config.json. Batches are padded. A file in 8 bits quantises what goes into
a layer by the largest value of the whole batch: its scores depend a little on the batch that a pair is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from reranker.data.collate import pack_pairs
from reranker.data.tokenize import Pair, PairTokenizer
from reranker.errors import UserError, shorten
from reranker.model.cross_encoder import load_config, load_tokenizer
from reranker.model.reranker import batches_by_tokens, contract_of, encode_pairs
from reranker.model.windows import Whole

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxReranker(Whole):
    """Scores pairs with an ONNX file.

    Args:
        file: the file; weights beside it are found by ONNX Runtime.
        tokenizer: directory or hub name of the tokenizer and config.json.
        max_length: tokens of a pair at most; None: what the config says.
        batch_tokens: tokens of a batch at most, padding included; one pair always fits.
        threads: of the products; 0: as many as ONNX Runtime takes to be right.
        key: what errors call the settings.

    Raises UserError for a file that ONNX Runtime cannot run, or that is no reranker.
    """

    def __init__(
        self, file: Path, tokenizer: str, *, max_length: int | None = None, batch_tokens: int = 4096, threads: int = 0,
        key: str = "onnx",
    ) -> None:  # fmt: skip
        self.path, self.batch_tokens = str(file), batch_tokens
        config = load_config(tokenizer, key=f"{key}.tokenizer")
        contract = contract_of(config, max_length, f"{key}.max_length")
        self.tokenizer = PairTokenizer(load_tokenizer(tokenizer, key=f"{key}.tokenizer"), contract)
        try:
            self._session = session_of(file, threads)
        except Exception as error:  # ONNX Runtime's errors have no class in common
            found = f"{file}, which onnxruntime {version('onnxruntime')} cannot run ({shorten(error, 160)})"
            raise UserError(f"{key}.model", found, "an ONNX file", "export it again") from None
        names = [one.name for one in self._session.get_inputs()]
        shapes = [tuple(one.shape) for one in self._session.get_outputs()]
        if not set(names) <= set(INPUTS) or len(shapes) != 1 or shapes[0][1:] not in ((), (1,)):
            raise UserError(f"{key}.model", f"{file}, which takes {', '.join(names)} and gives {shapes}",
                            f"{', '.join(INPUTS)}, and one number a pair", "export a reranker")  # fmt: skip

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """The tokens of each pair."""
        return encode_pairs(self.tokenizer, pairs)

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of pairs of these lengths in the batches that they are scored in."""
        return batches_by_tokens(lengths, self.batch_tokens, packed=False)

    def forward(self, batch: Sequence[Pair]) -> np.ndarray:
        """scores_N (float32) of one batch."""
        return onnx_scores(self._session, batch, self.tokenizer.pad_id)


def session_of(path: Path, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU; 0 threads: as many as it takes to be right."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads  # 3: errors
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnx_scores(session: Any, batch: Sequence[Pair], pad_id: int) -> np.ndarray:
    """scores_N (float32) of N pairs, padded to the longest."""
    ids_NL, types_NL, mask_NL = pack_pairs(batch, pad_id).padded()
    inputs = {"input_ids": ids_NL, "attention_mask": mask_NL.long(), "token_type_ids": types_NL}
    (scores_N1,) = session.run(None, {one.name: inputs[one.name].numpy() for one in session.get_inputs()})
    scores_N: np.ndarray = scores_N1.reshape(len(batch))
    return scores_N
