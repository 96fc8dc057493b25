"""Tiny translation models of real structure and random weights, written to directories in under a second.

Out: Marian and M2M100 with sentencepiece models trained here, Llama and GPT-2 with the tokenizer of `tiny.py`. No
network, nothing downloaded. What they say has no meaning; some of their translations end and some do not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import SPECIAL, _no_bars, _tokenizer

TEXTS = [
    "what is a cross encoder",
    "the menu opens a dialog",
    "a",
    "choose the file that you want to open in the list of files and press the button",
    "how to save a document as a new file",
    "names of files in the list",
    "press the button to open the dialog of the menu",
    "list",
]
SHAPE = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.5}  # fmt: skip


def tiny_translators(root: Path) -> dict[str, str]:
    """A directory for each kind of model."""
    import sentencepiece
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        M2M100Config,
        M2M100ForConditionalGeneration,
        M2M100Tokenizer,
        MarianConfig,
        MarianMTModel,
        MarianTokenizer,
        PreTrainedTokenizerFast,
    )

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3), model_prefix=str(root / "spm"), vocab_size=40, bos_id=-1, minloglevel=2
    )
    spm = sentencepiece.SentencePieceProcessor(model_file=str(root / "spm.model"))
    pieces = [spm.id_to_piece(number) for number in range(spm.get_piece_size())]
    vocabulary = dict.fromkeys(["</s>", "<unk>", *pieces, "<pad>"])
    (root / "marian.json").write_text(json.dumps({piece: number for number, piece in enumerate(vocabulary)}))
    vocabulary = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *pieces])
    (root / "m2m.json").write_text(json.dumps({piece: number for number, piece in enumerate(vocabulary)}))
    marian = MarianTokenizer(str(root / "spm.model"), str(root / "spm.model"), str(root / "marian.json"))
    config = MarianConfig(vocab_size=len(marian), max_position_embeddings=40, eos_token_id=0, forced_eos_token_id=0,
                          pad_token_id=marian.pad_token_id, decoder_start_token_id=marian.pad_token_id, **SHAPE)  # fmt: skip
    saved = {"marian": _save(MarianMTModel, config, marian, root / "marian", "model.shared")}
    m2m = M2M100Tokenizer(str(root / "m2m.json"), str(root / "spm.model"), src_lang="en", tgt_lang="ko")
    config = M2M100Config(
        vocab_size=m2m.encoder_size + len(m2m.lang_code_to_id) + 8,
        max_position_embeddings=64,
        decoder_start_token_id=2,
        **SHAPE,
    )
    saved["m2m100"] = _save(M2M100ForConditionalGeneration, config, m2m, root / "m2m100", "model.shared", 9)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    plain: Any = _tokenizer(())
    plain.post_processor = None
    causal = PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=512, **names)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "vocab_size": len(causal)}
    config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                         max_position_embeddings=300, initializer_range=0.5, **ids)  # fmt: skip
    saved["llama"] = _save(LlamaForCausalLM, config, causal, root / "llama", "lm_head")
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=300, initializer_range=0.5, **ids)
    saved["gpt2"] = _save(GPT2LMHeadModel, config, causal, root / "gpt2", "lm_head")
    return saved


def _save(kind: Any, config: Any, tokenizer: Any, directory: Path, head: str, end: float = 2) -> str:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
    with torch.no_grad():
        # Some translations end early and some never do.
        model.get_submodule(head).weight[config.eos_token_id] *= end
    with _no_bars():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)
