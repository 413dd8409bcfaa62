from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from isr_dpo.errors import DataError, OutsideError
from isr_dpo.evaluate import Grader, Progress, Reply
from isr_dpo.evaluate.caption import CaptionProtocol, format_reply
from isr_dpo.evaluate.grades import How, evaluate, measure
from isr_dpo.evaluate.official import OfficialProtocol
from isr_dpo.evaluate.protocol import GradingProtocol, ScoringProtocol, Task
from isr_dpo.evaluate.rules import RuleBasedGrader
from isr_dpo.records import Grade, Prediction, TestRow, read_rows

PROTOCOL = CaptionProtocol()


class Shelf:
    """An output in memory."""

    uri = "memory"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    @property
    def done(self) -> set[str]:
        return set(self.files)

    def read(self, name: str) -> bytes:
        return self.files[name]

    def write(self, name: str, content: bytes) -> None:
        assert name not in self.files, f"{name} was written twice"
        self.files[name] = content

    def grades(self) -> list[Grade]:
        names = sorted(n for n in self.files if n.startswith("part-"))
        return [g for n in names for g in read_rows(self.files[n].decode().split("\n"), Grade, where=n)]


class Counting:
    """A grader that says `replies[prediction]`, counts what it is asked and may stay away from call `away_at` on."""

    name = "counting"
    model: str | None = None

    def __init__(
        self,
        replies: dict[str, str] | None = None,
        *,
        away_at: int | None = None,
        default: str = format_reply("ok", 5),
        instead: dict[str, Reply] | None = None,
    ) -> None:
        self.asked: list[str] = []
        self.tasks: list[Task] = []
        self.calls = 0
        self._replies = {said: Reply(text) for said, text in (replies or {}).items()} | (instead or {})
        self._away_at, self._default = away_at, Reply(default)

    def grade(
        self, protocol: GradingProtocol[object], tasks: Sequence[Task], progress: Progress = lambda _: None
    ) -> list[Reply]:
        if self.calls == self._away_at:
            raise OutsideError("away")
        self.calls += 1
        self.tasks += tasks
        self.asked += [t.prediction for t in tasks]
        return [self._replies.get(t.prediction, self._default) for t in tasks]


def rows(count: int) -> list[TestRow]:
    def turns(i: int) -> list[dict[str, str]]:
        return [{"from": "human", "value": f"<video>\nwhat color {i} ?"}, {"from": "gpt", "value": "it is red ."}]

    return [
        TestRow.model_validate({"id": f"q{i}", "video": f"v{i // 2}", "caption": "red", "conversations": turns(i)})
        for i in range(count)
    ]


def prediction(i: int, message: str = "", status: str = "success") -> Prediction:
    tree = {"id": f"q{i}", "modal_path": "x", "query": "q", "answer": "it is red ."}
    return Prediction.model_validate({**tree, "model_prediction": {"status": status, "message": message or f"p{i}"}})


def run(
    predictions: list[Prediction],
    grader: Grader,
    shelf: Shelf,
    asked: list[TestRow] | None = None,
    *,
    protocol: ScoringProtocol = PROTOCOL,
    reading: How = "strict",
) -> dict[str, float]:
    return evaluate(
        predictions,
        rows(len(predictions)) if asked is None else asked,
        grader,
        protocol=protocol,
        reading=reading,
        output=shelf,  # type: ignore[arg-type]
        rows_per_part=2,
    )


def test_unread_and_failed_are_unscored_with_the_reason_and_leave_the_denominator() -> None:
    predictions = [prediction(0), prediction(1), prediction(2, "no video", "failed"), prediction(3)]
    grader = Counting({"p1": format_reply("no", 2), "p3": "I would rather not."})
    shelf = Shelf()
    metrics = run(predictions, grader, shelf)

    assert [(g.id, g.status, g.score, g.correct) for g in shelf.grades()] == [
        ("q0", "scored", 5.0, True),
        ("q1", "scored", 2.0, False),
        ("q2", "unscored", None, None),
        ("q3", "unscored", None, None),
    ]
    assert [g.reply for g in shelf.grades()][2:] == ["no answer: no video", "I would rather not."]
    assert grader.asked == ["p0", "p1", "p3"], "a failed prediction is not sent"
    assert (metrics["rows"], metrics["scored"], metrics["unscored"]) == (4, 2, 2)
    assert (metrics["accuracy"], metrics["score"], metrics["words"]) == (0.5, 3.5, 1.0)
    # both scored rows are of one video: nothing is known about the spread but the scale's ends
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == (0.0, 1.0)
    assert (metrics["score_low"], metrics["score_high"]) == (1.0, 5.0)


def test_an_outage_keeps_finished_parts_and_a_restart_does_not_grade_them_again() -> None:
    predictions = [prediction(i) for i in range(6)]
    shelf = Shelf()
    with pytest.raises(OutsideError):
        run(predictions, Counting(away_at=2), shelf)
    assert set(shelf.files) == {"part-00000.jsonl", "part-00001.jsonl"}

    again = Counting()
    metrics = run(predictions, again, shelf)
    assert again.asked == ["p4", "p5"]
    straight = Shelf()
    assert run(predictions, Counting(), straight) == metrics
    assert shelf.files == straight.files


def test_a_reply_with_a_line_separator_in_it_survives_a_restart() -> None:
    predictions = [prediction(i) for i in range(3)]
    odd = "Explanation: \u2028 \x85\nScore: 4"
    shelf = Shelf()
    with pytest.raises(OutsideError):
        run(predictions, Counting({"p0": odd}, away_at=1), shelf)
    run(predictions, Counting(), shelf)
    assert shelf.grades()[0].reply == odd


def test_the_files_say_who_graded_and_how() -> None:
    shelf = Shelf()
    metrics = run([prediction(i, "red") for i in range(4)], RuleBasedGrader(), shelf)
    assert json.loads(shelf.files["metrics.json"]) == metrics
    assert metrics["accuracy"] == 1.0
    assert json.loads(shelf.files["protocol.json"]) == {
        "protocol": "caption",
        "grader": "rule-based",
        "model": None,
        "served_models": [],
        "prompt_digest": None,
        "reading": "strict",
    }


def test_nothing_scored_gives_counts_and_no_accuracy() -> None:
    metrics = run([prediction(0, "broken", "failed")], Counting(), Shelf())
    assert (metrics["rows"], metrics["scored"], metrics["unscored"], metrics["words"]) == (1, 0, 1, 0)
    assert not [name for name in metrics if name.endswith(("accuracy", "score", "_low", "_high"))]
    assert measure([], protocol=PROTOCOL)["rows"] == 0.0


def test_why_an_answer_is_unscored_is_counted_by_kind() -> None:
    refused = Reply("", failure="the grader refused: no")
    grader = Counting({"p1": "prose"}, instead={"p2": refused})
    predictions = [prediction(0, "no video", "failed"), *(prediction(i) for i in (1, 2, 3))]
    shelf = Shelf()
    metrics = run(predictions, grader, shelf)
    assert [g.reason for g in shelf.grades()] == ["no_answer", "unreadable", "no_reply", None]
    assert shelf.grades()[2].reply == "the grader refused: no"
    assert {name: metrics[name] for name in metrics if name.startswith("unscored_")} == {
        "unscored_no_answer": 1,
        "unscored_unreadable": 1,
        "unscored_no_reply": 1,
    }


def test_a_grade_holds_what_an_audit_needs_and_the_figures_count_only_what_was_bought() -> None:
    def reply(text: str, *, bought: bool, key: str) -> Reply:
        return Reply(text, None, "gpt-x-2031", 100, 7, 0.25, bought, key)

    good = format_reply("ok", 5)
    equal = {said: reply(good, bought=True, key="abc") for said in ("p0", "p1")}  # one request for both
    grader = Counting(instead=equal | {"p2": reply(good, bought=False, key="def")})
    grader.model = "gpt-x"
    shelf = Shelf()
    metrics = run([prediction(i) for i in range(3)], grader, shelf)
    first = shelf.grades()[0]
    assert (first.reply, first.model, first.key) == (good, "gpt-x-2031", "abc")
    assert (first.prompt_tokens, first.completion_tokens, first.cost_usd, first.bought) == (100, 7, 0.25, True)
    assert (metrics["bought"], metrics["cost_usd"]) == (1, 0.25)
    assert (metrics["prompt_tokens"], metrics["completion_tokens"]) == (100, 7)
    described = json.loads(shelf.files["protocol.json"])
    assert (described["model"], described["served_models"]) == ("gpt-x", ["gpt-x-2031"])
    assert described["prompt_digest"] == PROTOCOL.prompt_digest


REPLIES = {
    "p0": "Explanation: right.\nScore: 5",
    "p1": "I would give this a 4.",
    "p2": "I cannot judge this.",
    "p3": "Score: 2",
}


@pytest.mark.parametrize(
    ("reading", "scored", "accuracy", "score"), [("strict", 2, 1 / 2, 7 / 2), ("compat", 4, 2 / 4, 12 / 4)]
)
def test_every_evaluation_has_the_figures_of_both_readings_and_the_recipes_is_the_headline(
    reading: How, scored: int, accuracy: float, score: float
) -> None:
    metrics = run([prediction(i) for i in range(4)], Counting(REPLIES), Shelf(), reading=reading)
    assert (metrics["strict_accuracy"], metrics["strict_score"], metrics["strict_scored"]) == (1 / 2, 7 / 2, 2)
    # the second by its only number, the third by default: 5, 4, 1, 2
    assert (metrics["compat_accuracy"], metrics["compat_score"], metrics["compat_scored"]) == (2 / 4, 12 / 4, 4)
    assert (metrics["accuracy"], metrics["score"], metrics["scored"]) == (accuracy, score, scored)


def test_the_public_official_figures_have_a_denominator_each() -> None:
    replies = {
        "p0": "{'pred': 'yes', 'score': 4}",
        "p1": "yes",
        "p2": "{'score': 1}",
        "p3": "{'pred': 'no', 'score': 0}",
    }
    shelf = Shelf()
    metrics = run(
        [prediction(i) for i in range(4)], Counting(replies), shelf, protocol=OfficialProtocol(), reading="compat"
    )
    assert (metrics["accuracy"], metrics["compat_accuracy_rows"]) == (2 / 3, 3)
    assert (metrics["score"], metrics["compat_score_rows"]) == (5 / 3, 3)
    assert metrics["scored"] == metrics["compat_scored"] == 2
    assert [(g.status, g.score, g.correct) for g in shelf.grades()][1:3] == [
        ("unscored", None, True),
        ("unscored", 1.0, None),
    ]


def test_a_score_off_the_scale_is_the_public_scripts_own_and_does_not_break_the_interval() -> None:
    metrics = run(
        [prediction(i) for i in range(4)], Counting({"p0": "Score: 45", "p2": "Score: 1"}), Shelf(), reading="compat"
    )
    assert metrics["score_low"] <= metrics["score"] == (45 + 1 + 5 + 5) / 4 <= metrics["score_high"]


def test_an_official_set_needs_no_captions_and_shows_none() -> None:
    (row,) = rows(1)
    for caption in (None, "a secret"):
        grader = Counting(default="{'pred': 'yes', 'score': 5}")
        asked = [row.model_copy(update={"caption": caption})]
        assert run([prediction(0)], grader, Shelf(), asked, protocol=OfficialProtocol())["accuracy"] == 1.0
        assert grader.tasks[0].caption == ""


@pytest.mark.parametrize(
    ("ids", "asked", "said"),
    [
        ([0, 1], 3, "1 not answered"),
        ([0, 1, 5], 2, "1 answered and never asked"),
        ([0, 1, 1], 2, "1 answered twice"),
    ],
)
def test_predictions_of_other_questions_are_refused(ids: list[int], asked: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        run([prediction(i) for i in ids], Counting(), Shelf(), rows(asked))


def test_a_row_without_caption_is_named() -> None:
    (row,) = rows(1)
    with pytest.raises(DataError, match="'q0' has no caption"):
        run([prediction(0)], Counting(), Shelf(), [row.model_copy(update={"caption": None})])
