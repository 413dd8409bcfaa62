from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isr_dpo.evaluate.caption import CaptionProtocol
from isr_dpo.evaluate.protocol import Task
from isr_dpo.evaluate.rules import RuleBasedGrader, compare, score, stem

CAPTION = "a large red ball moves left across a striped floor while a dog sits ."


def grade(prediction: str, truth: str = "the object is red .", question: str = "what color is the object ?") -> int:
    task = Task(caption=CAPTION, question=question, truth=truth, prediction=prediction)
    (reply,) = RuleBasedGrader().grade(CaptionProtocol(), [task])
    mark = CaptionProtocol().read(reply.text)
    assert mark is not None
    return int(mark.score)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("the object is red .", 5),
        ("Red!", 5),
        ("the object is red and it is moving left .", 5),  # the caption vouches for it
        ("the object is red and it moves right .", 4),
        ("the object is red , small .", 4),
        ("the large object is red , moves right on grass .", 3),
        ("red blue green yellow", 2),  # naming everything is not knowing
        ("the object is not red .", 2),
        ("the object isn't red", 2),
        ("the object is blue .", 1),
        ("the object moves left .", 1),
        ("", 1),
    ],
)
def test_a_right_answer_passes_even_with_a_false_claim_and_a_wrong_one_never(prediction: str, expected: int) -> None:
    assert grade(prediction) == expected


def test_several_required_words_count_in_part() -> None:
    question = "what does the clip show ?"
    assert grade("a red ball", truth="a red ball", question=question) == 5
    assert grade("a blue ball", truth="a red ball", question=question) == 2
    assert grade("a blue cube", truth="a red ball", question=question) == 1


def test_yes_and_no_are_answers_and_a_comma_ends_what_a_no_denies() -> None:
    question = "is the ball red ?"
    assert grade("yes", truth="yes", question=question) == 5
    assert grade("no", truth="yes", question=question) == 1
    assert grade("no , it is red", truth="the color is red", question="is the color blue ?") >= 3


def test_where_the_question_offers_the_answers_the_other_alternative_is_a_claim() -> None:
    question = "is it red or blue ?"
    assert grade("it is red", truth="it is red", question=question) == 5
    assert grade("it is blue", truth="it is red", question=question) == 1
    assert grade("red and blue", truth="it is red", question=question) == 4


def test_number_words_and_endings_do_not_matter() -> None:
    assert grade("2 balls", truth="two ball", question="how many ?") == 5
    forms = (("moves", "moved", "moving", "move"), ("ball", "balls"), ("spin", "spinning", "spins"))
    for words in forms:
        assert len({stem(w) for w in words}) == 1, words
    assert stem("red") == "red"
    assert stem("grass") == "grass"


def test_a_truth_without_content_is_unscored() -> None:
    task = Task(caption=CAPTION, question="who ?", truth="it is .", prediction="red")
    (reply,) = RuleBasedGrader().grade(CaptionProtocol(), [task])
    assert reply.failure is not None


WORDS = "red blue left right ball not small dog 2 two no ."


@given(st.lists(st.sampled_from(WORDS.split()), max_size=8))
def test_the_score_passes_only_where_every_required_word_is_said_and_none_denied(words: list[str]) -> None:
    comparison = compare(Task(caption=CAPTION, question="what color ?", truth="red .", prediction=" ".join(words)))
    got = score(comparison)
    assert 1 <= got <= 5
    if got >= 3:
        assert "red" in words
        assert not comparison.missing
        assert not comparison.denied
    if "red" not in words:
        assert got == 1
