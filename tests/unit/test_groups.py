"""What a file of groups may hold, and the line that each mistake is answered with."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from reranker.errors import UserError
from reranker.groups import Group, read_groups, write_groups

LINE = '{"query": "수도는?", "pos": ["서울"], "neg": ["부산", "대구"]}\n'
GROUP = Group("수도는?", ("서울",), ("부산", "대구"))


def write(path: Path, content: bytes) -> Path:
    compress: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
    path.write_bytes(compress.get(path.suffix, bytes)(content))
    return path


def refused(path: Path) -> str:
    """The line with which reading `path` is refused, without the directory."""
    with pytest.raises(UserError) as caught:
        list(read_groups(path))
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_plain_and_compressed_files_give_the_same_groups(name: str, tmp_path: Path) -> None:
    content = (LINE + "\n   \n" + LINE * 3).encode()
    assert list(read_groups(write(tmp_path / name, content))) == [GROUP] * 4


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_concatenated_compressed_files_are_read_to_the_end(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / ("a.gz" if compress is gzip.compress else "a.zst")
    path.write_bytes(compress(LINE.encode()) + compress(LINE.encode()))
    assert list(read_groups(path)) == [GROUP, GROUP]


def test_optional_keys_are_kept_and_others_passed_over(tmp_path: Path) -> None:
    record = {
        "query": "q",
        "pos": ["p"],
        "neg": ["n", "m"],
        "pos_scores": [2],
        "neg_scores": [0.5, -1],
        "id": 7,
        "prompt": "search: ",
        "type": "normal",
    }
    path = write(tmp_path / "a.jsonl", json.dumps(record).encode())
    assert list(read_groups(path)) == [Group("q", ("p",), ("n", "m"), (2.0,), (0.5, -1.0), "7", "search: ")]


def test_the_query_as_the_model_reads_it_has_the_prompt_before_it() -> None:
    assert Group("수도는?", ("서울",), ("부산",), prompt="찾기:").prompted_query == "찾기: 수도는?"
    assert GROUP.prompted_query == "수도는?"


def test_triplet_arrays_are_groups_with_one_negative(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '["수도는?", "서울", "부산"]\n'.encode())
    assert list(read_groups(path)) == [Group("수도는?", ("서울",), ("부산",))]


FORM = '{"query": "...", "pos": ["..."], "neg": ["..."]}'
MISTAKES = {
    '{"query": "q", "pos": "서울", "neg": ["n"]}': (
        '"pos" a string \'서울\', expected a list of strings; write "pos": ["..."]'
    ),
    '{"query": "q", "pos": ["p"], "neg": []}': (
        'an empty "neg" list, expected at least one passage; mine negatives for the group or leave it out'
    ),
    '{"query": "q", "pos": [], "neg": ["n"]}': (
        'an empty "pos" list, expected at least one passage; add a passage or leave it out'
    ),
    '{"query": "q", "pos": ["p"]}': f"keys ['pos', 'query'], expected a key \"neg\"; write {FORM}",
    '{"query": "q", "pos": ["p"], "negs": ["n"]}': (
        "keys ['negs', 'pos', 'query'], expected a key \"neg\"; rename \"negs\" to \"neg\""
    ),
    '{"query": "q", "pos": ["p", 3], "neg": ["n"]}': "\"pos\"[1] a number '3', expected a string; write it as text",
    '{"query": "q", "pos": ["p"], "neg": ["n", null]}': (
        "\"neg\"[1] a null 'None', expected a string; write it as text"
    ),
    '{"query": " ", "pos": ["p"], "neg": ["n"]}': (
        'an empty "query", expected some text; fill it in or leave the record out'
    ),
    '{"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": [1, 2]}': (
        '"neg_scores" 2 of them, expected 1 numbers, one a passage; mend or remove "neg_scores"'
    ),
    '{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": ["high"]}': (
        '"pos_scores" "[\'high\']", expected 1 numbers, one a passage; mend or remove "pos_scores"'
    ),
    '["q", "p"]': "an array of 2, expected [query, positive, negative]; write three texts",
    '["q", "p", ["n"]]': "negative a list \"['n']\", expected a string; write it as text",
    '"q"': f"a string 'q', expected a JSON object; write {FORM}",
    '{"query": "q",': (
        '\'{"query": "q",\' (Expecting property name enclosed in double quotes at column 15), '
        "expected one JSON value a line; write each record on one line of its own"
    ),
    '{"query": "\\ud800", "pos": ["p"], "neg": ["n"]}': (
        '"query" with half a character (\\ud800), expected text that UTF-8 can hold; mend or leave the record out'
    ),
    '{"query": "q", "pos": ["p"], "neg": ["n"], "id": "\\ud800"}': (
        '"id" with half a character (\\ud800), expected text that UTF-8 can hold; mend or leave the record out'
    ),
}


@pytest.mark.parametrize(
    ("line", "why"), [("[" * 100_000, "brackets too deep"), ("7" * 5000, "a number of too many digits")]
)
def test_a_line_that_no_parser_takes_is_named_as_any_other(line: str, why: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f"{LINE}{line}\n{LINE}".encode())
    assert refused(path) == (
        f"a.jsonl:2: found '{line[:59]}…' ({why}), expected one JSON value a line; "
        "write each record on one line of its own"
    )


@pytest.mark.parametrize("line", MISTAKES)
def test_a_wrong_line_is_named_with_what_was_found_and_what_to_do(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f"{LINE}\n{line}\n{LINE}".encode())
    assert refused(path) == f"a.jsonl:3: found {MISTAKES[line]}"


def test_bytes_that_are_not_utf8_are_named_by_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINE.encode() * 9 + LINE.encode("cp949"))
    assert refused(path).startswith("a.jsonl:10: found bytes that are not UTF-8 (")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_compressed_file_that_was_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    lines = "".join(LINE.replace("서울", f"서울 {number * 7919 % 10007}") for number in range(5000))
    path = write(tmp_path / name, lines.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"{name}: found a file that cannot be read to its end (" in refused(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_name_that_promises_another_compression_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LINE, encoding="utf-8")
    assert f"{name}: found a file that cannot be read to its end (" in refused(tmp_path / name)


def test_a_file_without_groups_is_refused(tmp_path: Path) -> None:
    assert refused(write(tmp_path / "a.jsonl", b"\n\n")) == (
        f"a.jsonl: found an empty file, expected one group a line, {FORM}; check how the file was made"
    )


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.jsonl") == "a.jsonl: found no such file, expected a file; check the path"
    (tmp_path / "d").mkdir()
    assert refused(tmp_path / "d") == "d: found a directory, expected a file; check the path"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
passages = st.lists(texts, min_size=1, max_size=4).map(tuple)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    pos, neg = draw(passages), draw(passages)

    def scores(count: int) -> tuple[float, ...] | None:
        number = st.floats(allow_nan=False, allow_infinity=False)
        return draw(st.none() | st.lists(number, min_size=count, max_size=count).map(tuple))

    return Group(
        draw(texts), pos, neg, scores(len(pos)), scores(len(neg)), draw(st.none() | texts), draw(st.none() | texts)
    )


@given(written=st.lists(groups(), min_size=1, max_size=5))
def test_what_is_written_is_read_again(written: list[Group], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "what-is-written.jsonl"  # one for all examples
    assert write_groups(path, written) == len(written)
    assert list(read_groups(path)) == written


def test_a_record_holds_the_keys_that_it_has_in_a_fixed_order() -> None:
    assert GROUP.to_json() == '{"query":"수도는?","pos":["서울"],"neg":["부산","대구"]}'
    full = Group("수도는?", ("서울",), ("부산",), (1.5,), (-2.0,), "7", "답을 찾으세요:")
    assert full.to_json() == (
        '{"query":"수도는?","pos":["서울"],"neg":["부산"],"pos_scores":[1.5],"neg_scores":[-2.0],"id":"7",'
        '"prompt":"답을 찾으세요:"}'
    )


def test_a_file_of_groups_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def broken():  # type: ignore[no-untyped-def]
        yield GROUP
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_groups(path, broken())
    assert list(tmp_path.iterdir()) == []
