"""One translation model of Hugging Face: texts -> token ids -> translations.

In: a `Recipe`. Out: `Prompter`, which knows the tokenizer and the languages and needs no weights, and `Generator`,
which has the weights on one device. Sequence-to-sequence models (Marian, M2M100, NLLB, mBART, T5) read the text itself,
causal ones a prompt. A text gives the same translation in any batch: padding is masked, decoding draws no lots.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reranker.errors import UserError
from reranker.prepare.translate.languages import LANGUAGES, tokenizer_code

CAUSAL_TEMPLATE = "Translate from {source} to {target}. Answer with the translation alone.\n\n{text}"
"""The prompt of causal models where none is given; the languages are named in English."""
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """What decides the output: a model, the languages, how it decodes. Pickles, for processes."""

    model: str
    source: str
    target: str
    revision: str | None
    num_beams: int
    max_new_tokens: int
    dtype: str
    template: str | None


class Prompter:
    """Texts as the model reads them. Raises UserError for a model without tokenizer and a language it has not.

    Attributes:
        most: tokens of an input at most.
        forced: the id that a translation begins with, where the model is told its language so.
    """

    def __init__(self, recipe: Recipe) -> None:
        from transformers import AutoConfig, AutoTokenizer

        with _told(recipe.model):
            self.config = AutoConfig.from_pretrained(recipe.model, revision=recipe.revision)
            self.tokenizer = AutoTokenizer.from_pretrained(recipe.model, revision=recipe.revision)
        self.causal = not self.config.is_encoder_decoder
        self.forced: int | None = None
        self._prefix = ""
        self._set_languages(recipe)
        self._template = recipe.template or (CAUSAL_TEMPLATE if self.causal else "{text}")
        names = {key: LANGUAGES[code].name if code in LANGUAGES else code
                 for key, code in (("source", recipe.source), ("target", recipe.target))}  # fmt: skip
        try:
            before, found, after = (self._template + "\0").partition("{text}")
            assert found
            self._around = tuple(part.rstrip("\0").format(**names) for part in (before, after))
        except (AssertionError, KeyError, IndexError, ValueError):
            raise UserError("backend.template", repr(recipe.template), "a text with {text}, {source} and {target}",
                            "double other braces") from None  # fmt: skip
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "left" if self.causal else "right"
        positions = getattr(self.config, "max_position_embeddings", None)
        limits = [self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length]
        if self.causal and positions:
            limits.append(positions - recipe.max_new_tokens)
        self.most: int = min(limits)
        if self.most <= len(self.ids([""])[0]):
            raise UserError("backend.max_new_tokens", str(recipe.max_new_tokens),
                            f"fewer than the model's {positions} positions less the prompt", "lower it")  # fmt: skip

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text as the model reads it, never cut."""
        before, after = self._around
        prompts = [f"{self._prefix}{before}{text}{after}" for text in texts]
        chat = self.causal and bool(getattr(self.tokenizer, "chat_template", None))
        if chat:
            prompts = [
                self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                                   add_generation_prompt=True)
                for prompt in prompts
            ]  # fmt: skip
        # A chat template writes the special tokens itself.
        found: list[list[int]] = self.tokenizer(prompts, add_special_tokens=not chat, verbose=False)["input_ids"]
        return found

    def _set_languages(self, recipe: Recipe) -> None:
        tokenizer = self.tokenizer
        if prefixes := getattr(tokenizer, "supported_language_codes", None):  # Marian models of several targets
            codes = [prefix.strip("<>") for prefix in prefixes]
            self._prefix = f">>{tokenizer_code(recipe.target, codes, 'target')}<< "
            return
        if self.causal or not hasattr(tokenizer, "src_lang"):
            return
        by_code = getattr(tokenizer, "lang_code_to_id", None)
        codes = list(by_code) if by_code else [
            token for token in tokenizer.all_special_tokens if re.fullmatch(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}", token)
        ]  # fmt: skip
        tokenizer.src_lang = tokenizer_code(recipe.source, codes, "source")
        target = tokenizer_code(recipe.target, codes, "target")
        self.forced = by_code[target] if by_code else tokenizer.convert_tokens_to_ids(target)


class Generator:
    """A model on a device. Raises UserError for one that cannot be loaded."""

    def __init__(self, recipe: Recipe, device: str, prompter: Prompter | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        self._prompter = prompter or Prompter(recipe)
        self._device = device
        loader = AutoModelForCausalLM if self._prompter.causal else AutoModelForSeq2SeqLM
        with _told(recipe.model):
            # The dtype is explicit, as from_pretrained otherwise keeps the checkpoint's own.
            model = loader.from_pretrained(recipe.model, revision=recipe.revision, dtype=getattr(torch, recipe.dtype))
        self._model = model.to(device).eval()
        settings = model.generation_config
        settings.update(
            max_new_tokens=recipe.max_new_tokens, max_length=None, num_beams=recipe.num_beams, do_sample=False,
            temperature=None, top_p=None, top_k=None, num_return_sequences=1, return_dict_in_generate=False,
            # Marian's own settings end a translation at the limit as if it were whole.
            forced_eos_token_id=None, pad_token_id=self._prompter.tokenizer.pad_token_id,
        )  # fmt: skip
        if self._prompter.forced is not None:
            settings.forced_bos_token_id = self._prompter.forced
        ends = settings.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    def translate(self, batch: Sequence[list[int]]) -> list[str | None]:
        """The translation of each input; None: it did not end within max_new_tokens."""
        import torch

        padded = self._prompter.tokenizer.pad({"input_ids": list(batch)}, return_tensors="pt").to(self._device)
        inputs = {name: padded[name] for name in ("input_ids", "attention_mask")}
        try:
            with torch.inference_mode():
                output_BT = self._model.generate(**inputs)
        except torch.OutOfMemoryError:
            found = f"no memory on {self._device} for {len(batch)} texts of {padded['input_ids'].shape[1]} tokens"
            raise UserError("backend.batch_tokens", found, "batches that fit", "lower it, or max_new_tokens") from None
        # A decoder starts with a token of its own, a causal model repeats its prompt.
        start = padded["input_ids"].shape[1] if self._prompter.causal else 1
        return [self._text(ids) for ids in output_BT[:, start:].tolist()]

    def _text(self, ids: list[int]) -> str | None:
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        if end is None:
            return None
        # Not every tokenizer counts its language codes among the special tokens.
        begin = int(end > 0 and ids[0] == self._prompter.forced)
        return str(self._prompter.tokenizer.decode(ids[begin:end], skip_special_tokens=True)).strip()


def check_recipe(recipe: Recipe) -> None:
    """Raise UserError for settings that cannot be."""
    for name in ("num_beams", "max_new_tokens"):
        value = getattr(recipe, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"backend.{name}", repr(value), "a whole number of 1 or more", "change the value")
    if recipe.dtype not in _DTYPES:
        raise UserError("backend.dtype", repr(recipe.dtype), f"one of {', '.join(_DTYPES)}", "change the value")


@contextlib.contextmanager
def _told(model: str) -> Iterator[None]:
    """What transformers raises for a model that is not there, as a UserError."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        found = f"{model}, which cannot be loaded ({str(error).splitlines()[0]})"
        expected = "a directory or hub name of a translation or causal model"
        raise UserError("backend.model", found, expected, "check the name") from None
