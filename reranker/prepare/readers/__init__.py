"""What people have -> groups, in any of the forms that relevance data is kept in.

In: a path (groups as jsonl, .gz, .zst or one JSON array; triplets of sentence-transformers as jsonl, parquet or arrow;
a Hugging Face dataset directory; MS MARCO tsv; a BEIR directory; TREC qrels and a run). Out: for each record a `Group`
or an `Unreadable` that names it, in the order of the input: no wrong record ends a pass, and none is lost. A group
whose source holds no negatives has `neg=()`. Memory does not grow with the input: passages by id stay on the disk.
"""

from __future__ import annotations

from reranker.prepare.readers.detect import Found, corpus_file, detect
from reranker.prepare.readers.read import read, read_chunks, read_strict
from reranker.prepare.readers.record import Chunk, Record, Unreadable

__all__ = ["Chunk", "Found", "Record", "Unreadable", "corpus_file", "detect", "read", "read_chunks", "read_strict"]
