"""Back-translation: how near to its source a translation comes back.

In: texts and their translations, a backend of the other direction and an embedding model of sentence-transformers.
Out: for each pair the cosine of the source's embedding and that of the translation translated back. After Rapp (2009),
"The Backtranslation Score", with embeddings in place of n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reranker.errors import UserError
from reranker.prepare.translate.backend import Backend


class Similarity:
    """Raises UserError where sentence-transformers is not installed or the model cannot be loaded.

    Attributes:
        identity: the model and the backend: what changes a cosine.
    """

    def __init__(
        self, model: str, back: Backend, device: str | None = None, key: str = "gates.similarity_model"
    ) -> None:
        self._model, self._back = _load(model, device, key), back
        self.identity = f"{model} {back.identity}"

    def check_many(self, sources: Sequence[str], translations: Sequence[str]) -> list[float]:
        """The cosine of each pair, from -1 to 1. What does not come back is as unlike as can be: -1."""
        assert len(sources) == len(translations)
        size = self._back.batch_texts
        batches = [translations[start : start + size] for start in range(0, len(translations), size)]
        returned = [outcome.text for batch in batches for outcome in self._back.translate(batch)]
        pairs = [(source, text) for source, text in zip(sources, returned, strict=True) if text is not None]
        if not pairs:
            return [-1.0] * len(sources)
        embeddings = self._model.encode([text for pair in pairs for text in pair], normalize_embeddings=True,
                                        convert_to_numpy=True, show_progress_bar=False)  # fmt: skip
        cosines = iter((embeddings[0::2] * embeddings[1::2]).sum(axis=1).tolist())
        return [-1.0 if text is None else next(cosines) for text in returned]


def _load(model: str, device: str | None, key: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(key, "no sentence-transformers", "the library that embeds texts",
                        "pip install ko-reranker[mining], or say gates.similarity=null") from None  # fmt: skip
    try:
        return SentenceTransformer(model, device=device)
    except (OSError, ValueError) as error:
        found = f"{model}, which cannot be loaded ({str(error).splitlines()[0]})"
        raise UserError(key, found, "a directory or hub name of a sentence-transformers model", "check it") from None
