"""Parquet and arrow files, and the Hugging Face dataset directories made of them, row by row.

In: files of columns (see `columns.py`); pyarrow alone reads them, a batch of rows at a time. Out: (number, value) of
each row, counted from 1. A file that is torn is named behind the rows that could be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.files import read_json
from reranker.prepare.readers.columns import LABELS
from reranker.prepare.readers.record import Unreadable

SUFFIXES = (".parquet", ".arrow")
_ROWS = 1024


def dataset_files(directory: Path, split: str | None) -> list[Path]:
    """The files of one split of a dataset directory: `save_to_disk`'s, or a snapshot's. Raises UserError."""
    if (directory / "dataset_dict.json").is_file():
        names = _names(directory / "dataset_dict.json", lambda content: content["splits"])
        return dataset_files(directory / _chosen(directory, names, split), None)
    if (directory / "state.json").is_file():
        files = _names(directory / "state.json", lambda content: [file["filename"] for file in content["_data_files"]])
        return [directory / name for name in files]
    found = sorted(path for suffix in SUFFIXES for path in directory.rglob(f"*{suffix}"))
    by_split: dict[str, list[Path]] = {}
    for path in found:
        by_split.setdefault(_split_of(path, directory), []).append(path)
    return by_split[_chosen(directory, list(by_split), split)] if by_split else []


def split_names(directory: Path) -> list[str]:
    """The splits of a dataset directory; none where it is not one, or holds a single one without a name."""
    if (directory / "dataset_dict.json").is_file():
        return _names(directory / "dataset_dict.json", lambda content: content["splits"])
    if (directory / "state.json").is_file():
        return []
    found = sorted(path for suffix in SUFFIXES for path in directory.rglob(f"*{suffix}"))
    return list(dict.fromkeys(_split_of(path, directory) for path in found))


def _names(path: Path, chosen: Callable[[Any], Any]) -> list[str]:
    """The names that a file of `save_to_disk` lists. Raises UserError."""
    fix = "save the dataset anew"
    try:
        names = chosen(read_json(path, fix))
    except (KeyError, TypeError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(path, "a file that lists no data", "what save_to_disk of datasets writes", fix)
    return names


def _split_of(path: Path, directory: Path) -> str:
    """train of data/train-00000-of-00002.parquet, and of train/0000.parquet."""
    stem = path.stem.partition("-")[0]
    return path.parent.name if stem.isdigit() and path.parent != directory else stem


def _chosen(directory: Path, names: list[str], split: str | None) -> str:
    wanted = split or (names[0] if len(names) == 1 else "train")
    if wanted not in names:
        raise UserError("split", wanted, f"one of {sorted(names)} of {directory}", "choose one")
    return wanted


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Unreadable]]:
    """(number, columns that are not null, and the label) of each row of a file.

    Raises UserError where pyarrow is not installed.
    """
    pyarrow = _pyarrow(path)
    number = 0
    try:
        for batch in _batches(path):
            for row in _decoded(batch):
                number += 1
                if isinstance(row, UnicodeDecodeError):
                    reason = f"found text that is not UTF-8 ({row.reason}), expected UTF-8"
                    yield number, Unreadable(f"{path}#{number}", "encoding", reason)
                    continue
                yield number, {key: value for key, value in row.items() if value is not None or key in LABELS}
    except (pyarrow.ArrowException, OSError) as error:
        reason = f"found a file that cannot be read on ({' '.join(str(error).split())}), expected a whole file"
        yield number + 1, Unreadable(f"{path}#{number + 1}", "cut_short", reason)


def _decoded(batch: Any) -> list[Any]:
    """The rows of a batch; a UnicodeDecodeError for each with a text that is none."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        return [_row(batch.slice(place, 1)) for place in range(batch.num_rows)]  # the others can be read


def _row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return error


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow

    if path.suffix == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_ROWS)
        return
    with pyarrow.memory_map(str(path)) as source:
        try:
            file = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            stream = pyarrow.ipc.open_stream(source)  # what datasets writes
            for batch in stream:
                yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))
            return
        for index in range(file.num_record_batches):
            yield file.get_batch(index)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(path, "no pyarrow to read it with", "pyarrow", "pip install pyarrow") from None
    return pyarrow
