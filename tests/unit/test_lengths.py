"""Token lengths: those of the tokenizer, beside the shards or on this node, and nothing else is taken for them."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest

from reranker.config.shards import PackConfig
from reranker.data.cache import ShardCache
from reranker.data.lengths import Lengths, find_or_write_lengths, lengths_name, write_lengths
from reranker.data.manifest import load_manifest
from reranker.data.reader import ShardReader
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.files import sha256
from reranker.groups import Group, write_groups
from reranker.prepare.pack import pack, pack_command
from tests.tiny import tiny_model

GROUPS = [
    Group(
        f"질문 {n}",
        tuple(f"정답 {n} " + "글 " * n for _ in range(n % 2 + 1)),
        tuple("오답 " * (n + i) + "끝" for i in range(n % 4 + 1)),
        prompt="찾으시오:" if n % 3 == 0 else None,
    )
    for n in range(25)
]
REMAKE = "delete the directory: whoever needs it makes it again"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with different tokenizers, a/ and b/."""
    directory = tmp_path_factory.mktemp("models")
    tiny_model(directory / "a")
    tiny_model(directory / "b", vocabulary=["정답", "오답"])
    return directory


@pytest.fixture(scope="module")
def hugging_face(models: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(models / name) for name in "ab"}


@pytest.fixture(scope="module")
def tokenizers(hugging_face: dict[str, Any]) -> dict[str, PairTokenizer]:
    return {name: PairTokenizer(tokenizer, Contract(16)) for name, tokenizer in hugging_face.items()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """Shards with the lengths of a."""
    directory = tmp_path_factory.mktemp("packed")
    assert pack_command(config(directory, models)) == 0
    return directory / "shards"


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    """A copy to be changed, its groups beside it."""
    shutil.copy(packed.parent / "groups.jsonl", tmp_path)
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def config(directory: Path, models: Path, **settings: Any) -> PackConfig:
    if not (directory / "groups.jsonl").exists():
        write_groups(directory / "groups.jsonl", GROUPS)
    settings = {"groups_per_shard": 10, "tokenizer": str(models / "a"), **settings}
    return PackConfig(groups=str(directory / "groups.jsonl"), output=str(directory / "shards"), **settings)


def content(directory: Path) -> dict[str, bytes]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def times(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): path.stat().st_mtime_ns for path in directory.rglob("*.*")}


def of_all_groups(lengths: Lengths, directory: Path) -> list[tuple[int, list[int]]]:
    reader = ShardReader(directory, load_manifest(directory))
    places = [reader.place(number) for number in range(25)]
    return [lengths.group(shard, index, reader.index(shard)) for shard, index in places]


def open_lengths(directory: Path, tokenizer: PairTokenizer) -> Lengths:
    name = lengths_name(tokenizer.fingerprint)
    return Lengths(directory / name, load_manifest(directory), tokenizer.fingerprint)


def expected(tokenizer: Any) -> list[tuple[int, list[int]]]:
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [(count(group.prompted_query), [count(text) for text in (*group.pos, *group.neg)]) for group in GROUPS]


def test_every_text_counts_as_its_tokenizer_cuts_it(
    packed: Path, hugging_face: dict[str, Any], tokenizers: dict[str, PairTokenizer]
) -> None:
    assert of_all_groups(open_lengths(packed, tokenizers["a"]), packed) == expected(hugging_face["a"])
    assert expected(hugging_face["a"]) != expected(hugging_face["b"])


def test_a_text_of_more_tokens_than_a_column_holds_counts_as_the_most(
    tmp_path: Path, tokenizers: dict[str, PairTokenizer]
) -> None:
    group = Group("질문", ("가 " * 70_000,), ("가 " * 65_535, "나"))
    manifest = pack([group], tmp_path / "shards", {"name": "x"}, 10)
    reader = ShardReader(tmp_path / "shards", manifest)
    lengths = find_or_write_lengths(reader, tokenizers["a"], tmp_path / "cache")
    assert lengths.tokens(0).tolist()[1:3] == [65535, 65535]
    assert lengths.group(0, 0, reader.index(0))[1][2] < 10


def test_the_directory_is_named_after_the_tokenizer_and_holds_a_file_for_each_shard(
    packed: Path, tokenizers: dict[str, PairTokenizer]
) -> None:
    directory = packed / f"lengths-{tokenizers['a'].fingerprint}"
    names = [f"shard-0000{n}.safetensors" for n in range(3)]
    assert sorted(content(directory)) == ["lengths.json", *names]
    value = json.loads((directory / "lengths.json").read_text("utf-8"))
    assert [(shard["name"], shard["sha256"]) for shard in value["shards"]] == [
        (name, sha256(directory / name)) for name in names
    ]
    assert {key: value[key] for key in ("schema", "tokenizer", "data")} == {
        "schema": 1, "tokenizer": tokenizers["a"].fingerprint, "data": load_manifest(packed).fingerprint,
    }  # fmt: skip


def test_any_number_of_processes_writes_the_same_bytes(
    packed: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(packed.parent / "groups.jsonl", tmp_path)
    assert pack_command(config(tmp_path, models, workers=2)) == 0
    assert content(tmp_path / "shards") == content(packed)
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/shards: 25 groups in 3 shards, with token lengths of {models}/a\n"
    assert "token lengths: 100%" in err


def test_another_tokenizers_lengths_are_added_and_the_shards_stand(
    shards: Path, models: Path, hugging_face: dict[str, Any], tokenizers: dict[str, PairTokenizer],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = times(shards)
    for tokenizer, told in (("a", ""), ("b", f"; token lengths of {models}/b added"), ("b", "")):
        assert pack_command(config(shards.parent, models, tokenizer=str(models / tokenizer))) == 0
        assert capsys.readouterr().out == f"{shards}: 25 groups in 3 shards, packed before{told}\n"
    after = times(shards)
    assert {name: after[name] for name in before} == before
    assert of_all_groups(open_lengths(shards, tokenizers["b"]), shards) == expected(hugging_face["b"])
    assert sorted(path.name for path in shards.iterdir() if path.is_dir()) == sorted(
        lengths_name(tokenizer.fingerprint) for tokenizer in tokenizers.values()
    )


def test_damaged_lengths_are_not_passed_over_when_packing_again(
    shards: Path, models: Path, tokenizers: dict[str, PairTokenizer]
) -> None:
    path = shards / lengths_name(tokenizers["a"].fingerprint) / "shard-00001.safetensors"
    path.unlink()
    with pytest.raises(UserError) as caught:
        pack_command(config(shards.parent, models))
    assert str(caught.value) == f"{path}: found no such file, expected a file of the 3 in lengths.json; {REMAKE}"


def test_lengths_go_with_their_shards_when_those_are_overwritten(
    shards: Path, models: Path, tokenizers: dict[str, PairTokenizer]
) -> None:
    killed = shards / f".{lengths_name(tokenizers['b'].fingerprint)}.x1y2z3"
    killed.mkdir()
    (killed / "shard-00000.safetensors").write_bytes(b"of a run that was killed")
    write_groups(shards.parent / "groups.jsonl", GROUPS[:3])
    assert pack_command(config(shards.parent, models, tokenizer=None, overwrite=True)) == 0
    assert sorted(content(shards)) == ["manifest.json", "shard-00000.index.safetensors", "shard-00000.tar"]


def test_something_else_among_the_lengths_is_not_overwritten(
    shards: Path, models: Path, tokenizers: dict[str, PairTokenizer]
) -> None:
    name = lengths_name(tokenizers["a"].fingerprint)
    (shards / name / "thesis.tex").write_text("years of work", encoding="utf-8")
    before = content(shards)
    with pytest.raises(UserError) as caught:
        pack_command(config(shards.parent, models, overwrite=True))
    assert str(caught.value) == (
        f"output: found {shards}, which holds {name}/thesis.tex, expected a directory of shards alone or none; "
        "move it away or choose another one"
    )
    assert content(shards) == before


def test_a_model_without_a_tokenizer_is_refused_before_anything_is_written(tmp_path: Path, models: Path) -> None:
    with pytest.raises(UserError) as caught:
        pack_command(config(tmp_path, models, tokenizer="/no/model"))
    assert str(caught.value) == (
        "tokenizer: found /no/model, which does not exist, expected a Hugging Face model directory or hub name; "
        "check the path"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["groups.jsonl"]


def refused(directory: Path, tokenizer: PairTokenizer) -> str:
    with pytest.raises(UserError) as caught:
        of_all_groups(open_lengths(directory, tokenizer), directory)
    return str(caught.value).replace(f"{directory}/{lengths_name(tokenizer.fingerprint)}/", "")


def test_lengths_of_another_tokenizer_are_refused(shards: Path, tokenizers: dict[str, PairTokenizer]) -> None:
    a, b = tokenizers["a"].fingerprint, tokenizers["b"].fingerprint
    (shards / lengths_name(a)).rename(shards / lengths_name(b))
    assert refused(shards, tokenizers["b"]) == (
        f"lengths.json: found lengths of tokenizer {a}, expected those of {b}; {REMAKE}"
    )


def test_lengths_of_other_data_are_refused(
    shards: Path, models: Path, tmp_path: Path, tokenizers: dict[str, PairTokenizer]
) -> None:
    mine = load_manifest(shards).fingerprint
    (tmp_path / "other").mkdir()
    write_groups(tmp_path / "other" / "groups.jsonl", GROUPS[::-1])
    assert pack_command(config(tmp_path / "other", models)) == 0
    name = lengths_name(tokenizers["a"].fingerprint)
    other = load_manifest(tmp_path / "other" / "shards").fingerprint
    shutil.rmtree(shards / name)
    shutil.copytree(tmp_path / "other" / "shards" / name, shards / name)
    assert (
        refused(shards, tokenizers["a"])
        == f"lengths.json: found lengths of data {other}, expected those of {mine}; {REMAKE}"
    )


@pytest.mark.parametrize("name", ["lengths.json", "shard-00002.safetensors", "directory"])
def test_missing_lengths_are_named(name: str, shards: Path, tokenizers: dict[str, PairTokenizer]) -> None:
    directory = shards / lengths_name(tokenizers["a"].fingerprint)
    if name == "directory":
        shutil.rmtree(directory)
    else:
        (directory / name).unlink()
    if name.startswith("shard"):
        line = f"{name}: found no such file, expected a file of the 3 in lengths.json; {REMAKE}"
    else:
        line = f"lengths.json: found a file that cannot be read (No such file or directory), expected token lengths; {REMAKE}"
    assert refused(shards, tokenizers["a"]) == line


def test_a_changed_file_is_refused_and_harms_no_other(shards: Path, tokenizers: dict[str, PairTokenizer]) -> None:
    path = shards / lengths_name(tokenizers["a"].fingerprint) / "shard-00001.safetensors"
    written = sha256(path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert refused(shards, tokenizers["a"]) == (
        f"shard-00001.safetensors: found sha256 {sha256(path)[:16]}…, expected {written[:16]}…, as in lengths.json; {REMAKE}"
    )
    lengths = open_lengths(shards, tokenizers["a"])
    assert len(lengths.tokens(0)) == ShardReader(shards, load_manifest(shards)).index(0).texts


def test_lengths_that_do_not_count_every_text_are_refused(shards: Path, tokenizers: dict[str, PairTokenizer]) -> None:
    directory = shards / lengths_name(tokenizers["a"].fingerprint)
    value = json.loads((directory / "lengths.json").read_text("utf-8"))
    value["shards"][0].update({key: value["shards"][2][key] for key in ("texts", "sha256")})
    (directory / "lengths.json").write_text(json.dumps(value), encoding="utf-8")
    shutil.copy(directory / "shard-00002.safetensors", directory / "shard-00000.safetensors")
    texts = [ShardReader(shards, load_manifest(shards)).index(shard).texts for shard in (2, 0)]
    assert refused(shards, tokenizers["a"]) == (
        f"shard-00000.safetensors: found {texts[0]} texts, expected the {texts[1]} of its shard's index; {REMAKE}"
    )
    value["shards"][0]["texts"] += 1
    (directory / "lengths.json").write_text(json.dumps(value), encoding="utf-8")
    assert refused(shards, tokenizers["a"]) == (
        f"shard-00000.safetensors: found uint16 of shape ({texts[0]},), expected uint16 of {texts[0] + 1} texts; {REMAKE}"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, f"found schema 9, expected schema 1; {REMAKE}"),
        ({"shards": [{"name": "x"}]}, "found incomplete lengths ("),
        (None, "found a file that cannot be read (Expecting value: line 1 column 1 (char 0)), expected token lengths"),
    ],
    ids=["schema", "incomplete", "torn"],
)
def test_lengths_of_another_kind_are_refused(
    change: dict[str, Any] | None, message: str, shards: Path, tokenizers: dict[str, PairTokenizer]
) -> None:
    path = shards / lengths_name(tokenizers["a"].fingerprint) / "lengths.json"
    value = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**value, **change}) if change else "", encoding="utf-8")
    assert refused(shards, tokenizers["a"]).startswith(f"lengths.json: {message}")


def test_lengths_that_are_missing_are_counted_beside_the_shards_once(
    shards: Path, hugging_face: dict[str, Any], tokenizers: dict[str, PairTokenizer]
) -> None:
    reader = ShardReader(shards, load_manifest(shards))
    lengths = find_or_write_lengths(reader, tokenizers["b"], shards.parent / "cache")
    assert lengths.directory == str(shards / lengths_name(tokenizers["b"].fingerprint))
    assert of_all_groups(lengths, shards) == expected(hugging_face["b"])
    before = times(shards)
    again = find_or_write_lengths(reader, tokenizers["b"], shards.parent / "cache")
    assert of_all_groups(again, shards) == expected(hugging_face["b"])
    assert times(shards) == before
    assert not (shards.parent / "cache").exists()


PREFIXED = Contract(16, query_prefix="물음: ", passage_prefix="글:")


def with_prefixes(tokenizer: Any) -> list[tuple[int, list[int]]]:
    """What training shows of each text, prefix and text cut as one."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [(count("물음: " + group.prompted_query), [count("글:" + text) for text in (*group.pos, *group.neg)])
            for group in GROUPS]  # fmt: skip


def test_texts_count_behind_their_prefixes_and_other_lengths_stay(
    shards: Path, hugging_face: dict[str, Any], tokenizers: dict[str, PairTokenizer]
) -> None:
    before = content(shards)
    reader = ShardReader(shards, load_manifest(shards))
    prefixed = PairTokenizer(hugging_face["a"], PREFIXED)
    lengths = find_or_write_lengths(reader, prefixed, shards.parent / "cache", workers=2)
    assert lengths.directory == str(shards / lengths_name(prefixed.lengths_fingerprint))
    assert of_all_groups(lengths, shards) == with_prefixes(hugging_face["a"])
    assert before.items() <= content(shards).items()
    bare = find_or_write_lengths(reader, tokenizers["a"], shards.parent / "cache")
    assert of_all_groups(bare, shards) == expected(hugging_face["a"])
    once = times(shards)
    find_or_write_lengths(reader, prefixed, shards.parent / "cache")
    assert times(shards) == once


def test_lengths_with_other_prefixes_are_refused(shards: Path, hugging_face: dict[str, Any]) -> None:
    reader = ShardReader(shards, load_manifest(shards))
    prefixed, other = (
        PairTokenizer(hugging_face["a"], contract)
        for contract in (PREFIXED, dataclasses.replace(PREFIXED, passage_prefix="글: "))
    )
    written = Path(find_or_write_lengths(reader, prefixed, shards.parent / "cache").directory)
    written.rename(shards / lengths_name(other.lengths_fingerprint))
    with pytest.raises(UserError) as caught:
        find_or_write_lengths(reader, other, shards.parent / "cache")
    assert caught.value.found == f"lengths of tokenizer {prefixed.lengths_fingerprint}"


def test_pack_writes_the_lengths_that_a_training_with_prefixes_looks_for(
    models: Path, tmp_path: Path, hugging_face: dict[str, Any]
) -> None:
    prefixes = {"query_prefix": "물음: ", "passage_prefix": "글:"}
    assert pack_command(config(tmp_path, models, **prefixes)) == 0
    prefixed = PairTokenizer(hugging_face["a"], PREFIXED)
    before = content(tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards", load_manifest(tmp_path / "shards"))
    lengths = find_or_write_lengths(reader, prefixed, tmp_path / "cache")
    assert of_all_groups(lengths, tmp_path / "shards") == with_prefixes(hugging_face["a"])
    assert content(tmp_path / "shards") == before
    assert pack_command(config(tmp_path, models, **prefixes)) == 0
    assert content(tmp_path / "shards") == before
    with pytest.raises(UserError) as caught:
        pack_command(config(tmp_path, models, tokenizer=None, query_prefix="물음: "))
    assert str(caught.value) == (
        "query_prefix: found '물음:', expected a tokenizer beside it, as it changes nothing but token lengths; "
        "say tokenizer=MODEL, or leave query_prefix out"
    )


def test_lengths_of_remote_shards_are_counted_on_this_node_once(
    packed: Path, tmp_path: Path, hugging_face: dict[str, Any], tokenizers: dict[str, PairTokenizer]
) -> None:
    before = content(packed)
    cache = ShardCache(tmp_path / "copies", 1 << 30)
    reader = ShardReader(f"local://{packed}", load_manifest(packed), cache)
    lengths = find_or_write_lengths(reader, tokenizers["b"], tmp_path / "cache", workers=2)
    place = tmp_path / "cache" / "lengths" / f"{load_manifest(packed).fingerprint}-{tokenizers['b'].fingerprint}"
    assert lengths.directory == str(place)
    assert of_all_groups(lengths, packed) == expected(hugging_face["b"])
    written = times(place)
    assert find_or_write_lengths(reader, tokenizers["b"], tmp_path / "cache").directory == str(place)
    assert times(place) == written
    assert content(packed) == before


def test_lengths_beside_remote_shards_are_read_through_the_cache(
    shards: Path, tmp_path: Path, hugging_face: dict[str, Any], tokenizers: dict[str, PairTokenizer]
) -> None:
    cache = ShardCache(tmp_path / "copies", 1 << 30)
    reader = ShardReader(f"local://{shards}", load_manifest(shards), cache)
    lengths = find_or_write_lengths(reader, tokenizers["a"], tmp_path / "cache")
    assert of_all_groups(lengths, shards) == expected(hugging_face["a"])
    assert not (tmp_path / "cache").exists()
    shutil.rmtree(shards / lengths_name(tokenizers["a"].fingerprint))
    unpickled = pickle.loads(pickle.dumps(lengths))
    assert of_all_groups(unpickled, shards) == expected(hugging_face["a"])


def test_lengths_that_another_process_finished_first_stay(shards: Path, tokenizers: dict[str, PairTokenizer]) -> None:
    reader = ShardReader(shards, load_manifest(shards))
    place = shards / lengths_name(tokenizers["a"].fingerprint)
    before = place.stat().st_ino
    write_lengths(place, reader, tokenizers["a"])
    assert place.stat().st_ino == before
    assert [path.name for path in shards.iterdir() if path.name.startswith(".")] == []


def test_a_damaged_member_is_named_and_no_lengths_are_written(
    shards: Path, tokenizers: dict[str, PairTokenizer]
) -> None:
    tar = shards / "shard-00001.tar"
    tar.write_bytes(tar.read_bytes().replace("질문 13".encode(), "질문 14".encode()))
    before = content(shards)
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"shard-00001.tar:000000013.json: found bytes that differ from those"):
            reader = ShardReader(shards, load_manifest(shards), retries=0)
            find_or_write_lengths(reader, tokenizers["b"], shards.parent / "cache", workers)
        assert content(shards) == before


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path: Path, tokenizers: dict[str, PairTokenizer]) -> None:
    manifest = pack(
        [Group(f"질문 {n}", ("정답",), ("오답",)) for n in range(300)], tmp_path / "shards", {"name": "x"}, 1
    )
    lengths = find_or_write_lengths(ShardReader(tmp_path / "shards", manifest), tokenizers["a"], tmp_path)
    columns = [weakref.ref(lengths.tokens(shard)) for shard in range(300)]
    assert sum(column() is not None for column in columns) == 256
    assert len(lengths.tokens(0)) == 3
