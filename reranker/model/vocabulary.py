"""Which pieces of a tokenizer stay, and its tokenizer.json with these alone. Pure functions.

In: a tokenizer.json of the models Unigram (XLM-R's sentencepiece), BPE (RoBERTa's bytes) or WordPiece (BERT), and how
often each piece was used. Out: ids that stay, in their order, and the tokenizer of these pieces, numbered anew.

A text whose pieces all stay is cut into the same pieces as before:

    Unigram    the best path has lost none of its pieces and no rival is new; the piece of the least score stays, as
               the price of an unknown character is counted from it
    WordPiece  the longest piece at each place has stayed and no longer one is new; a word that was unknown stays so,
               as the pieces in front of the place where it fails stay as well
    BPE        with a piece all merges stay that make it, and their parts: each merge that was done can be done, in
               the same order, and none is new

Any other text is cut into other pieces that have stayed, mostly smaller ones, down to single characters or bytes. A
character that no piece has by itself, but a longer one that goes, becomes unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from reranker.errors import UserError

MODELS = ("Unigram", "BPE", "WordPiece")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WORD_START = "▁"

Described = Mapping[str, Any]
"""A tokenizer.json, decoded."""


def described(tokenizer_json: str, key: str) -> dict[str, Any]:
    """The tokenizer.json as a value. Raises UserError, which names `key`, for a model that is not known here."""
    value: dict[str, Any] = json.loads(tokenizer_json)
    model = value["model"]
    # Files of before 2020 do not name the model.
    kind = model.setdefault("type", "BPE" if "merges" in model else "WordPiece" if isinstance(model["vocab"], dict)
                            else "Unigram")  # fmt: skip
    if kind not in MODELS:
        raise UserError(key, f"a tokenizer of the kind {kind}", f"one of {', '.join(MODELS)}", "keep its vocabulary")
    return value


def written(tokenizer: Described) -> str:
    """The text of a tokenizer.json, as the tokenizers library writes it.

    It is not handed through that library: its reader is not exact, and every turn changes last digits of scores.
    """
    return json.dumps(tokenizer, ensure_ascii=False, indent=2)


def pieces(tokenizer: Described) -> dict[int, str]:
    """{id: piece}, those added to the vocabulary included, in the order of the ids."""
    vocabulary = tokenizer["model"]["vocab"]
    found = {number: piece for piece, number in vocabulary.items()} if isinstance(vocabulary, dict) else {
        number: piece for number, (piece, _) in enumerate(vocabulary)
    }  # fmt: skip
    found |= {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    return dict(sorted(found.items()))


def kept_ids(
    tokenizer: Described,
    counts: np.ndarray,
    *,
    least: int = 1,
    always: Iterable[int] = (),
    characters: bool = True,
    wanted: Callable[[str], bool] = lambda text: False,
) -> list[int]:
    """The ids that stay, in their order.

    Args:
        counts: how often each id was used.
        least: how often a piece must have been used.
        always: ids that stay whatever their use: those that the model's config names, for example.
        characters: whether every piece of a single character stays.
        wanted: whether a piece stays, by its text without the marks of a word's beginning or end.

    The added tokens stay, as do those that the post-processor or the padding name, and the pieces that stand for bytes.
    Raises UserError for one of these that is no piece.
    """
    model = tokenizer["model"]
    every = pieces(tokenizer)
    kept = {number for number in np.flatnonzero(counts >= max(least, 1)).tolist() if number in every}
    kept.update(number for number in always if number in every)
    kept.update(token["id"] for token in tokenizer["added_tokens"])
    for number in _named(tokenizer):
        if number not in every:
            raise UserError("model", f"a tokenizer.json that names the id {number}, of no piece", "ids of its pieces",
                            "mend its post_processor or padding")  # fmt: skip
        kept.add(number)
    numbers = {piece: number for number, piece in every.items()}
    unknown = model.get("unk_token")
    kept.update(number for number in (model.get("unk_id"), numbers.get(unknown)) if number is not None)
    text_of, of_bytes = _texts(tokenizer), is_of_bytes(tokenizer)
    for number, piece in every.items():
        if number not in kept:
            text = text_of(piece)
            single = len(piece) == 1 or (text is not None and len(text) <= 1)
            # Without one of the 256 the texts that hold it would lose it: there may be no unknown piece.
            byte = _BYTE.fullmatch(piece) or (of_bytes and len(piece) == 1)
            if byte or (single and characters) or (text and wanted(text)):
                kept.add(number)
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        kept.add(min(range(len(scores)), key=scores.__getitem__))
    if model["type"] == "BPE":
        kept = _closed(model, kept)
    return sorted(kept)


def cut(tokenizer: Described, ids: Sequence[int]) -> dict[str, Any]:
    """The tokenizer.json of the pieces `ids` alone, the first of which gets the number 0."""
    new = {old: number for number, old in enumerate(ids)}
    model = dict(tokenizer["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        by_number = sorted((new[number], piece) for piece, number in vocabulary.items() if number in new)
        model["vocab"] = {piece: number for number, piece in by_number}
    else:
        model["vocab"] = [vocabulary[number] for number in ids if number < len(vocabulary)]
    if model.get("unk_id") is not None:
        model["unk_id"] = new[model["unk_id"]]
    if "merges" in model:
        stay = model["vocab"]
        model["merges"] = [merge for merge in model["merges"] if all(piece in stay for piece in _merged(model, merge))]
    added = [{**token, "id": new[token["id"]]} for token in tokenizer["added_tokens"]]
    result = {**tokenizer, "model": model, "added_tokens": added}
    if result.get("post_processor"):
        result["post_processor"] = _renumbered(result["post_processor"], new)
    if result.get("padding"):
        result["padding"] = {**result["padding"], "pad_id": new[result["padding"]["pad_id"]]}
    return result


def read_before_unknown(tokenizer: Described, words: Iterable[str]) -> list[int]:
    """Ids of WordPiece that are read of unknown words in front of the place where they fail: they keep them unknown.

    With a shorter piece in their place such a word might come to an end.
    """
    model = tokenizer["model"]
    vocabulary, prefix = model["vocab"], model["continuing_subword_prefix"]
    found: list[int] = []
    for word in words:
        read: list[int] = []
        start = 0
        while start < len(word) <= model["max_input_chars_per_word"]:
            starts = prefix if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if starts + word[start:end] in vocabulary), None)
            if end is None:
                found += read
                break
            read.append(vocabulary[starts + word[start:end]])
            start = end
    return found


def is_of_bytes(tokenizer: Described) -> bool:
    """Whether the pieces are of bytes, each written as a letter, as GPT-2 writes them."""
    kinds = {entry.get("type") for entry in _entries([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")])}
    return "ByteLevel" in kinds


def _texts(tokenizer: Described) -> Callable[[str], str | None]:
    """The text of a piece without the marks of a word's beginning and end; None for a part of a character."""
    if is_of_bytes(tokenizer):
        bytes_of = {letter: byte for byte, letter in _letters_of_bytes().items()}

        def decoded(piece: str) -> str | None:
            try:
                return bytes(bytes_of[letter] for letter in piece).decode("utf-8").strip(" ")
            except (KeyError, UnicodeDecodeError):
                return None

        return decoded
    model = tokenizer["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    return lambda piece: piece.removeprefix(prefix).removesuffix(suffix).removeprefix(_WORD_START)


def _letters_of_bytes() -> dict[int, str]:
    """GPT-2's letter of each byte: itself where that can be printed, else one from 256 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _closed(model: Mapping[str, Any], ids: Collection[int]) -> set[int]:
    """`ids` with the parts of every merge that makes one of them, and their parts."""
    numbers = model["vocab"]
    parts: dict[int, list[int]] = {}
    for merge in model["merges"]:
        left, right, made = _merged(model, merge)
        if left in numbers and right in numbers and made in numbers:
            parts.setdefault(numbers[made], []).extend((numbers[left], numbers[right]))
    kept, todo = set(ids), list(ids)
    while todo:
        for part in parts.get(todo.pop(), ()):
            if part not in kept:
                kept.add(part)
                todo.append(part)
    return kept


def _merged(model: Mapping[str, Any], merge: str | Sequence[str]) -> tuple[str, str, str]:
    """(left, right, what they make) of a merge, which older files write as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _named(tokenizer: Described) -> set[int]:
    """Ids that the post-processor and the padding name."""
    found: set[int] = set()
    for entry in _entries(tokenizer.get("post_processor")):
        found.update(entry[key][1] for key in ("sep", "cls") if key in entry)
        found.update(number for token in (entry.get("special_tokens") or {}).values() for number in token["ids"])
    if tokenizer.get("padding"):
        found.add(tokenizer["padding"]["pad_id"])
    return found


def _renumbered(processor: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """A post-processor whose special tokens have their new ids."""
    result = dict(processor)
    if "processors" in result:
        result["processors"] = [_renumbered(one, new) for one in result["processors"]]
    for key in ("sep", "cls"):  # of BertProcessing and RobertaProcessing
        if key in result:
            token, number = result[key]
            result[key] = [token, new[number]]
    if "special_tokens" in result:  # of TemplateProcessing
        result["special_tokens"] = {name: {**token, "ids": [new[number] for number in token["ids"]]}
                                    for name, token in result["special_tokens"].items()}  # fmt: skip
    return result


def _entries(value: Any) -> Iterable[Mapping[str, Any]]:
    """Every object within a value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _entries(one)
