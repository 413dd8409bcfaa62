from pathlib import Path

import pytest
import synthetic_run
from synthetic_run import recipe, right

from isr_dpo.report import flips
from isr_dpo.report.flips import Flips
from isr_dpo.report.reading import KeptRun


def kept(uri: str, name: str = "smoke") -> KeptRun:
    return KeptRun(uri, recipe(name=name), name)


@pytest.fixture(scope="module")
def found(whole_run: str) -> Flips:
    return flips.gather([kept(whole_run)])


def test_flips_are_counted_over_all_questions_for_every_pair(found: Flips) -> None:
    counted = {(c.set, c.first, c.second): (c.rows, c.to_right, c.to_wrong) for c in found.counts}
    assert counted == {
        ("dev", 0, 1): (39, 3, 0),
        ("dev", 0, 2): (39, 6, 1),
        ("dev", 1, 2): (39, 3, 1),
        ("test", 0, 2): (39, 6, 1),
    }


def test_questions_that_changed_sides_are_shown_with_all_answers(found: Flips) -> None:
    on_dev = {question.id: question for question in found.questions if question.set == "dev"}
    assert set(on_dev) == {f"q{n}" for n in (5, 21, 22, 23, 24, 25, 26)}
    lost = on_dev["q5"]
    assert [answer.correct for answer in lost.answers if answer] == [True, True, False]
    assert [lost.moves(0, 2), lost.moves(2, 0), lost.moves(0, 1)] == ["wrong", "right", ""]
    assert lost.text == "where does it go, 5?"
    assert lost.truth.endswith("home")
    assert lost.answers[2] is not None
    assert lost.answers[2].reply.startswith("Explanation:")


def test_an_unscored_answer_has_flipped_nowhere(found: Flips) -> None:
    assert right(39, 1) is None
    assert "q39" not in {question.id for question in found.questions}


def test_a_choice_is_bounded_and_the_same_each_time(whole_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flips, "COUNT", 4)
    some = flips.gather([kept(whole_run)])
    assert len(some.questions) == 4
    assert some.changed == 14
    assert some == flips.gather([kept(whole_run)])
    monkeypatch.setattr(flips, "TEXT_CHARACTERS", 300)
    assert len(flips.gather([kept(whole_run)]).questions) == 1


def test_policies_of_two_runs_flip_too_on_the_same_questions_alone(whole_run: str, tmp_path: Path) -> None:
    same, others = tmp_path / "same", tmp_path / "others"
    for uri, asked in ((same, "where does it go"), (others, "who is it")):
        synthetic_run.write_dataset(str(uri), "a red square moves left", asked=asked)
        synthetic_run.write_evaluation(str(uri), 1)
    both = flips.gather([kept(whole_run), kept(str(same), "other")])
    assert [system.label for system in both.systems][3:4] == ["other · policy-01"]
    assert ("dev", 2, 3, 39, 1, 6) in [(c.set, c.first, c.second, c.rows, c.to_right, c.to_wrong) for c in both.counts]
    apart = flips.gather([kept(whole_run), kept(str(others), "other")])
    assert not [c for c in apart.counts if c.second == 3]
