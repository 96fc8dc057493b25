"""`reranker trim`: a model and the texts that it is for -> the same model with the pieces of these texts alone.

    corpus -> counts of pieces -> ids that stay -> tokenizer and embedding cut -> files
           -> each text of the corpus through both tokenizers, a sample of pairs through both models -> the files' name

In: a directory or hub name, and texts. Out: a stock Hugging Face directory, with what was cut in trim.json and in its
card. It appears only if the files that are in it cut every text of the corpus into the same pieces as before (of texts
that use a piece that goes, as `min_frequency` has it, the number is told) and score the sample as the original does.
A model that was trained with prefixes (`data/tokenize.py`) sees texts behind them: each counts with and without.
The fast tokenizer is written alone: a sentencepiece.bpe.model or vocab.txt beside it would have other numbers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reranker.checks import check_at_least
from reranker.config.trimming import TrimConfig
from reranker.data.tokenize import Contract
from reranker.errors import UserError
from reranker.evaluate.regression_gate import FILE as GATE
from reranker.export.directory import check_output, finish, save
from reranker.export.trim_corpus import compare, count
from reranker.export.trim_report import Trimmed, card, table
from reranker.files import atomic_directory, write_json, write_text
from reranker.model.cross_encoder import load_config, load_tokenizer, load_weights
from reranker.model.reranker import Reranker
from reranker.model.trim import cut_embedding, ids_of_the_config
from reranker.model.vocabulary import Described, cut, described, kept_ids, pieces, written
from reranker.prepare.every_text import every_text
from reranker.prepare.translate.languages import LANGUAGES, script

REPORT = "trim.json"
TOLERANCE = 1e-6
"""Of a score, absolute, in float32."""


def trim_command(config: TrimConfig) -> int:
    """`reranker trim`. Raises UserError."""
    trimmed = trim(config)
    print(table(trimmed))
    return 0


def trim(config: TrimConfig) -> Trimmed:
    """Write the trimmed model and tell what became of it. Raises UserError."""
    corpus, output = _check(config), Path(config.output)
    tokenizer = load_tokenizer(config.model, key="model")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("model", f"{config.model} with a {type(tokenizer).__name__} in Python",
                        "a tokenizer with a tokenizer.json", "save it with a fast tokenizer first")  # fmt: skip
    whole = _tokenizer_json(config.model) or backend.to_str()
    tokenization = described(whole, "model")
    _check_file(backend, tokenization, config.model)
    contract = Contract.of_model(load_config(config.model, key="model"))
    # A prefix and its text are cut as one: what its last word and their first become is in neither of them alone.
    prefixes = list(dict.fromkeys(("", contract.query_prefix, contract.passage_prefix)))
    counts = np.max([count(_behind(one, corpus, config), backend, tokenization) for one in prefixes], axis=0)
    model, fresh = load_weights(config.model, None, key="model")
    always = ids_of_the_config(model.config) | set(tokenizer.all_special_ids)
    ids = kept_ids(tokenization, counts, least=config.min_frequency, always=always,
                   characters=config.characters, wanted=_of_languages(config))  # fmt: skip
    before = Size.of(model, len(pieces(tokenization)), whole)
    if ids[-1] >= model.get_input_embeddings().num_embeddings:
        raise UserError("model", f"{config.model}, whose tokenizer has ids beyond the model's embedding",
                        "a tokenizer of this model", "save both together")  # fmt: skip
    cut_embedding(model, ids)
    trimmed_json = written(cut(tokenization, ids))
    with atomic_directory(output) as staging:
        # A head that the checkpoint lacks is not made up here: whoever trains the model draws it.
        weights = {name: tensor for name, tensor in model.state_dict().items() if name not in fresh}
        save(model, tokenizer, staging, weights)
        write_text(staging / "tokenizer.json", trimmed_json)
        own = load_tokenizer(str(staging), key="output").backend_tokenizer
        after = Size.of(model, len(ids), trimmed_json)
        del model
        same, pairs = compare(_behind("", corpus, config), backend, own, ids, config.sample)
        for compared in (same, *(compare(_behind(one, corpus, config), backend, own, ids)[0] for one in prefixes[1:])):
            if compared.wrong:
                found = f"{compared.wrong} texts that the trimmed tokenizer cuts otherwise, as {compared.example}"
                fix = "keep the vocabulary: the tokenizer needs all of it"
                raise UserError("corpus", found, "the pieces of before", fix)
        if not pairs:
            found = f"{config.min_frequency}, with which no text of the corpus keeps its pieces"
            raise UserError("min_frequency", found, "texts to compare", "lower it")
        unseen = None
        if config.unseen:
            unseen, _ = compare(_behind("", [config.unseen], config), backend, own, ids)
        difference = _difference(config.model, staging, pairs)
        trimmed = Trimmed(config.model, list(config.languages), config.min_frequency, asdict(before), asdict(after),
                          same, unseen, len(pairs), difference)  # fmt: skip
        write_json(staging / REPORT, asdict(trimmed))
        if (verdict := Path(config.model) / GATE).is_file():
            shutil.copyfile(verdict, staging / GATE)  # what loses too much is not mended by fewer pieces
        write_text(staging / "README.md", card(trimmed, Path(config.model) / "README.md", output.name))
        finish(staging)
    return trimmed


def _behind(prefix: str, paths: list[str], config: TrimConfig) -> Iterator[str]:
    """Every text of the files, behind the prefix."""
    return (prefix + text for text in every_text(paths, config.reading))


@dataclass(frozen=True)
class Size:
    """Pieces, parameters, bytes of the weights, bytes of the tokenizer.json."""

    pieces: int
    parameters: int
    embedding: int
    weight_bytes: int
    tokenizer_bytes: int

    @classmethod
    def of(cls, model: Any, pieces: int, tokenizer_json: str) -> Size:
        parameters = list(model.parameters())
        return cls(pieces, sum(one.numel() for one in parameters), model.get_input_embeddings().weight.numel(),
                   sum(one.nbytes for one in parameters), len(tokenizer_json.encode()))  # fmt: skip


def _check(config: TrimConfig) -> list[str]:
    """The paths of the corpus. Raises UserError for settings that cannot be."""
    check_at_least([("min_frequency", config.min_frequency, 1), ("sample", config.sample, 1)])
    corpus = [config.corpus] if isinstance(config.corpus, str) else list(config.corpus or [])
    if not corpus or not all(isinstance(path, str) for path in corpus):
        raise UserError("corpus", str(config.corpus), "a path or a list of paths", "say corpus=train.jsonl")
    for code in config.languages:
        if code not in LANGUAGES:
            raise UserError("languages", repr(code), f"ISO 639-1 codes among {', '.join(LANGUAGES)}", "change the code")
    output = Path(config.output)
    if output.resolve() == Path(config.model).resolve():
        raise UserError("output", f"{output}, the model itself", "another directory", "choose another one")
    check_output(output, lambda directory: (directory / REPORT).is_file(), "an earlier trimmed model")
    return corpus


def _of_languages(config: TrimConfig) -> Callable[[str], bool]:
    """Whether a piece stays for its languages' sake.

    Of a language's own script, which no other language that we know is written in (Hangul, Hebrew, Thai), every piece
    stays. A script that languages share (Latin, Cyrillic, Arabic) does not tell them apart: what of it stays is what
    the corpus uses, and of its characters all.
    """
    chosen = [LANGUAGES[code] for code in config.languages]
    others = {one for code, language in LANGUAGES.items() if code not in config.languages for one in language.scripts}
    theirs = {one for language in chosen for one in language.scripts}

    def wanted(text: str) -> bool:
        scripts = {script(letter) for letter in text}
        if len(text) == 1 and not config.characters:
            return scripts <= theirs | {None} and bool(chosen)
        return bool((scripts & theirs) - others) and scripts - {None} <= theirs

    return wanted


def _tokenizer_json(model: str) -> str | None:
    """The file of a directory or hub name: with it in hand the trimmed one has the same scores, digit by digit."""
    from transformers.utils import cached_file

    path = cached_file(model, "tokenizer.json", _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)  # fmt: skip
    return Path(path).read_text("utf-8") if path else None


def _check_file(backend: Any, tokenization: Described, model: str) -> None:
    """Raise UserError where the tokenizer has pieces that its file lacks: a tokenizer_config.json may add some."""
    more = backend.get_vocab(with_added_tokens=True).items() - {
        (text, one) for one, text in pieces(tokenization).items()
    }
    if more:
        piece, number = min(more, key=lambda one: one[1])
        found = (
            f"{model}, whose tokenizer.json lacks {len(more)} of its tokenizer's pieces, {piece!r} ({number}) the first"
        )
        raise UserError("model", found, "a tokenizer.json with all of them",
                        "load it with AutoTokenizer and save it with save_pretrained first")  # fmt: skip


def _difference(model: str, trimmed: Path, pairs: list[tuple[str, str]]) -> float:
    """The largest difference of a score. Raises UserError for one beyond the tolerance."""
    expected, found = (
        Reranker(one, device="cpu", precision="fp32", untrained_head=True, key=key).score_pairs(pairs)
        for one, key in ((model, "model"), (trimmed, "output"))
    )
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:  # written so that NaN is refused
        raise UserError("output", f"scores up to {difference:.2g} from the original's", f"at most {TOLERANCE:g}",
                        "keep the vocabulary, and report it")  # fmt: skip
    return difference
