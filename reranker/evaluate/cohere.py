"""Cohere's rerank API (v2) as a system, through its own client.

In: queries with their candidates. Out: the service's relevance scores. A call holds a query and all its candidates, or
as many as a call may have; its answer names them by their place, in an order of its own. Rank 0 alone calls, a few
times at once; the client makes a call again that was throttled or failed on the service's side, and waits as long as it
is told to. What is answered is kept at once (`Answers`): behind a kill the same command goes on, and pays for nothing
twice but the calls that were under way. The key comes from the environment and is in no file, report or message. Raises
UserError for a call that is refused and for an answer that is none.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from reranker.config.systems import CohereConfig
from reranker.errors import UserError, shorten
from reranker.evaluate.answers import Answers
from reranker.evaluate.crew import Crew
from reranker.evaluate.fingerprint import digest
from reranker.evaluate.systems import Pairs

UNIT = 100
"""Documents of a search unit, by which the service bills: cohere.com/pricing."""
_FIXES = {
    400: "check model and settings", 401: "check the key in {key}", 403: "check the key in {key}",
    404: "check model and base_url", 422: "check model and settings", 498: "check the key in {key}",
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """The scores of a call's documents, in their order, and the search units that it was billed."""

    scores: list[float]
    units: float


class CohereSystem:
    """Cohere's rerank API, or another service that answers as it does."""

    def __init__(self, name: str, config: CohereConfig, answers: Answers, key: str) -> None:
        self.name, self._config, self._answers, self._key = name, config, answers, key
        # Not the client's version: what an upgrade of it changes is not what it is answered.
        self.identity: Mapping[str, Any] = {
            "kind": config.kind.value, "api": "v2/rerank", "base_url": config.base_url, "model": config.model,
            "max_tokens_per_doc": config.max_tokens_per_doc, "documents_per_call": config.documents_per_call,
        }  # fmt: skip
        cut = f", at most {config.max_tokens_per_doc:,} tokens a passage" if config.max_tokens_per_doc else ""
        self.told = f"{config.model} of {config.base_url}{cut}"
        self._client: Any = None

    def check(self) -> None:
        self._secret()

    def score(self, queries: Sequence[Pairs], crew: Crew, advance: Callable[[int], object]) -> np.ndarray:
        return crew.from_first(lambda: self._scores(queries, advance))

    def score_alone(self, pairs: Pairs) -> np.ndarray:
        """Calls anew: what is kept takes no time. These calls are paid for as well."""
        return np.array([score for call in self._calls([pairs]) for score in self._call(*call).scores])

    def _scores(self, queries: Sequence[Pairs], advance: Callable[[int], object]) -> np.ndarray:
        calls = list(self._calls(queries))
        names = [self._name(*call) for call in calls]
        missing = {
            name: call for name, call in zip(names, calls, strict=True) if self._answers.get(name) is None
        }  # fmt: skip
        advance(sum(len(call[1]) for name, call in zip(names, calls, strict=True) if name not in missing))
        if missing:
            self._note(len(calls) - len(missing), missing.values())
            try:
                units = self._ask(missing, advance)
            finally:
                self._answers.close()
            print(f"note: {self.name}: {len(missing):,} calls, {units:,g} search units billed", file=sys.stderr)
        scores = [self._answers.get(name) or [] for name in names]
        return np.array([score for of_call in scores for score in of_call])

    def _note(self, kept: int, calls: Any) -> None:
        units = sum(-(-len(documents) // UNIT) for _, documents in calls)
        answered = f"; {kept:,} are answered already" if kept else ""
        print(f"note: {self.name}: {len(calls):,} calls to {self._config.base_url}, {units:,} search units or more"
              f"{answered}", file=sys.stderr)  # fmt: skip

    def _ask(self, missing: Mapping[str, tuple[str, list[str]]], advance: Callable[[int], object]) -> float:
        """Make calls and keep their answers; the search units that they were billed. Raises UserError."""
        self._opened()  # by one thread
        units = 0.0
        running: dict[Future[Answer], str] = {}

        def keep(done: set[Future[Answer]]) -> float:
            billed = 0.0
            answered = [future for future in done if future.exception() is None]
            for future in answered:
                answer = future.result()
                self._answers.put(running[future], answer.scores)
                advance(len(answer.scores))
                billed += answer.units
            for future in done - set(answered):
                future.result()  # raises
            for future in answered:
                del running[future]
            return billed

        with ThreadPoolExecutor(self._config.concurrency) as pool:
            try:
                for name, call in missing.items():
                    if len(running) == self._config.concurrency:
                        units += keep(wait(running, return_when=FIRST_COMPLETED).done)
                    running[pool.submit(self._call, *call)] = name
                while running:
                    units += keep(wait(running, return_when=FIRST_COMPLETED).done)
            except BaseException:
                # Those under way are paid: what they bring is kept, whatever ends this.
                wait(running)
                for future, name in running.items():
                    if future.exception() is None and self._answers.get(name) is None:
                        self._answers.put(name, future.result().scores)
                raise
        return units

    def _calls(self, queries: Sequence[Pairs]) -> Iterator[tuple[str, list[str]]]:
        """(query, documents) of each call."""
        size = self._config.documents_per_call
        for pairs in queries:
            for start in range(0, len(pairs), size):
                some = pairs[start : start + size]
                yield some[0][0], [passage for _, passage in some]

    def _name(self, query: str, documents: Sequence[str]) -> str:
        of = {name: value for name, value in self.identity.items() if name != "documents_per_call"}
        return digest([of, query, documents])

    def _call(self, query: str, documents: Sequence[str]) -> Answer:
        config = self._config
        more = {} if config.max_tokens_per_doc is None else {"max_tokens_per_doc": config.max_tokens_per_doc}
        with self._refusals_told():
            answer = self._opened().rerank(
                model=config.model, query=query, documents=documents, **more,
                request_options={"max_retries": config.retries, "timeout_in_seconds": config.timeout},
            )  # fmt: skip
        return self._read(answer, len(documents))

    def _read(self, answer: Any, count: int) -> Answer:
        results = getattr(answer, "results", None)
        scores: dict[int, float] = {}
        for result in results if isinstance(results, list) else ():
            # The client does not check what it reads.
            place: Any = getattr(result, "index", None)
            score: Any = getattr(result, "relevance_score", None)
            number = isinstance(score, (int, float)) and math.isfinite(score)
            if not number or not isinstance(place, int) or not 0 <= place < count or place in scores:
                raise self._malformed(f"index {shorten(place)} with relevance_score {shorten(score)}")
            scores[place] = float(score)
        if len(scores) != count:
            raise self._malformed(f"{len(scores)} scores of {count} documents")
        billed = getattr(getattr(answer, "meta", None), "billed_units", None)
        units = getattr(billed, "search_units", None)
        return Answer([scores[place] for place in range(count)], units if isinstance(units, (int, float)) else 0.0)

    def _malformed(self, found: str) -> UserError:
        return UserError(self._key, f"an answer of {self._config.base_url} with {found}", "each index once, with a "
                         "number", "check base_url, or whether the service answers as Cohere's v2/rerank")  # fmt: skip

    @contextlib.contextmanager
    def _refusals_told(self) -> Iterator[None]:
        """Raise a UserError where the service, or the way to it, refuses."""
        import httpx
        from cohere.core.api_error import ApiError

        config, again = self._config, "run the same command again: what was answered is kept"
        try:
            yield
        except ApiError as error:
            body = error.body.get("message", error.body) if isinstance(error.body, dict) else error.body
            found = f"status {error.status_code} from {config.base_url} ({self._harmless(body)})"
            fix = _FIXES.get(error.status_code or 0, again).format(key=config.api_key_env)
            raise UserError(self._key, found, "an answer of v2/rerank", fix) from None
        except httpx.HTTPError as error:
            found = f"no answer from {config.base_url} ({type(error).__name__}: {self._harmless(error)})"
            raise UserError(self._key, found, "a service", f"check base_url and the network, and {again}") from None
        except (AttributeError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise self._malformed(f"another form ({self._harmless(error)})") from None

    def _harmless(self, text: object) -> str:
        """What a message says, without the key."""
        return shorten(str(text).replace(self._secret(), "..."), 160)

    def _secret(self) -> str:
        variable = self._config.api_key_env
        secret = os.environ.get(variable, "")
        if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
            # The name is not told: somebody may have written the key in its place.
            found = "the name of a variable that " + ("is not set" if not secret else "holds no key")
            raise UserError(f"{self._key}.api_key_env", found, "the environment variable that holds the key",
                            "export CO_API_KEY=..., for example")  # fmt: skip
        return secret

    def _opened(self) -> Any:
        """The client, which all threads share."""
        if self._client is None:
            import cohere

            self._client = cohere.ClientV2(self._secret(), base_url=self._config.base_url, client_name="ko-reranker")
        return self._client
