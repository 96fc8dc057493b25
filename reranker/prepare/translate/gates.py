"""Quality gates: what a translation must keep of its source.

In: a source text and its translation. Out: the first gate that refuses it, as `"<gate>: <detail>"`, or None. Each gate
is a pure function of the two texts and the settings, in one table; the settings switch each off. `similarity` needs
models and looks at batches: `similarity.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from reranker.config.gates import GatesConfig
from reranker.errors import UserError, shorten
from reranker.prepare.translate.languages import Language, language, script
from reranker.prepare.translate.prose import CODE, PLACEHOLDER, URL, prose
from reranker.prepare.translate.quantities import lost_numbers
from reranker.prepare.translate.similarity import Similarity

GATES = (
    "empty", "error", "untranslated", "length", "numbers", "urls", "code", "placeholders", "repetition", "language",
    "similarity",
)  # fmt: skip
"""The names of the gates, in the order in which they are asked."""

_WORD = re.compile(r"\w+")
_SEQUENCE = 6
_TOLD = 100
"""Characters that are told of what is lost."""
_LOOP = re.compile(r"(.{4,60}?)\1{3,}", re.DOTALL)


@dataclass(frozen=True)
class Gates:
    """The gates of one pair of languages.

    Attributes:
        digest: of the languages and all settings that change a judgement.
    """

    config: GatesConfig
    source: Language
    target: Language
    digest: str
    similarity: Similarity | None = None

    @classmethod
    def of(
        cls, config: GatesConfig, source: str, target: str, similarity: Similarity | None = None, key: str = "gates"
    ) -> Gates:
        """The gates of a translation from `source` to `target`, ISO 639-1 codes.

        Raises UserError for settings that cannot be, for a language whose script is not known while a gate needs it,
        and where the gate of language identification is on and its library is not installed.
        """
        _check(config, key)
        if config.similarity is not None and similarity is None:
            raise UserError(f"{key}.similarity", f"{config.similarity:g} without a backend that translates back",
                            "one of the other direction", f"name one, or say {key}.similarity=null")  # fmt: skip
        by_script = config.untranslated is not None
        of_source, of_target = (
            language(code, name) if by_script else Language(code, code, ())
            for name, code in (("source", source), ("target", target))
        )
        if config.language is not None and target not in _identifier().labels:
            raise UserError("target", repr(target), "a language that py3langid identifies",
                            f"say {key}.language=null")  # fmt: skip
        return cls(config, of_source, of_target, _digest(config, source, target, similarity), similarity)

    def check(self, source: str, translation: str) -> str | None:
        """Why the first of the gates refuses the translation, as `"<gate>: <detail>"`; None: all let it pass."""
        for name, gate in _TABLE.items():
            setting = getattr(self.config, name)
            if setting is None or setting is False:
                continue
            if detail := gate(self, source, translation):
                return f"{name}: {detail}"
        return None

    def check_many(self, sources: Sequence[str], translations: Sequence[str]) -> list[str | None]:
        """The same of each pair; those that pass go through the gate of similarity together, where it is on."""
        reasons = [self.check(source, translation) for source, translation in zip(sources, translations, strict=True)]
        passed = [place for place, reason in enumerate(reasons) if reason is None]
        least = self.config.similarity
        if self.similarity is None or least is None or not passed:
            return reasons
        cosines = self.similarity.check_many([sources[p] for p in passed], [translations[p] for p in passed])
        for place, cosine in zip(passed, cosines, strict=True):
            reasons[place] = f"similarity: {cosine:.2f}, below {least:g}" if cosine < least else None
        return reasons


def length_ratio(source: str, translation: str, slack: int = 0) -> float:
    """Columns of the translation to those of the source, `slack` added to both; wide characters are two columns.

    In columns the ratios of language pairs lie close together: half as many characters of Korean or Japanese say what
    English does, and they are twice as wide.
    """
    return (_columns(translation) + slack) / max(1, _columns(source) + slack)


def _empty(gates: Gates, source: str, translation: str) -> str | None:
    silent = not any(map(str.isalnum, translation)) and any(map(str.isalnum, source))
    return "no letter or digit" if silent or not translation.strip() else None


def _error(gates: Gates, source: str, translation: str) -> str | None:
    pattern = _error_pattern(tuple(gates.config.error_texts))
    found = pattern.fullmatch(_bare(translation)) and not pattern.fullmatch(_bare(source))
    return f"{shorten(translation)} is the text of an error" if found else None


def _untranslated(gates: Gates, source: str, translation: str) -> str | None:
    least = gates.config.untranslated
    assert least is not None
    plain = prose(translation)
    words, known = _words(plain), Counter(_words(prose(source)))
    if set(gates.source.scripts) & set(gates.target.scripts):
        copied = sum((Counter(words) & known).values())
        if len(words) <= gates.config.untranslated_words or copied / len(words) <= 1 - least:
            return None
        return f"{copied} of {len(words)} words are the source's"
    letters = [found for found in map(script, unicodedata.normalize("NFKC", plain)) if found]
    share = sum(found in gates.target.scripts for found in letters) / max(1, len(letters))
    # A translation of a few words, all of them the source's, can be of names.
    names = len(words) <= gates.config.untranslated_words and all(word in known for word in words)
    if not letters or share >= least or names:
        return None
    return f"{share:.0%} of its letters are of {gates.target.name}"


def _length(gates: Gates, source: str, translation: str) -> str | None:
    assert gates.config.length is not None
    least, most = gates.config.length
    ratio = length_ratio(source, translation, gates.config.length_slack)
    return None if least <= ratio <= most else f"{ratio:.2f} times the source, not {least:g} to {most:g}"


def _numbers(gates: Gates, source: str, translation: str) -> str | None:
    # Those in URLs, code and placeholders are for the gates of these.
    return _told(lost_numbers(prose(source), prose(translation)))


def _urls(gates: Gates, source: str, translation: str) -> str | None:
    text = translation.lower()
    return _told([url for url in _found_urls(source) if url.lower() not in text])


def _code(gates: Gates, source: str, translation: str) -> str | None:
    spans = ["".join(groups).strip() for groups in CODE.findall(URL.sub(" ", source))]
    return _told([span for span in spans if span not in translation])


def _placeholders(gates: Gates, source: str, translation: str) -> str | None:
    wanted, found = Counter(PLACEHOLDER.findall(source)), Counter(PLACEHOLDER.findall(translation))
    lost = [name for name in wanted - found if not (name[0] == "&" and html.unescape(name) in translation)]
    return _told(lost)


def _repetition(gates: Gates, source: str, translation: str) -> str | None:
    most = gates.config.repetition
    assert most is not None
    # A decoder that loops ends in one unit again and again, which is a small share of a long text.
    loop = _LOOP.search(translation)
    if loop and any(map(str.isalpha, loop[1])) and not _LOOP.search(source):
        return f"{shorten(loop[1].strip(), 30)} again and again"
    excess = _repeated(translation) - _repeated(source)
    return f"{excess:.0%} more of it repeats than of the source" if excess > most else None


def _language(gates: Gates, source: str, translation: str) -> str | None:
    least = gates.config.language
    assert least is not None
    plain = prose(translation)
    if sum(map(str.isalpha, plain)) < gates.config.language_letters:
        return None
    code, probability = _identifier().classify(plain)
    wrong = code not in (gates.target.code, "zxx") and probability >= least
    return f"{code} with probability {probability:.2f}, not {gates.target.code}" if wrong else None


_TABLE: dict[str, Callable[[Gates, str, str], str | None]] = {
    "empty": _empty,
    "error": _error,
    "untranslated": _untranslated,
    "length": _length,
    "numbers": _numbers,
    "urls": _urls,
    "code": _code,
    "placeholders": _placeholders,
    "repetition": _repetition,
    "language": _language,
}


def _told(lost: list[str]) -> str | None:
    if not lost:
        return None
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    told = (name if len(name) <= _TOLD else name[: _TOLD - 1] + "…" for name in lost[:3])
    return f"{', '.join(told)}{more} of the source is lost"


def _bare(text: str) -> str:
    return text.strip(" \t\r\n.!\"'[](){}<>*").lower()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _found_urls(text: str) -> list[str]:
    return [url.rstrip(".,;:!?'\")]}>") for url in URL.findall(text)]


def _columns(text: str) -> int:
    text = unicodedata.normalize("NFC", text)
    return len(text) + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def _repeated(text: str) -> float:
    """The share of a text's character sequences that stand in it before, overlaps counted; 0 for a short text."""
    joined = "".join(text.split()).lower()
    sequences = [joined[start : start + _SEQUENCE] for start in range(len(joined) - _SEQUENCE + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


@functools.cache
def _error_pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{text})" for text in texts) or r"(?!)", re.DOTALL)


@functools.cache
def _identifier() -> Any:
    """py3langid's identifier, which ships its model. Raises UserError where it is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError("gates.language", "no py3langid", "the library that identifies languages",
                        "pip install ko-reranker[translation], or say gates.language=null") from None  # fmt: skip
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _digest(config: GatesConfig, source: str, target: str, similarity: Similarity | None) -> str:
    settings = {item.name: getattr(config, item.name) for item in dataclasses.fields(GatesConfig)}
    settings |= {name: list(settings[name]) for name in ("length", "error_texts") if settings[name] is not None}
    libraries = [version("py3langid") if config.language is not None else None, similarity and similarity.identity]
    content = json.dumps([source, target, settings, libraries], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]


def _check(config: GatesConfig, key: str) -> None:
    for name in ("untranslated", "repetition", "language"):
        if (value := getattr(config, name)) is not None and not 0 <= value <= 1:
            raise UserError(f"{key}.{name}", str(value), "a share between 0 and 1, or null", "change the value")
    for name in ("untranslated_words", "length_slack", "language_letters"):
        if (value := getattr(config, name)) < 0:
            raise UserError(f"{key}.{name}", str(value), "0 or more", "change the value")
    length = config.length
    if length is not None and (len(length) != 2 or not 0 <= length[0] < length[1]):
        raise UserError(f"{key}.length", str(list(length)), "two numbers, the least ratio and the greatest",
                        f"say {key}.length=[0.45,2.5]")  # fmt: skip
    if config.similarity is not None and (not -1 <= config.similarity <= 1 or not config.similarity_model):
        raise UserError(f"{key}.similarity", f"{config.similarity} with similarity_model={config.similarity_model}",
                        "a cosine from -1 to 1 and a model", f"name the model in {key}.similarity_model")  # fmt: skip
    for text in config.error_texts:
        try:
            re.compile(text)
        except re.error as error:
            raise UserError(f"{key}.error_texts", f"{text!r} ({error})", "a regular expression", "mend it") from None
