"""What a training is evaluated on: its dev groups, sets of other forms beside them, or sets alone.

In: `data.dev` and `data.dev_sets`; the engine's forward. Out: one set of metrics, alike on every rank, and ranked
examples of the dev groups. Those of a set are called NAME/mrr, NAME/ndcg@10 and NAME/has_right_in_contexts. Raises
`UserError`, for a `train.metric` of a set that is not there as well.
"""

from __future__ import annotations

import torch

from reranker.config.training import TrainConfig
from reranker.data.tokenize import PairTokenizer
from reranker.evaluate.crew import Crew
from reranker.evaluate.dev import DevEvaluator
from reranker.evaluate.metrics import METRICS
from reranker.evaluate.scored_sets import ScoredSets
from reranker.evaluate.shared import Score, SharedScorer
from reranker.selection import check_set
from reranker.train.examples import Example


class Evaluator:
    """Evaluates a model in training. What it reads is read when it is made; `find` comes before all else.

    Attributes:
        dev: the dev groups; sets: the evaluation sets. None where there are none.
    """

    def __init__(self, config: TrainConfig, tokenizer: PairTokenizer) -> None:
        data, examples = config.data, config.tracking.examples
        self.dev = DevEvaluator(data.dev, tokenizer, examples=examples) if data.dev else None
        self.sets: ScoredSets | None = None
        if data.dev_sets is not None:
            self.sets = ScoredSets("data.dev_sets", data.dev_sets, METRICS)
            check_set(config.train.metric, self.sets.names)
        self._tokenizer = tokenizer
        self._scorers: list[SharedScorer] = []

    def find(self, crew: Crew, device: str) -> None:
        """Find the candidates of the sets, once for all evaluations. A collective call. Raises UserError."""
        if self.sets is not None:
            self.sets.find(crew, device)
            self._scorers = self.sets.scorers(self._tokenizer)

    def evaluate(
        self, score: Score, crew: Crew, device: torch.device, packed: bool
    ) -> tuple[dict[str, float], list[Example]]:
        """(the metrics by name, the examples), the same on every rank. A collective call: every rank makes it.

        Raises UserError on every rank if a score is not finite.
        """
        metrics: dict[str, float] = {}
        examples: list[Example] = []
        if self.dev is not None:
            metrics, examples = self.dev.evaluate(score, crew.rank, crew.world, crew.gather, device, packed)
        if self.sets is not None:
            for name, of_metrics in self.sets.per_query(self._scorers, score, crew, device, packed).items():
                metrics |= {f"{name}/{metric}": float(values_Q.mean()) for metric, values_Q in of_metrics.items()}
        return metrics, examples
