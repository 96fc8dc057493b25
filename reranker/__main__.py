"""`python -m reranker <command> ...`, the same as `reranker <command> ...`."""

from reranker.cli import console

console()
