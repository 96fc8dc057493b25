"""Query and passage -> the token ids of a pair, alike in training, scoring and export.

In: texts. Out: `Pair`s, special tokens included, made by the contract (`Contract`): what is put before each text, and
how a pair is cut. An exported model carries it in its config.json, so that everyone who scores with it shows the
model what training did. The cutting is the tokenizers library's own, so it equals `tokenizer(query, passage,
truncation=...)`; a prefix and its text are tokenized as one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from reranker.errors import UserError

CONFIG_KEY = "reranker"
"""Key of the contract in an exported config.json."""
_LOT = 1 << 20
"""Characters of uncut passages that are encoded at a time: an encoding takes some 150 bytes a token."""


@dataclass(frozen=True)
class Contract:
    """How a pair is made of two texts, and cut.

    Attributes:
        max_length: tokens of a pair at most, special tokens included.
        query_max_length: tokens of the query at most, special tokens not included; None: no limit of its
            own, except that `only_second` never cuts the query otherwise and so keeps it to three quarters
            of max_length (as FlagEmbedding's FlagReranker does).
        truncation: "longest_first" or "only_second".
        passage_max_length: tokens of the passage at most, special tokens not included; None: no limit of its own.
        query_prefix, passage_prefix: stand before every query and every passage as they are, with no blank of ours
            between; they are counted and cut with their texts. A group's own prompt stands behind query_prefix.
    """

    max_length: int = 512
    query_max_length: int | None = None
    truncation: str = "longest_first"
    passage_max_length: int | None = None
    query_prefix: str = ""
    passage_prefix: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Contract:
        """The contract in a training's `data` settings, or in what a model carries; what lacks has its default."""
        return cls(**{key: settings[key] for key in cls.__dataclass_fields__ if key in settings})

    @classmethod
    def of_model(cls, config: Any, max_length: int | None = None) -> Contract:
        """The contract in a model's config, or the default one; `max_length` overrides its length."""
        contract = cls.of_settings(getattr(config, CONFIG_KEY, None) or {})
        return dataclasses.replace(contract, max_length=max_length) if max_length else contract


@dataclass(frozen=True)
class Pair:
    """Token ids and segment ids of one query with one passage, both of the same length."""

    ids: list[int]
    types: list[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Uncut:
    """A pair as the contract cuts it, beside all that its passage has.

    Attributes:
        pair: what `encode` makes.
        start, end: where the passage's tokens stand in the pair, without the special ones.
        tokens_T: ids of all tokens of the passage (int32), passage_prefix included.
        prefix: how many of them, from the first, are the prefix and nothing else.
    """

    pair: Pair
    start: int
    end: int
    tokens_T: np.ndarray
    prefix: int


class PairTokenizer:
    """Encodes queries with their passages under a contract.

    `tokenizer` is a Hugging Face tokenizer backed by the tokenizers library; `section` stands before the keys that
    errors name. Raises UserError for another tokenizer, and for prefixes that leave a long pair no token of a text.
    """

    def __init__(self, tokenizer: Any, contract: Contract, section: str = "") -> None:
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
        self._check_prefixes(section)

    @property
    def fingerprint(self) -> str:
        """Changes when the tokens of a text may; not with the contract."""
        return hashlib.sha256(self._text.to_str().encode("utf-8")).hexdigest()[:16]

    @property
    def lengths_fingerprint(self) -> str:
        """Changes when the lengths of the texts of shards may: with the tokenizer, and with what stands before them."""
        prefixes = [self.contract.query_prefix, self.contract.passage_prefix]
        if not any(prefixes):
            return self.fingerprint
        # A prefix and its text are tokenized as one: the lengths of the bare texts do not tell those of both together.
        return hashlib.sha256(json.dumps([self.fingerprint, *prefixes]).encode("utf-8")).hexdigest()[:16]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself, without special tokens and prefixes."""
        return [len(encoding.ids) for encoding in self._text.encode_batch_fast(list(texts), add_special_tokens=False)]

    def pair_length(self, query: int, passage: int) -> int:
        """Tokens of the pair that `encode` makes of texts of these lengths, prefixes included in both."""
        if self._query_limit is not None:
            query = min(query, self._query_limit)
        if self.contract.passage_max_length is not None:
            passage = min(passage, self.contract.passage_max_length)
        return min(query + passage + self.special, self.contract.max_length)

    def encode(self, query: str, passages: Sequence[str]) -> list[Pair]:
        """One `Pair` for each passage."""
        texts = [self.contract.query_prefix + query, *self._prefixed(passages)]
        first, *others = self._text.encode_batch_fast(texts, add_special_tokens=False)
        self._cut_query(first)
        encodings = [self._joined(first, other) for other in others]
        return [Pair(encoding.ids, encoding.type_ids) for encoding in encodings]

    def encode_uncut(self, query: str, passages: Sequence[str]) -> Iterator[Uncut]:
        """The same pairs, each with all tokens of its passage, one after another."""
        first = self._text.encode(self.contract.query_prefix + query, add_special_tokens=False)
        self._cut_query(first)
        border = len(self.contract.passage_prefix)
        # Where the prefix ends is told by the tokens' offsets, which take time and memory.
        encode = self._text.encode_batch if border else self._text.encode_batch_fast
        for lot in _lots(passages):
            for other in encode(self._prefixed(lot), add_special_tokens=False):
                tokens_T, prefix = np.array(other.ids, dtype=np.int32), 0
                while border and (place := other.token_to_chars(prefix)) and place[1] <= border:
                    prefix += 1
                encoding = self._joined(first, other)
                places = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
                start, end = (places[0], places[-1] + 1) if places else (0, 0)
                yield Uncut(Pair(encoding.ids, encoding.type_ids), start, end, tokens_T, prefix)

    def _prefixed(self, passages: Sequence[str]) -> list[str]:
        return [self.contract.passage_prefix + passage for passage in passages]

    def _cut_query(self, query: Any) -> None:
        if self._query_limit is not None:
            query.truncate(self._query_limit)

    def _joined(self, query: Any, passage: Any) -> Any:
        """The encoding of a pair; cuts the passage in its place."""
        if self.contract.passage_max_length is not None:
            passage.truncate(self.contract.passage_max_length)
        return self._pair.post_process(query, passage, add_special_tokens=True)

    def _check_prefixes(self, section: str) -> None:
        """Raise UserError for a prefix that fills what the contract leaves of its text where both are long."""
        contract, room = self.contract, self.contract.max_length - self.special
        query = room if self._query_limit is None else min(self._query_limit, room)
        passage = room - query
        if contract.truncation == "longest_first":
            query, passage = min(query, room // 2), max(passage, room // 2)
        if contract.passage_max_length is not None:
            passage = min(passage, contract.passage_max_length)
        for key, prefix, left in (
            ("query_prefix", contract.query_prefix, query), ("passage_prefix", contract.passage_prefix, passage),
        ):  # fmt: skip
            tokens = len(self._text.encode(prefix, add_special_tokens=False).ids)
            if prefix and tokens >= left:
                text = key.removesuffix("_prefix")
                raise UserError(
                    f"{section}{key}", f"{tokens} tokens",
                    f"fewer than the {max(left, 0)} that a {text} has in a long pair",
                    f"shorten it or raise {section}max_length",
                )  # fmt: skip


def _lots(passages: Sequence[str]) -> Iterator[list[str]]:
    """The passages in order, in lists of some million characters; a longer one is a list of its own."""
    ends = itertools.accumulate(map(len, passages))
    for _, lot in itertools.groupby(zip(ends, passages, strict=True), key=lambda one: one[0] // _LOT):
        yield [passage for _, passage in lot]
