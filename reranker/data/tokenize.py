"""Query and passage -> the token ids of a pair, alike in training, scoring and export.

In: texts. Out: `Pair`s, special tokens included, cut by the truncation contract (`Contract`), which an
exported model carries in its config.json, so that everyone who scores with it cuts as training did.
The cutting is the tokenizers library's own, so it equals `tokenizer(query, passage, truncation=...)`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from reranker.errors import UserError

CONFIG_KEY = "reranker"
"""Key of the truncation contract in an exported config.json."""


@dataclass(frozen=True)
class Contract:
    """How a pair is cut.

    Attributes:
        max_length: tokens of a pair at most, special tokens included.
        query_max_length: tokens of the query at most, special tokens not included; None: no limit of its
            own, except that `only_second` never cuts the query otherwise and so keeps it to three quarters
            of max_length (as FlagEmbedding's FlagReranker does).
        truncation: "longest_first" or "only_second".
    """

    max_length: int = 512
    query_max_length: int | None = None
    truncation: str = "longest_first"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of_model(cls, config: Any, max_length: int | None = None) -> Contract:
        """The contract in a model's config, or the default one; `max_length` overrides its length."""
        stored = getattr(config, CONFIG_KEY, None) or {}
        contract = cls(**{key: stored[key] for key in cls.__dataclass_fields__ if key in stored})
        return dataclasses.replace(contract, max_length=max_length) if max_length else contract


@dataclass(frozen=True)
class Pair:
    """Token ids and segment ids of one query with one passage, both of the same length."""

    ids: list[int]
    types: list[int]

    def __len__(self) -> int:
        return len(self.ids)


class PairTokenizer:
    """Encodes queries with their passages under a contract.

    `tokenizer` is a Hugging Face tokenizer backed by the tokenizers library. Raises UserError if it is not.
    """

    def __init__(self, tokenizer: Any, contract: Contract) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                "model.name", f"a {type(tokenizer).__name__} in Python", "a tokenizer with a tokenizer.json",
                "save it with a fast tokenizer first",
            )  # fmt: skip
        self.contract = contract
        self.pad_id: int = tokenizer.pad_token_id
        self.fingerprint_text: str = backend.to_str()
        self._text = Tokenizer.from_str(self.fingerprint_text)
        self._text.no_truncation()
        self._text.no_padding()
        self._pair = Tokenizer.from_str(self.fingerprint_text)
        self._pair.no_padding()
        self._pair.enable_truncation(contract.max_length, strategy=contract.truncation)
        self.special = self._pair.num_special_tokens_to_add(True)
        self._query_limit = contract.query_max_length
        if contract.truncation == "only_second":
            # The query is never cut afterwards: it must leave the passage a token beside the special ones.
            room = contract.max_length - self.special - 1
            self._query_limit = min(self._query_limit or contract.max_length * 3 // 4, room)

    @property
    def fingerprint(self) -> str:
        """Changes when the tokens of a text may; not with the truncation contract."""
        return hashlib.sha256(self._text.to_str().encode("utf-8")).hexdigest()[:16]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself, without special tokens."""
        return [len(encoding.ids) for encoding in self._text.encode_batch_fast(list(texts), add_special_tokens=False)]

    def pair_length(self, query: int, passage: int) -> int:
        """Tokens of the pair that `encode` makes of texts of these lengths."""
        if self._query_limit is not None:
            query = min(query, self._query_limit)
        return min(query + passage + self.special, self.contract.max_length)

    def encode(self, query: str, passages: Sequence[str]) -> list[Pair]:
        """One `Pair` for each passage."""
        first, *others = self._text.encode_batch_fast([query, *passages], add_special_tokens=False)
        if self._query_limit is not None:
            first.truncate(self._query_limit)
        encodings = [self._pair.post_process(first, other, add_special_tokens=True) for other in others]
        return [Pair(encoding.ids, encoding.type_ids) for encoding in encodings]
