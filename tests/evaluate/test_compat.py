"""The compat reading against tables of replies, worked out by hand from the description of the public scripts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isr_dpo.evaluate.compat import read_caption, read_official


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        # a labelled number, wherever it stands
        ("Explanation: fine.\nScore: 4", 4.0),
        ("Score: 4.5", 4.5),
        ("Score: 4.", 4.0),
        ("Score: 45", 45.0),
        ("the Score: 2 of 5. Score: 5", 2.0),
        ("Explanation: 3 3 3 cats\nScore: 5/5", 5.0),
        # another spelling of the label is none: the most frequent number
        ("score: 4", 4.0),
        ("**Score:** 4", 4.0),
        ("Score:4", 4.0),
        ("I count 2 dogs and 2 cats, so 5.", 2.0),
        ("4 of 5", 4.5),
        ("1, 2, 2, 3, 3", 2.5),
        ("it gets a 3.5.", 3.5),
        ("Score: -4", 4.0),
        # a number inside a word is none, and no number at all is a 1
        ("v2x", 1.0),
        ("", 1.0),
        ("I cannot judge this.", 1.0),
        ("Score: four", 1.0),
        # a structured reply: its score, whatever numbers its explanation has; an object of another form is text
        ('{"explanation": "2 dogs, 2 cats", "score": 5}', 5.0),
        ('{"explanation": "Score: 1", "score": 5}', 5.0),
        ('{"score": 3}', 3.0),
        ('{"explanation": "2 of 2", "score": 9}', 2.0),
    ],
)
def test_caption_replies_are_read_as_the_public_script_does(reply: str, score: float) -> None:
    assert read_caption(reply) == (score, score >= 3)


@pytest.mark.parametrize(
    ("reply", "score", "correct"),
    [
        ("{'pred': 'yes', 'score': 4}", 4, True),
        ('{"pred": "no", "score": 0}', 0, False),
        ("{'pred': 'yes', 'score': 4.8}", 4, True),
        ("{'pred':'yes','score':3}", 3, True),
        ("{'pred': 'yes', 'score' : 12}", 12, True),
        ("{'pred': 'yes', 'score': '4'}", None, True),
        ("{'pred': 'yes', score: 4}", None, True),
        ("{'pred': 'yes', 'score\": 4}", None, True),
        ("{'score': 2} or {'score': 5}", 2, None),
        # yes wins over no wherever it stands, and both are found inside words
        ("No. On second thought, YES.", None, True),
        ("his eyes are open", None, True),
        ("I do not know", None, False),
        ("The answer is wrong; 'score': 1", 1, None),
        ("{'pred': 'nope', 'score': 1}", 1, False),
        ("", None, None),
    ],
)
def test_official_replies_are_read_as_the_public_script_does(
    reply: str, score: int | None, correct: bool | None
) -> None:
    assert read_official(reply) == (score, correct)


def test_one_reply_of_hundreds_of_digits_spoils_no_mean() -> None:
    assert read_caption("Score: " + "9" * 400) == (None, True)
    assert read_official("yes 'score': " + "9" * 400) == (None, True)


@given(st.text() | st.from_regex(r"(Score: )?[0-9. x]{0,12}"))
def test_the_readings_never_break(reply: str) -> None:
    score, _ = read_caption(reply)
    assert score is None or math.isfinite(score)
    read_official(reply)
