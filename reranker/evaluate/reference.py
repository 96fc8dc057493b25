"""has-right-in-contexts and MRR as the reference computed them, under names of their own.

The numbers on ko-reranker's card (0.93 / 0.80, 0.95 / 0.84, 0.96 / 0.87) come from a notebook of its repository,
genai/aws-gen-ai-kr/20_applications/02_qa_chatbot/05_evaluation/02_evaluation-reranker.ipynb. For each line of its csv
it put the texts of the k = 5 contexts handed on into a dictionary {text: rank} and looked the line's `doc` up in it.
From the strict measures that differs in four ways:

1. A passage is right if its *text* is that of the right one, whatever its id; strictly if its *id* is.
2. A text that is handed on several times has its *last* rank, as a later entry of a dictionary replaces an earlier one;
   strictly the first right passage counts. The ranks are those before doubles fall together.
3. `mrr` looks at the k contexts alone, so it is MRR@k (a miss is 0, and counts); strictly at all that are reranked.
4. Its order of equal scores is the one that they came in; here, as for every measure, ties are broken against us first.

A line whose request failed was left out of its means; here no query is. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def grades_by_text(
    ranked: Sequence[str], grades: Mapping[str, int], text_of: Callable[[str], str], k: int | None
) -> list[int]:
    """For each of the first k ranks 1 if the reference found the right text there, else 0.

    Of several right passages, which the reference does not know, each is looked up by itself.
    """
    right = {text_of(passage) for passage, grade in grades.items() if grade > 0}
    rank_of = {text_of(passage): place for place, passage in enumerate(ranked[:k])}
    found = {rank_of[text] for text in right if text in rank_of}
    return [int(place in found) for place in range(len(ranked[:k]))]
