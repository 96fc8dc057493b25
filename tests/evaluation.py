"""What the tests of an evaluation evaluate: short Korean questions, each with one right passage among its like."""

from __future__ import annotations

from collections.abc import Iterable

TOPICS = ["창문", "글꼴", "소리", "화면", "파일", "인쇄", "사진", "시계"]
ACTIONS = ["열기", "닫기", "바꾸기", "지우기"]


def texts_of(topics: Iterable[str], actions: Iterable[str]) -> dict[str, str]:
    """{id: passage}, a passage for each action on each topic; its question is the same without the last words."""
    actions = list(actions)
    return {f"{topic}-{action}": f"{topic} {action} 방법을 알려 드립니다" for topic in topics for action in actions}
