"""A trimmed model cuts what it was trimmed to into the same pieces, scores it alike, and is a stock directory."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from reranker import Reranker, cli
from reranker.config.reading import ReaderConfig
from reranker.config.trimming import TrimConfig
from reranker.demo import corpus as documents
from reranker.errors import UserError
from reranker.export.card_words import Words
from reranker.export.push_checks import failed_gate
from reranker.export.trim import trim
from reranker.model.vocabulary import cut, described, kept_ids, pieces, written
from reranker.prepare.every_text import every_text
from tests.plain import plain_scores
from tests.tiny import tiny_model

KINDS = ("unigram", "bpe", "wordpiece")
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
         "initializer_range": 0.1, "num_labels": 1}  # fmt: skip


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Korean and English paragraphs of the shipped documents."""
    rows = documents.passages()[::40]
    return [row[key] for row in rows for key in ("text", "text_en") if row[key]]


@pytest.fixture(scope="module")
def wholes(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{kind: directory of a model with a vocabulary of that kind, of all texts}."""
    return {kind: write_model(kind, texts, tmp_path_factory.mktemp(kind) / "whole") for kind in KINDS}


def write_model(kind: str, texts: list[str], directory: Path) -> Path:
    if kind == "unigram":
        words = sorted({word for text in texts for word in text.split() if word.isalpha()})
        return tiny_model(directory, seed=4, vocabulary=words)
    if kind == "bpe":
        names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=1500, special_tokens=names, initial_alphabet=alphabet,
                                           show_progress=False)  # fmt: skip
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        special = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
                   "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}  # fmt: skip
        config: Any = RobertaConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=514, **SIZES)
        make: Any = RobertaForSequenceClassification
    else:
        names = ["[PAD]", *[f"[unused{number}]" for number in range(9)], "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=names, show_progress=False,
                                            limit_alphabet=300)  # fmt: skip
        tokenizer.train_from_iterator(texts, trainer)
        value = json.loads(tokenizer.to_str())  # as in BERT's own files, what is unused is nothing special
        value["added_tokens"] = [one for one in value["added_tokens"] if "unused" not in one["content"]]
        tokenizer = Tokenizer.from_str(json.dumps(value))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 11), ("[SEP]", 12)]
        )
        special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
                   "mask_token": "[MASK]"}  # fmt: skip
        config = BertConfig(vocab_size=tokenizer.get_vocab_size() + 3, pad_token_id=0, **SIZES)  # rows of nothing
        make = BertForSequenceClassification
    torch.manual_seed(5)
    make(config).save_pretrained(directory)
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if kind == "wordpiece" else None
    more = {"model_input_names": inputs} if inputs else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special, **more).save_pretrained(
        directory
    )
    return directory


def corpus_of(texts: list[str], path: Path) -> Path:
    path.write_text("".join(f"{' '.join(text.split())}\n" for text in texts), encoding="utf-8")
    return path


def trimmed_of(whole: Path, texts: list[str], tmp_path: Path, **settings: Any) -> tuple[Path, Any]:
    corpus, output = corpus_of(texts, tmp_path / "corpus.txt"), tmp_path / "trimmed"
    return output, trim(TrimConfig(str(whole), str(corpus), str(output), **settings))


def tokens(directory: Path, text: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_corpus_has_the_same_pieces_and_the_same_scores(
    kind: str, wholes: dict[str, Path], texts: list[str], tmp_path: Path
) -> None:
    some = texts[: len(texts) // 6]
    output, report = trimmed_of(wholes[kind], some, tmp_path)
    assert report.after["pieces"] < 0.9 * report.before["pieces"], "nothing was cut"
    assert report.corpus.texts == report.corpus.same == len(some)
    for text in some[::5]:
        assert tokens(output, text) == tokens(wholes[kind], text)
    pairs = list(zip(some[:12], some[3:15], strict=True))
    before = plain_scores(wholes[kind], pairs)
    assert torch.equal(plain_scores(output, pairs), before)
    assert before.std() > 1e-3, "a model that scores everything alike proves nothing"
    assert report.largest_difference == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_of_kept_pieces_is_cut_as_before_and_of_any_other_nothing_is_lost(
    kind: str, wholes: dict[str, Path], texts: list[str]
) -> None:
    """Of many small corpora, at the tokenizer alone."""
    whole = Tokenizer.from_file(str(wholes[kind] / "tokenizer.json"))
    tokenization = described((wholes[kind] / "tokenizer.json").read_text("utf-8"), "model")
    every = pieces(tokenization)
    sentences = [sentence for text in texts for sentence in text.split(". ")]
    same = other = 0
    for start in range(0, len(sentences) - 60, len(sentences) // 8):
        counts = np.zeros(len(every), dtype=np.int64)
        for sentence in sentences[start : start + 60]:
            np.add.at(counts, whole.encode(sentence, add_special_tokens=False).ids, 1)
        ids = kept_ids(tokenization, counts)
        own = Tokenizer.from_str(written(cut(tokenization, ids)))
        assert own.get_vocab_size() == len(ids)
        for sentence in sentences[::3]:
            before, after = (one.encode(sentence, add_special_tokens=False).tokens for one in (whole, own))
            if all(own.token_to_id(piece) is not None for piece in before):
                # An unknown word of WordPiece stays unknown only where the corpus has it.
                if kind != "wordpiece" or "[UNK]" not in before:
                    assert after == before
                    same += 1
            else:
                if kind != "wordpiece":
                    assert "".join(after) == "".join(before)
                assert after.count("[UNK]") <= before.count("[UNK]")
                other += 1
    assert same > 60
    assert other > 60


@pytest.mark.parametrize("kind", KINDS)
def test_special_pieces_keep_their_meaning_and_the_padding_its_place(
    kind: str, wholes: dict[str, Path], texts: list[str], tmp_path: Path
) -> None:
    output, _ = trimmed_of(wholes[kind], texts[:20], tmp_path)
    before, after = (AutoTokenizer.from_pretrained(one) for one in (wholes[kind], output))
    model = AutoModelForSequenceClassification.from_pretrained(output)
    assert after.special_tokens_map == before.special_tokens_map
    assert model.config.pad_token_id == after.pad_token_id
    assert model.get_input_embeddings().padding_idx == after.pad_token_id
    assert model.config.vocab_size == len(after) == model.get_input_embeddings().num_embeddings
    if kind == "wordpiece":
        assert after.cls_token_id < before.cls_token_id, "the unused pieces in front of it are gone"
    else:
        # Positions count from the padding id: another id would shift all of them.
        assert after.pad_token_id == before.pad_token_id == 1
    old = AutoModelForSequenceClassification.from_pretrained(wholes[kind])
    rows = [before.convert_tokens_to_ids(piece) for piece in after.convert_ids_to_tokens(range(len(after)))]
    assert torch.equal(model.get_input_embeddings().weight, old.get_input_embeddings().weight[rows])
    framed = [
        before.convert_ids_to_tokens(before("a", "b")["input_ids"]),
        after.convert_ids_to_tokens(after("a", "b")["input_ids"]),
    ]
    assert framed[0] == framed[1]
    assert after("a", "b").keys() == before("a", "b").keys()


def test_in_front_of_the_padding_all_stays_where_positions_count_from_it(tmp_path: Path) -> None:
    from reranker.model.trim import ids_of_the_config

    assert {0, 1, 2, 3, 4} <= ids_of_the_config(RobertaConfig(pad_token_id=4))
    assert 3 not in ids_of_the_config(BertConfig(pad_token_id=4))


def test_an_unknown_word_stays_unknown_though_its_first_piece_is_used_nowhere_else() -> None:
    names = ["[UNK]", "a", "b", "ab", "##b", "##X", "##bX", "c"]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    from reranker.export.trim_corpus import count

    tokenization = described(tokenizer.to_str(), "model")
    # "abXX" begins with "ab", its longest piece, comes to "##X", "##X": known. "abbX" is ab ##bX. "abY": none.
    assert tokenizer.encode("abb").tokens == ["ab", "##b"]
    assert tokenizer.encode("abY").tokens == ["[UNK]"]
    used = count(["abY c", "a bX"], tokenizer, tokenization)
    own = Tokenizer.from_str(written(cut(tokenization, kept_ids(tokenization, used))))
    assert own.token_to_id("ab") is not None
    assert own.encode("abY").tokens == ["[UNK]"]


def test_a_piece_in_front_of_an_unknown_place_is_not_exchanged_for_shorter_ones() -> None:
    """ "abX" is unknown: "ab" is read, and no "##X". Without "ab" it would be "a", "##bX"."""
    from reranker.export.trim_corpus import count

    names = ["[UNK]", "a", "ab", "##bX", "c"]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenization = described(tokenizer.to_str(), "model")
    assert tokenizer.encode("abX").tokens == ["[UNK]"]
    used = count(["abX", "abX c"], tokenizer, tokenization)
    used[3] += 1  # as a text with a##bX would
    own = Tokenizer.from_str(written(cut(tokenization, kept_ids(tokenization, used))))
    assert own.encode("abX").tokens == ["[UNK]"]


def test_the_price_of_an_unknown_character_stays() -> None:
    """It is counted from the least score of all pieces, which no text need use."""
    vocabulary = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("?b", -18.0), ("never", -30.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    # "?" is no piece: unknown + b costs 41 with "never" in the vocabulary, 29 without it.
    assert tokenizer.encode("a?b").tokens == ["a", "?b"]
    tokenization = described(tokenizer.to_str(), "model")
    ids = kept_ids(tokenization, np.array([0, 1, 1, 1, 0]))
    assert 4 in ids
    own = Tokenizer.from_str(written(cut(tokenization, ids)))
    assert own.encode("a?b").tokens == ["a", "?b"]


def test_the_parts_of_a_kept_bpe_piece_stay_with_all_their_merges() -> None:
    vocabulary = {
        piece: number for number, piece in enumerate(["a", "b", "c", "d", "ab", "bc", "abc", "abcd", "cd", "bd"])
    }
    merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"), ("c", "d"), ("abc", "d"), ("b", "d")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenization = described(tokenizer.to_str(), "model")
    used = np.zeros(10, dtype=np.int64)
    used[tokenizer.encode("abcd").ids] = 1
    trimmed = cut(tokenization, kept_ids(tokenization, used, characters=False))
    assert set(trimmed["model"]["vocab"]) == {"a", "b", "c", "d", "ab", "bc", "abc", "abcd"}
    own = Tokenizer.from_str(written(trimmed))
    assert own.encode("abcd").tokens == tokenizer.encode("abcd").tokens == ["abcd"]
    assert len(trimmed["model"]["merges"]) == 5


def test_a_tokenizer_that_cuts_the_corpus_otherwise_is_refused_and_nothing_is_written(
    wholes: dict[str, Path], texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With dropout a BPE tokenizer cuts at random."""
    import shutil

    whole = tmp_path / "whole"
    shutil.copytree(wholes["bpe"], whole)
    value = json.loads((whole / "tokenizer.json").read_text("utf-8"))
    value["model"]["dropout"] = 0.5
    (whole / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    corpus = corpus_of(texts[:30], tmp_path / "corpus.txt")
    output = tmp_path / "made" / "trimmed"
    assert cli.main(["trim", f"model={whole}", f"corpus={corpus}", f"output={output}", "sample=1"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reranker: error")]
    assert len(said) == 1
    assert "texts that the trimmed tokenizer cuts otherwise" in said[0]
    assert not (tmp_path / "made").exists()


def test_a_model_that_scores_otherwise_is_refused_and_nothing_is_written(
    wholes: dict[str, Path], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is made to spoil the head by a little."""
    from reranker.export import trim as command

    whole = command.save

    def faulty(model: Any, tokenizer: Any, staging: Path, state: Any = None) -> None:
        state["classifier.out_proj.bias"] += 1e-4
        whole(model, tokenizer, staging, state)

    monkeypatch.setattr(command, "save", faulty)
    with pytest.raises(
        UserError, match=r"output: found scores up to 0\.0001 from the original's, expected at most 1e-06"
    ):
        trimmed_of(wholes["unigram"], texts[:10], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_languages_keep_the_pieces_of_their_own_scripts_and_characters_can_go(texts: list[str], tmp_path: Path) -> None:
    rare = ["쉼표", "Привет", "こんにちは", "Zebra"]
    whole = tiny_model(tmp_path / "whole", vocabulary=rare)
    value = json.loads((whole / "tokenizer.json").read_text("utf-8"))
    words = {word: next(piece for piece, _ in value["model"]["vocab"] if piece == "▁" + normalized)
             for word, normalized in ((word, normalizers.NFD().normalize_str(word)) for word in rare)}  # fmt: skip

    def kept(name: str, **settings: Any) -> set[str]:
        output = tmp_path / name
        trim(TrimConfig(str(whole), str(corpus_of(["abc 가"], tmp_path / "corpus.txt")), str(output), **settings))
        return set(AutoTokenizer.from_pretrained(output).get_vocab())

    plain = kept("plain")
    assert not plain & set(words.values())
    assert {"a", "Z", "~", "7"} <= plain
    assert {word for word in rare if words[word] in kept("ko_en", languages=["ko", "en"])} == {"쉼표"}
    assert {word for word in rare if words[word] in kept("ja", languages=["ja"])} == {"こんにちは"}
    few = kept("few", languages=["ko"], characters=False)
    assert "7" in few
    assert "a" in few, "the corpus uses it"
    assert not {"Z", "q"} & few
    assert chr(0x1112) in few
    assert not {"7", "Z", chr(0x1112)} & kept("least", characters=False)


def test_with_a_minimum_frequency_texts_of_rarer_pieces_are_counted_and_all_others_stay(
    wholes: dict[str, Path], texts: list[str], tmp_path: Path
) -> None:
    output, report = trimmed_of(wholes["bpe"], texts[:40], tmp_path, min_frequency=3)
    assert 0 < report.corpus.same < report.corpus.texts == 40
    assert report.corpus.wrong == 0
    assert report.corpus.tokens_trimmed > report.corpus.tokens
    told = (output / "README.md").read_text("utf-8")
    assert f"Corpus: {report.corpus.same} of 40 texts" in told


def test_unseen_texts_are_told_of_without_being_kept(wholes: dict[str, Path], texts: list[str], tmp_path: Path) -> None:
    unseen = corpus_of(texts[-30:], tmp_path / "unseen.txt")
    _, report = trimmed_of(wholes["unigram"], texts[:30], tmp_path, unseen=str(unseen))
    assert report.corpus.same == report.corpus.texts
    assert report.unseen.texts == 30
    assert report.unseen.same < 30
    assert report.unseen.unknown_trimmed == report.unseen.unknown, "each character is a piece"


def test_a_trimmed_model_keeps_type_contract_and_card_and_tells_of_itself(
    wholes: dict[str, Path], texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    whole = tmp_path / "whole"
    shutil.copytree(wholes["unigram"], whole)
    config = json.loads((whole / "config.json").read_text())
    config["reranker"] = {"max_length": 96, "query_max_length": 20, "truncation": "only_second"}
    (whole / "config.json").write_text(json.dumps(config))
    parameters = AutoModelForSequenceClassification.from_pretrained(whole).num_parameters()
    size = Words("en")("introduction.size", parameters=parameters, dtype="fp16")
    (whole / "README.md").write_text(
        f"---\nlicense: mit\n---\n\n# base\n\n{size}\n\n### ONNX Runtime\n\n```python\n# onnx/model.onnx\n```\n\n## Data\n"
    )
    (whole / "gate.json").write_text('{"passed": false}')
    model = AutoModelForSequenceClassification.from_pretrained(whole).half()
    model.save_pretrained(whole)
    corpus, output = corpus_of(texts[:20], tmp_path / "corpus.txt"), tmp_path / "trimmed"
    assert cli.main(["trim", f"model={whole}", f"corpus=[{corpus}]", f"output={output}", "languages=[ko]"]) == 0
    table = capsys.readouterr().out
    trimmed = AutoModelForSequenceClassification.from_pretrained(output)
    report = json.loads((output / "trim.json").read_text())
    assert trimmed.dtype == torch.float16
    assert trimmed.num_parameters() == report["after"]["parameters"]
    assert report["after"]["weight_bytes"] == 2 * trimmed.num_parameters()
    assert trimmed.config.reranker == config["reranker"]
    assert f"| parameters | {report['before']['parameters']:,} | {trimmed.num_parameters():,} |" in table
    card = (output / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: mit\n---\n\n# base\n")
    assert Words("en")("introduction.size", parameters=trimmed.num_parameters(), dtype="fp16") in card
    assert size not in card
    assert "onnx" not in card.lower(), "which is not cut"
    assert "\n## Data\n" in card
    assert failed_gate(output)
    assert table.strip() in card
    assert {path.name for path in output.iterdir()} == {
        "README.md", "config.json", "gate.json", "model.safetensors", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json", "trim.json"
    }  # fmt: skip
    assert len({path.stat().st_mode for path in output.iterdir()}) == 1
    # The same command again replaces what it made; another directory it does not.
    assert cli.main(["trim", f"model={whole}", f"corpus={corpus}", f"output={output}"]) == 0
    for taken, said in ((tmp_path, "a directory that holds something else"), (whole, "the model itself")):
        capsys.readouterr()
        assert cli.main(["trim", f"model={whole}", f"corpus={corpus}", f"output={taken}"]) == 2
        assert said in capsys.readouterr().err
    assert Reranker(output).contract.max_length == 96


def test_prefixes_of_the_model_keep_their_pieces_before_every_text(
    wholes: dict[str, Path], texts: list[str], tmp_path: Path
) -> None:
    import shutil

    whole = Path(shutil.copytree(wholes["unigram"], tmp_path / "whole"))
    config = json.loads((whole / "config.json").read_text())
    config["reranker"] = {"max_length": 96, "query_prefix": "물음표를 붙인 ", "passage_prefix": "Zq:"}
    (whole / "config.json").write_text(json.dumps(config))
    output, report = trimmed_of(whole, texts[:8], tmp_path, characters=False)
    assert report.corpus.same == report.corpus.texts == 8, "each text counts once"
    before, after = (Reranker(path, device="cpu") for path in (whole, output))
    assert after.contract == before.contract
    scores = [reranker.score(texts[0], texts[1:8]) for reranker in (before, after)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    lengths = [[len(pair.ids) for pair in one.encode([(texts[0], text) for text in texts[1:8]])]
               for one in (before, after)]  # fmt: skip
    assert lengths[0] == lengths[1]
    assert (output / "modules.json").is_file()


def test_an_encoder_without_a_head_stays_one(wholes: dict[str, Path], texts: list[str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from reranker.model.cross_encoder import load_model

    whole = tmp_path / "whole"
    import shutil

    shutil.copytree(wholes["unigram"], whole)
    weights = load_file(whole / "model.safetensors")
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(body, whole / "model.safetensors", metadata={"format": "pt"})
    output, _ = trimmed_of(whole, texts[:10], tmp_path)
    assert set(load_file(output / "model.safetensors")) == set(body)
    model, fresh = load_model(str(output), seed=7)
    assert fresh
    assert torch.equal(model.state_dict()["classifier.dense.weight"],
                       load_model(str(whole), seed=7)[0].state_dict()["classifier.dense.weight"])  # fmt: skip
    with pytest.raises(UserError, match="without a score head"):
        Reranker(output)


def test_every_form_of_texts_is_read_to_the_last_text(tmp_path: Path) -> None:
    group = {"query": "q1", "pos": ["p1"], "neg": ["n1", "n2"], "prompt": "find"}
    lines = {
        "groups.jsonl": [group], "triplets.jsonl": [["a", "b", "c"]],
        "passages.jsonl": [{"id": "1", "text": "t1"}, {"_id": "2", "title": "head", "text": "t2"}],
        "queries.jsonl": [{"qid": "1", "query": "q", "pos": "7"}], "requests.jsonl": [{"query": "r", "passages": ["x", "y"]}],
        "pairs.jsonl": [{"query": "q2", "pos": ["p2"]}],
    }  # fmt: skip
    for name, records in lines.items():
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "groups.jsonl.gz").write_bytes(gzip.compress((tmp_path / "groups.jsonl").read_bytes()))
    (tmp_path / "plain.txt.zst").write_bytes(zstandard.compress("한 줄\n\nzwei\n".encode()))
    (tmp_path / "collection.tsv").write_text("1\teins\n2\tzwei\n")
    expected = {
        "groups.jsonl": ["find q1", "p1", "n1", "n2"], "groups.jsonl.gz": ["find q1", "p1", "n1", "n2"],
        "triplets.jsonl": ["a", "b", "c"], "passages.jsonl": ["t1", "head", "t2"], "queries.jsonl": ["q"],
        "requests.jsonl": ["r", "x", "y"], "pairs.jsonl": ["q2", "p2"], "plain.txt.zst": ["한 줄", "zwei"],
        "collection.tsv": ["eins", "zwei"],
    }  # fmt: skip
    for name, found in expected.items():
        assert list(every_text([str(tmp_path / name)], ReaderConfig())) == found, name
    everything = list(every_text([str(tmp_path / name) for name in expected], ReaderConfig()))
    assert everything == [text for found in expected.values() for text in found]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.jsonl.gz", gzip.compress(b'{"text": "a text"}\n' * 50, mtime=0)[:-12], "cannot be read to its end"),
        ("false.jsonl.gz", b'{"text": "a"}\n', "cannot be read to its end"),
        ("latin.tsv", "1\teins\n2\tfünf\n".encode("latin-1"), r"latin\.tsv:2: found bytes that are not UTF-8"),
        ("first.tsv", "1\tfünf\n".encode("latin-1"), r"first\.tsv:1: found bytes that are not UTF-8"),
        ("latin.jsonl", '{"text": "fünf"}\n'.encode("latin-1"), r"latin\.jsonl"),
    ],
    ids=["cut", "no gzip", "latin tsv", "its first line", "latin lines"],
)
def test_texts_that_cannot_be_read_are_told(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(every_text([str(tmp_path / name)], ReaderConfig()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"corpus": "nowhere.jsonl"}, r"nowhere\.jsonl: found no such file"),
        ({"corpus": []}, "corpus: found"),
        ({"corpus": "empty.txt"}, r"empty\.txt: found no texts"),
        ({"corpus": "wrong.jsonl"}, r"wrong\.jsonl:2: found a record without text"),
        ({"languages": ["xx"]}, "languages: found 'xx', expected ISO 639-1 codes"),
        ({"min_frequency": 0}, "min_frequency: found 0"),
        ({"model": "nothing/here/at/all"}, "model: found nothing/here/at/all, which does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    settings: dict[str, Any], said: str, wholes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("good.txt").write_text("text\n")
    Path("wrong.jsonl").write_text('{"text": "a"}\n{"id": 1}\n')
    usual = {"model": str(wholes["unigram"]), "corpus": "good.txt", "output": "output"}
    with pytest.raises(UserError, match=said):
        trim(TrimConfig(**{**usual, **settings}))
    assert not Path("output").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_truncation_that_was_saved_with_the_tokenizer_cuts_no_text_of_the_corpus(
    wholes: dict[str, Path], texts: list[str], tmp_path: Path
) -> None:
    import shutil

    whole = tmp_path / "whole"
    shutil.copytree(wholes["unigram"], whole)
    tokenizer = AutoTokenizer.from_pretrained(whole)
    tokenizer("x", truncation=True, max_length=8, padding="max_length")
    tokenizer.save_pretrained(whole)
    assert json.loads((whole / "tokenizer.json").read_text("utf-8"))["truncation"]["max_length"] == 8
    long = next(text for text in texts if len(tokens(wholes["unigram"], text)) > 40)
    output, report = trimmed_of(whole, [*texts[:10], long], tmp_path)
    assert tokens(output, long) == tokens(wholes["unigram"], long)
    assert report.corpus.tokens == sum(len(tokens(wholes["unigram"], text)) for text in [*texts[:10], long])


def test_a_token_that_the_file_of_the_tokenizer_lacks_is_refused(
    wholes: dict[str, Path], texts: list[str], tmp_path: Path
) -> None:
    import shutil

    from reranker.export.trim import _check_file

    whole = tmp_path / "whole"
    shutil.copytree(wholes["bpe"], whole)
    tokenization = described((whole / "tokenizer.json").read_text("utf-8"), "model")
    _check_file(AutoTokenizer.from_pretrained(whole).backend_tokenizer, tokenization, "model")
    settings = json.loads((whole / "tokenizer_config.json").read_text("utf-8"))
    number = max(pieces(tokenization)) + 1
    more = {
        "content": "<more>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    settings["added_tokens_decoder"] = {str(number): more}
    (whole / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert AutoTokenizer.from_pretrained(whole).convert_tokens_to_ids("<more>") == number
    with pytest.raises(UserError, match=rf"tokenizer\.json lacks 1 of its tokenizer's pieces, '<more>' \({number}\)"):
        trimmed_of(whole, texts[:5], tmp_path)
    assert not (tmp_path / "trimmed").exists()


def test_bytes_stay_though_single_characters_may_go() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenization = described(tokenizer.to_str(), "model")
    ids = kept_ids(tokenization, np.zeros(256, dtype=np.int64), characters=False)
    own = Tokenizer.from_str(written(cut(tokenization, ids)))
    assert own.decode(own.encode("Zebra 값 @#").ids) == "Zebra 값 @#"


def test_an_unknown_word_beside_an_added_token_stays_unknown() -> None:
    from reranker.export.trim_corpus import count

    names = ["[UNK]", "[MASK]", "a", "ab", "##bX", "c"]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[MASK]"])
    tokenization = described(tokenizer.to_str(), "model")
    assert tokenizer.encode("[MASK]abX c").tokens == ["[MASK]", "[UNK]", "c"]
    used = count(["[MASK]abX c"], tokenizer, tokenization)
    used[4] += 1  # as a text with a##bX would
    own = Tokenizer.from_str(written(cut(tokenization, kept_ids(tokenization, used))))
    assert own.encode("[MASK]abX c").tokens == ["[MASK]", "[UNK]", "c"]


def test_pieces_that_the_template_or_the_padding_names_stay_though_they_are_no_added_tokens() -> None:
    names = ["[UNK]", "begin", "finish", "blank", "a", "b"]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="begin $A finish", special_tokens=[("begin", 1), ("finish", 2)]
    )
    tokenizer.enable_padding(pad_id=3, pad_token="blank", length=4)
    tokenization = described(tokenizer.to_str(), "model")
    ids = kept_ids(tokenization, np.array([0, 0, 0, 0, 1, 0]), characters=False)
    assert ids == [0, 1, 2, 3, 4]
    own = Tokenizer.from_str(written(cut(tokenization, ids)))
    assert own.encode("a").tokens == ["begin", "a", "finish", "blank"]
    tokenization["padding"]["pad_id"] = 77
    with pytest.raises(UserError, match="names the id 77, of no piece"):
        kept_ids(tokenization, np.zeros(6, dtype=np.int64))


def test_ids_that_a_config_names_in_a_list_stay_and_are_numbered_anew() -> None:
    from reranker.model.trim import cut_embedding, ids_of_the_config

    config = BertConfig(vocab_size=12, pad_token_id=0, eos_token_id=[2, 7], **SIZES)
    assert {0, 2, 7} <= ids_of_the_config(config)
    model = BertForSequenceClassification(config)
    cut_embedding(model, [0, 2, 5, 7])
    assert model.config.eos_token_id == [1, 3]
