"""The lines of a file as bytes, in bounded memory, to wherever the file can be read.

In: a file, plain, .gz or .zst. Out: (number, bytes) of each line that is not blank, and an `Unreadable` for each that
is longer than the limit (no more of it than the limit is ever held) and for the end of a file that cannot be read to
its end: what came before is handed out first.
"""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from reranker.errors import shorten
from reranker.files import open_text
from reranker.prepare.readers.record import Chunk, Record, Unreadable

BLOCK = 1 << 17
CHUNK_LINES, CHUNK_BYTES = 1000, 1 << 22
LONGEST = 1 << 24


def bounded_lines(path: str | Path, longest: int = LONGEST) -> Iterator[tuple[int, bytes | Unreadable]]:
    """(number, line) of each line that is not blank. Raises UserError for a file that is missing."""
    yield from ((number, line) for number, _, line in located_lines(path, longest))


def located_lines(path: str | Path, longest: int = LONGEST) -> Iterator[tuple[int, int, bytes | Unreadable]]:
    """The same with the offset of each line in the decompressed file: (number, offset, line)."""
    number, offset = 1, 0  # of the line that `parts` belong to
    parts: list[bytes] = []
    size = 0
    with open_text(path) as text:
        stream: Any = text.buffer  # type: ignore[attr-defined]
        failure = None
        while True:
            try:
                block = stream.read1(BLOCK)
            except (EOFError, OSError, zlib.error) as error:
                block, failure = b"", error
            pieces = block.split(b"\n")
            for place, piece in enumerate(pieces):
                size += len(piece)
                if size <= longest:
                    parts.append(piece)
                else:
                    parts.clear()
                if place < len(pieces) - 1:
                    if made := _line(parts, path, number, offset, size, longest):
                        yield number, offset, made
                    number, offset = number + 1, offset + size + 1
                    parts, size = [], 0
            if not block:
                break
        # The last line may have no end, and is whole all the same where only a checksum behind it is wrong.
        if size and (made := _line(parts, path, number, offset, size, longest)):
            yield number, offset, made
            number, offset = number + 1, offset + size
        if failure is not None:
            yield number, offset, Unreadable(
                f"{path}:{number}", "cut_short",
                f"found a file that cannot be read on ({failure}), expected a whole file; what came before was read",
                offset=offset,
            )  # fmt: skip


def _line(parts: list[bytes], path: object, number: int, offset: int, size: int, longest: int) -> Any:
    if size > longest:
        return Unreadable(f"{path}:{number}", "long_line", f"found a line of {size:,} bytes, expected at most "
                          f"longest_line={longest:,}", offset=offset, size=size)  # fmt: skip
    line = b"".join(parts)
    return line if line.strip() else None


def line_chunks(path: str | Path, lines: Literal["json", "tsv"], longest: int, most_negatives: int) -> Iterator[Chunk]:
    """The same in chunks of bounded size, not parsed yet."""
    items: list[tuple[int, Any]] = []
    held = 0
    for number, line in bounded_lines(path, longest):
        items.append((number, line))
        held += len(line) if isinstance(line, bytes) else 0
        if len(items) >= CHUNK_LINES or held >= CHUNK_BYTES:
            yield Chunk(f"{path}:", items, lines, most_negatives)
            items, held = [], 0
    if items:
        yield Chunk(f"{path}:", items, lines, most_negatives)


def record_chunks(prefix: str, records: Iterable[tuple[int, Record]], most_negatives: int) -> Iterator[Chunk]:
    """Records that are made already, in chunks of bounded size."""
    items: list[tuple[int, Any]] = []
    held = 0
    for numbered in records:
        items.append(numbered)
        held += _size(numbered[1])
        if len(items) >= CHUNK_LINES or held >= CHUNK_BYTES:
            yield Chunk(prefix, items, most_negatives=most_negatives)
            items, held = [], 0
    if items:
        yield Chunk(prefix, items, most_negatives=most_negatives)


def _size(record: Record) -> int:
    """Characters or bytes that a record holds."""
    if isinstance(record, Unreadable):
        return len(record.line or b"")
    return len(record.query) + sum(map(len, (*record.pos, *record.neg)))


def array_values(path: str | Path, longest: int) -> Iterator[tuple[int, Any]]:
    """(number, value or Unreadable) of each element of a file that is one JSON array, read piece by piece.

    Behind an element that cannot be read none can be told apart: it is named with the rest of the file, which is cut
    short there. So is what stands behind the array's end, where another array may begin.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    parse = json.JSONDecoder().raw_decode
    number, text, failed, more, opened = 0, "", "the array ends early", True, False
    with open_text(path) as stream:
        while more and len(text) <= longest:
            try:
                block = stream.buffer.read1(BLOCK)  # type: ignore[attr-defined]
                text += decode(block, final=not block)
            except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
                block, failed = b"", str(error)
            more = bool(block)
            if not opened and (text := text.lstrip()):
                text, opened = text.removeprefix("["), True
            while text := text.lstrip(" \t\r\n,"):
                if text.startswith("]"):
                    if behind := _behind(text[1:], stream.buffer):  # type: ignore[attr-defined]
                        yield number + 1, _torn(path, number + 1, behind, "which stands behind the end of the array")
                    return
                try:
                    value, end = parse(text)
                except (ValueError, RecursionError):
                    break  # it may go on in the next block
                if end == len(text) and more:
                    break  # so may a number
                number, text = number + 1, text[end:]
                yield number, value
    if len(text) > longest:
        failed = f"no value ends within longest_line={longest:,}"
    yield number + 1, _torn(path, number + 1, text, failed)


def _behind(text: str, stream: Any) -> str:
    """What follows the end of an array, but for white space; the beginning of it."""
    try:
        while not text.strip() and (block := stream.read1(BLOCK)):
            text = block.decode("utf-8", "replace")
    except (EOFError, OSError, zlib.error) as error:
        return f"a file that cannot be read on: {error}"
    return text.strip()


def _torn(path: str | Path, number: int, text: str, why: str) -> Unreadable:
    reason = f"found {shorten(text)} ({why}), expected a JSON value; the array cannot be read on"
    return Unreadable(f"{path}#{number}", "cut_short", reason, text[: 1 << 16].encode("utf-8", "backslashreplace"))
