"""The kinds of findings: how bad each is, what to do about it, and what `fix=true` does.

An error spoils a training or an evaluation; a warning may be meant. What `fix` does is what `fix.py` does, and no more:
of every error the mended copy is free.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What is known of a kind: its severity, the advice, and what fix=true does ("" for nothing)."""

    severity: str
    advice: str
    fix: str = ""


KINDS = {
    "unreadable": Kind("error", "mend or leave out the records that are named", "moved to unreadable.jsonl"),
    "error_text": Kind("error", "make these texts anew: they are messages of a tool", "passage removed; query: group"),
    "no_negatives": Kind("error", "mine negatives with reranker mine (before that: negatives=false)", "group removed"),
    "duplicate_group": Kind("error", "keep one of each", "all but the first removed"),
    "positive_among_negatives": Kind("error", "remove it from the negatives", "removed from the negatives"),
    "positive_elsewhere_negative": Kind("error", "remove it where it is a negative", "removed from the negatives"),
    "leak_exact": Kind("error", "remove the groups from the training data", "group removed"),
    "leak_near": Kind("error", "look at the examples; remove the groups", "group removed"),
    "leak_negative": Kind("warning", "mine negatives from passages that the evaluation does not hold"),
    "duplicate_passage": Kind("warning", "keep one of each", "all but the first removed"),
    "duplicate_query": Kind("warning", "merge the groups, or see that both are meant"),
    "query_equals_positive": Kind("warning", "such a pair teaches nothing: leave it out"),
    "too_few_negatives": Kind("warning", "mine more, or choose data.short_groups"),
    "too_long": Kind("warning", "raise data.max_length or split the passages"),
    "score_order": Kind("warning", "see whether the teacher or the label is wrong"),
    "other_script": Kind("warning", "see whether query and positive are of one language"),
    "html_leftovers": Kind("warning", "extract the text again without markup"),
    "odd_length": Kind("warning", "see whether it is a passage"),
    "mixed_prompts": Kind("warning", "give all groups a prompt or none"),
    "mixed_scores": Kind("warning", "score all groups: distillation needs a teacher's score for each"),
}
"""In the order in which they are told."""
