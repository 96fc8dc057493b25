"""The quality gates: what they let pass of good translations, what they refuse of bad ones, and what they say."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.config.gates import GatesConfig
from reranker.errors import UserError
from reranker.prepare.translate.gates import GATES, Gates, length_ratio
from reranker.prepare.translate.quantities import lost_numbers

SOURCE = "To open the settings of the printer, choose the entry Printers in the menu and then press the button."
GOOD = "프린터 설정을 열려면 메뉴에서 프린터 항목을 선택한 다음 단추를 누르십시오."


def _gates(target: str = "ko", source: str = "en", **settings: Any) -> Gates:
    return Gates.of(GatesConfig(**settings), source, target)


PASS = [
    (SOURCE, GOOD),
    ("what is an error", "오류란 무엇인가"),
    ("Error", "오류"),
    ("err", "err"),
    ("LibreOffice", "LibreOffice"),
    ("3 March 2020", "2020년 3월 3일"),
    ("The city has 1,234,567 people.", "이 도시의 인구는 1234567명입니다."),
    ("It has 5 million users.", "사용자가 500만 명입니다."),
    ("a budget of 1.5 billion dollars", "15억 달러의 예산"),
    ("120 million people", "1억 2천만 명"),
    ("three people", "3명"),
    ("The 3 menus", "메뉴 세 개"),
    ("a thousand or 1,000 steps", "천 걸음 또는 1,000걸음"),
    ("chapter 12 of 2020", "２０２０년 제１２장"),
    ("Release 7.4.2 is out", "7.4.2 릴리스가 나왔습니다"),
    ("See https://example.org/a for more.", "자세한 내용은 https://example.org/a에서 보십시오."),
    ("Say `ls -l` here", "여기서 `ls -l`을 입력하십시오"),
    ("Hello %s, you have {0} mails", "%s님, 메일이 {0}개 있습니다"),
    ("Tom &amp; Jerry are friends", "Tom & Jerry는 친구입니다"),
    ("and/or 50 km/h", "그리고/또는 시속 50km"),
    ("-----", "-----"),
]


@pytest.mark.parametrize(("source", "translation"), PASS)
def test_good_translations_pass(source: str, translation: str) -> None:
    assert _gates().check(source, translation) is None


REFUSED = [
    ("empty", SOURCE, "   "),
    ("empty", SOURCE, "..."),
    ("error", "what is a reranker", "err"),
    ("error", SOURCE, "Error: too many requests"),
    ("error", SOURCE, "None"),
    ("error", SOURCE, "I'm sorry, but I can't translate that."),
    ("untranslated", SOURCE, SOURCE),
    ("untranslated", "what is rba", "what is rba"),
    ("untranslated", "reranker training", "reranker training"),
    ("untranslated", SOURCE, "プリンターの設定を開くには、メニューでプリンターを選択してからボタンを押してください。"),
    ("untranslated", SOURCE, "要打开打印机设置,请在菜单中选择打印机条目,然后按按钮。"),
    ("length", SOURCE, "프린터 설정을"),
    (
        "length",
        "Open the file",
        "파일을 여는 방법에 대해 자세히 설명하자면 다음과 같은 여러 단계를 차례대로 거쳐야 합니다",
    ),
    ("numbers", "It was built in 1987.", "1978년에 지어졌다."),
    ("numbers", "It has 5 floors.", "6층 건물이다."),
    ("numbers", "It costs 1.5 million won.", "가격은 15만 원이다."),
    ("numbers", "The population is 1,234.", "인구는 1,243명이다."),
    ("urls", "See https://example.org/a for more.", "자세한 내용은 웹 사이트에서 보십시오."),
    ("urls", "Write to help@example.org now", "지금 help@example.com으로 보내 주십시오"),
    ("code", "Say `ls -l` here", "여기서 ls를 입력하십시오"),
    ("code", "Use the option --force now", "지금 힘 옵션을 쓰십시오"),
    ("code", "Edit /etc/fstab and reboot", "fstab을 고치고 다시 시작하십시오"),
    ("code", "Call open_file to open it", "열려면 파일열기를 호출하십시오"),
    ("placeholders", "Hello %s, how are you", "안녕하세요, 잘 지내십니까"),
    ("placeholders", "{0} of {1} files", "{0}개 파일"),
    ("placeholders", "Press <b>OK</b> now", "지금 <b>확인을 누르십시오"),
    ("repetition", SOURCE, GOOD[:30] + " 메뉴를 열고" * 6),
    ("repetition", SOURCE * 20, GOOD * 20 + "단추를 " * 8),
]


@pytest.mark.parametrize(("gate", "source", "translation"), REFUSED)
def test_bad_translations_are_refused_by_their_gate(gate: str, source: str, translation: str) -> None:
    reason = _gates().check(source, translation)
    assert reason is not None
    assert reason.split(":")[0] == gate
    assert gate in GATES


@pytest.mark.parametrize(("gate", "source", "translation"), REFUSED)
def test_a_gate_that_is_off_refuses_nothing(gate: str, source: str, translation: str) -> None:
    kind = type(getattr(GatesConfig(), gate))
    reason = _gates(**{gate: False if kind is bool else None}).check(source, translation)
    assert reason is None or reason.split(":")[0] != gate


def test_details_say_what_is_wrong() -> None:
    gates = _gates()
    assert gates.check("It was built in 1987.", "1978년에 지어졌다.") == "numbers: 1987 of the source is lost"
    assert gates.check("a query", "err") == "error: 'err' is the text of an error"
    assert gates.check(SOURCE, SOURCE) == "untranslated: 0% of its letters are of Korean"


def test_between_languages_of_one_script_copied_words_and_the_language_tell() -> None:
    gates = _gates("de")
    german = "Wählen Sie im Menü den Eintrag Drucker, um die Einstellungen des Druckers zu öffnen, und drücken Sie."
    assert gates.check(SOURCE, german) is None
    assert (gates.check(SOURCE, SOURCE) or "").startswith("untranslated: 19 of 19 words are the source's")
    english = "You can change what the printing device does if you look for it and then click on the thing."
    assert (gates.check(SOURCE, english) or "").startswith("language: en with probability")
    assert _gates("de", language=None).check(SOURCE, english) is None


def test_short_texts_are_not_identified() -> None:
    text = "Printer on table now"
    assert _gates("de", language_letters=len(text), language=0.0).check("x y z Drucker", text) is None
    assert _gates("de", language_letters=5, language=0.0).check("x y z Drucker", text)


def test_the_length_ratio_counts_columns() -> None:
    assert length_ratio("abcd", "가나") == 1.0
    assert length_ratio("abcd", "abcdefgh") == 2.0
    assert length_ratio("abcd", "", slack=4) == 0.5


@given(st.lists(st.integers(0, 10**7), max_size=8), st.randoms())
def test_numbers_in_another_order_or_grouped_otherwise_are_kept(numbers: list[int], random: Any) -> None:
    source = "; ".join(f"{number:,}" for number in numbers)
    random.shuffle(numbers)
    assert lost_numbers(source, "; ".join(map(str, numbers))) == []


@given(st.integers(13, 10**7), st.integers(0, 10**7))
def test_another_number_is_never_taken_for_the_one_of_the_source(number: int, other: int) -> None:
    assert (lost_numbers(f"x {number:,} y", f"가 {other} 나") == []) == (number == other)


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_judged_alike_every_time(source: str, translation: str) -> None:
    gates = _gates()
    assert gates.check(source, translation) == gates.check(source, translation)


@pytest.mark.parametrize("piece", ["x", "-", "7", "123,", "a.", "`", "/+"])
def test_a_long_text_without_a_space_costs_no_more_than_its_length(piece: str) -> None:
    text = piece * (30_000 // len(piece))
    began = time.process_time()
    for translation in (f"{text} 백만", GOOD * 400):
        _gates().check(f"{text} million", translation)
    # Half a second; where a pattern takes the square of the length it is 10 s to minutes.
    assert time.process_time() - began < 5


def test_what_is_lost_is_told_in_a_short_line() -> None:
    reason = _gates(length=None, repetition=None).check(f"It is {'7' * 5000} long", "그것은 길다")
    assert reason is not None
    assert len(reason) < 200


def test_settings_and_languages_are_in_the_digest() -> None:
    digests = {_gates().digest, _gates("de").digest, _gates(numbers=False).digest, _gates(length=[0.1, 9.0]).digest}
    assert len(digests) == 4
    assert _gates().digest == _gates().digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"untranslated": 1.5}, "gates.untranslated: found 1.5"),
        ({"length": [2.0, 1.0]}, "gates.length: found [2.0, 1.0]"),
        ({"length": [1.0]}, "gates.length: found [1.0]"),
        ({"language_letters": -1}, "gates.language_letters: found -1"),
        ({"error_texts": ["("]}, "gates.error_texts: found '('"),
        ({"similarity": 0.5}, "gates.similarity: found 0.5 with similarity_model=None"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        _gates(**settings)
    assert str(error.value).startswith(message)


def test_a_language_of_unknown_script_is_told_unless_no_gate_needs_it() -> None:
    with pytest.raises(UserError, match=r"^target: found 'kor', .*did you mean ko\?"):
        _gates("kor")
    with pytest.raises(UserError, match=r"^source: found 'xx'"):
        _gates("ko", source="xx")
    assert _gates("br", untranslated=None).check(SOURCE, "err") is not None


def test_without_the_library_of_languages_the_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from reranker.prepare.translate import gates

    gates._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UserError, match=r"pip install ko-reranker\[translation\]"):
        _gates()
    assert _gates(language=None).check(SOURCE, GOOD) is None
    monkeypatch.undo()
    gates._identifier.cache_clear()
