"""A stock Hugging Face reranker small enough for a test: written to a directory in a fraction of a second.

Out: an `XLMRobertaForSequenceClassification` directory (2 layers of 32, random weights drawn from the seed)
with a Unigram tokenizer of a few hundred pieces. It reads any Korean text (syllables fall back to their
letters) and any ASCII. No network, nothing downloaded, nothing of ours in the files.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SYLLABLES = (
    "이다는을의에고하가를한지은기도로으서나리어시대사인정수자있해일부보것들그전게제라과장주"
    "스만면구와여원상동아생적모조방치화성공소선유업안경관용위계트개발국분문음연무세물중설회파"
)


def tiny_model(directory: Path, seed: int = 0, vocabulary: Iterable[str] = (), labels: int = 1) -> Path:
    """Write the model and its tokenizer to `directory` and return it.

    `vocabulary` adds whole words as pieces of their own. The same arguments write the same weights.
    """
    import torch
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForSequenceClassification

    tokenizer = _tokenizer(vocabulary)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=labels,
        # Wider than usual: a random model of this size otherwise scores everything nearly alike.
        initializer_range=0.1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = XLMRobertaForSequenceClassification(config)
    directory.mkdir(parents=True, exist_ok=True)
    with _no_bars():
        model.save_pretrained(directory)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", model_max_length=512, **names
    ).save_pretrained(directory)
    return directory


def tiny_encoder(directory: Path) -> Path:
    """Write a sentence-transformers encoder of the same size to `directory` and return it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    body = Transformer(str(tiny_model(directory / "base")))
    model = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension())], device="cpu")
    model.save(str(directory / "encoder"))
    return directory / "encoder"


def _tokenizer(vocabulary: Iterable[str]) -> object:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [chr(code) for start, end in ((0x21, 0x7F), (0x1100, 0x1113), (0x1161, 0x1176), (0x11A8, 0x11C3))
               for code in range(start, end)]  # fmt: skip
    whole = [unicodedata.normalize("NFD", syllable) for syllable in SYLLABLES]
    words = ["▁" + unicodedata.normalize("NFD", word) for word in vocabulary]
    # A piece costs the same whatever its length, so the longest pieces win.
    pieces = dict.fromkeys((*SPECIAL, "▁", *letters, *whole, *words), -5.0)
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFD()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
