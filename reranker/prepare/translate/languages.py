"""Languages: their names, the scripts that they are written in, and the codes by which tokenizers know them.

In: an ISO 639-1 code, as the settings give it. Out: a `Language`, or the code of one tokenizer. Raises UserError for
a code that is not known, naming the key that it was given under.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from reranker.errors import UserError, closest


@dataclass(frozen=True)
class Language:
    """A language by its ISO 639-1 code.

    Attributes:
        scripts: how the Unicode names of its letters begin.
    """

    code: str
    name: str
    scripts: tuple[str, ...]


_BY_SCRIPTS = {
    ("LATIN",): (
        "af Afrikaans, az Azerbaijani, bs Bosnian, ca Catalan, cs Czech, cy Welsh, da Danish, de German, en English, "
        "es Spanish, et Estonian, eu Basque, fi Finnish, fr French, ga Irish, gl Galician, hr Croatian, hu Hungarian, "
        "id Indonesian, is Icelandic, it Italian, lt Lithuanian, lv Latvian, ms Malay, mt Maltese, nl Dutch, "
        "no Norwegian, pl Polish, pt Portuguese, ro Romanian, sk Slovak, sl Slovenian, so Somali, sq Albanian, "
        "sv Swedish, sw Swahili, tl Tagalog, tr Turkish, uz Uzbek, vi Vietnamese, xh Xhosa, yo Yoruba, zu Zulu"
    ),
    ("CYRILLIC",): "be Belarusian, bg Bulgarian, kk Kazakh, ky Kyrgyz, mk Macedonian, mn Mongolian, ru Russian, "
    "tg Tajik, uk Ukrainian",
    ("CYRILLIC", "LATIN"): "sr Serbian",
    ("ARABIC",): "ar Arabic, fa Persian, ps Pashto, ur Urdu",
    ("DEVANAGARI",): "hi Hindi, mr Marathi, ne Nepali",
    ("HANGUL",): "ko Korean",
    ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK"): "ja Japanese",
    ("CJK",): "zh Chinese",
    ("HEBREW",): "he Hebrew",
    ("GREEK",): "el Greek",
    ("THAI",): "th Thai",
    ("LAO",): "lo Lao",
    ("KHMER",): "km Khmer",
    ("MYANMAR",): "my Burmese",
    ("ARMENIAN",): "hy Armenian",
    ("GEORGIAN",): "ka Georgian",
    ("ETHIOPIC",): "am Amharic",
    ("BENGALI",): "bn Bengali, as Assamese",
    ("GUJARATI",): "gu Gujarati",
    ("GURMUKHI",): "pa Punjabi",
    ("KANNADA",): "kn Kannada",
    ("MALAYALAM",): "ml Malayalam",
    ("SINHALA",): "si Sinhala",
    ("TAMIL",): "ta Tamil",
    ("TELUGU",): "te Telugu",
}
LANGUAGES = {
    code: Language(code, name, scripts)
    for scripts, listed in _BY_SCRIPTS.items()
    for code, _, name in (entry.partition(" ") for entry in listed.split(", "))
}
# NLLB and mBART-50 name languages by ISO 639-3, the macrolanguage or the variety that their data is of.
_LONGER = {
    "ar": "arb ar_AR", "fa": "pes fa_IR", "zh": "zho zho_Hans zh_CN zh_Hans", "no": "nob", "lv": "lvs lav lv_LV",
    "et": "est ekk et_EE", "sq": "als sqi", "sw": "swh swa sw_KE", "ms": "zsm msa", "mn": "khk mn_MN",
    "ne": "npi ne_NP",
    "az": "azj az_AZ", "uz": "uzn uz_UZ", "ps": "pbt ps_AF", "pt": "por pt_XX pt_PT", "ja": "jpn ja_XX",
    "ko": "kor ko_KR", "en": "eng en_XX", "de": "deu de_DE", "fr": "fra fr_XX", "es": "spa es_XX", "cs": "ces cs_CZ",
    "cy": "cym", "da": "dan", "el": "ell", "eu": "eus", "fi": "fin fi_FI", "ga": "gle", "gl": "glg gl_ES",
    "he": "heb he_IL", "hi": "hin hi_IN", "hr": "hrv hr_HR", "hu": "hun", "hy": "hye", "id": "ind id_ID", "is": "isl",
    "it": "ita it_IT", "ka": "kat ka_GE", "kk": "kaz kk_KZ", "km": "khm km_KH", "lt": "lit lt_LT", "mk": "mkd mk_MK",
    "my": "mya my_MM", "nl": "nld nl_XX", "pl": "pol pl_PL", "ro": "ron ro_RO", "ru": "rus ru_RU", "sk": "slk",
    "sl": "slv sl_SI", "sr": "srp", "sv": "swe sv_SE", "th": "tha th_TH", "tl": "tgl tl_XX", "tr": "tur tr_TR",
    "uk": "ukr uk_UA", "ur": "urd ur_PK", "vi": "vie vi_VN", "af": "afr af_ZA", "be": "bel", "bg": "bul", "bs": "bos",
    "ca": "cat", "bn": "ben bn_IN", "gu": "guj gu_IN", "pa": "pan", "kn": "kan", "ml": "mal ml_IN", "mr": "mar mr_IN",
    "si": "sin si_LK", "ta": "tam ta_IN", "te": "tel te_IN", "am": "amh", "as": "asm", "lo": "lao", "ky": "kir",
    "tg": "tgk", "mt": "mlt", "so": "som", "xh": "xho xh_ZA", "yo": "yor", "zu": "zul",
}  # fmt: skip


def language(code: str, key: str) -> Language:
    """The language of an ISO 639-1 code. Raises UserError, which names `key`."""
    if code in LANGUAGES:
        return LANGUAGES[code]
    near = closest(code, LANGUAGES) or closest(code.lower()[:2], LANGUAGES)
    expected = f"an ISO 639-1 code of a language whose script is known: {', '.join(LANGUAGES)}"
    fix = f"did you mean {near}?" if near else "say gates.untranslated=null to do without its script"
    raise UserError(key, repr(code), expected, fix)


def tokenizer_code(code: str, known: Sequence[str], key: str) -> str:
    """Of the language codes that a tokenizer knows, the one of `code`. Raises UserError, which lists near ones.

    What the tokenizer itself calls a language is taken as it is: `zho_Hant`, `pt_PT`.
    """
    wanted = [code, *_LONGER.get(code, "").split()]
    for name in wanted:
        if name in known:
            return name
        for other in known:
            if other.startswith(f"{name}_"):
                return other
    near = sorted({other for name in wanted for other in known if other[:2].lower() == name[:2].lower()})
    raise UserError(key, repr(code), f"a language of the model's tokenizer ({len(known)} codes)",
                    f"say one of {', '.join(near)}" if near else "choose a model that knows the language")  # fmt: skip


@functools.lru_cache(maxsize=65536)
def script(character: str) -> str | None:
    """The script of a letter, as its Unicode name begins; None for what is no letter."""
    if not character.isalpha():
        return None
    return unicodedata.name(character, "UNKNOWN").split(maxsplit=1)[0]
