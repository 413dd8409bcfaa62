from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from isr_dpo.errors import DataError, OutsideError
from isr_dpo.evaluate import Grader, Progress, Reply
from isr_dpo.evaluate.caption import CaptionProtocol, format_reply
from isr_dpo.evaluate.grades import evaluate, measure
from isr_dpo.evaluate.protocol import GradingProtocol, Task
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
    model = None

    def __init__(self, replies: dict[str, str] | None = None, away_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.calls = 0
        self._replies, self._away_at = replies or {}, away_at

    def grade(
        self, protocol: GradingProtocol[object], tasks: Sequence[Task], progress: Progress = lambda _: None
    ) -> list[Reply]:
        if self.calls == self._away_at:
            raise OutsideError("away")
        self.calls += 1
        self.asked += [t.prediction for t in tasks]
        return [Reply(self._replies.get(t.prediction, format_reply("ok", 5))) for t in tasks]


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
    predictions: list[Prediction], grader: Grader, shelf: Shelf, asked: list[TestRow] | None = None
) -> dict[str, float]:
    return evaluate(
        predictions,
        rows(len(predictions)) if asked is None else asked,
        grader,
        protocol=PROTOCOL,
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
        "prompt_digest": None,
    }


def test_nothing_scored_gives_counts_and_no_accuracy() -> None:
    metrics = run([prediction(0, "broken", "failed")], Counting(), Shelf())
    assert metrics == {"rows": 1.0, "scored": 0.0, "unscored": 1.0, "words": 0.0}
    assert measure([], protocol=PROTOCOL)["rows"] == 0.0


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
