"""Train cross-encoder rerankers on many GPUs.

`from reranker import Reranker` loads a trained one; the command line is `reranker --help`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reranker.model.reranker import Reranker

__all__ = ["Reranker", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import: only who asks for a model pays.
    if name == "Reranker":
        from reranker.model.reranker import Reranker

        return Reranker
    raise AttributeError(f"module 'reranker' has no attribute {name!r}")
