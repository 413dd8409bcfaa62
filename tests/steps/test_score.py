"""`isr-dpo score`: prediction files in the published format, whoever made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import manifest
from isr_dpo.cli import main
from isr_dpo.errors import BudgetSpent, DataError
from isr_dpo.evaluate import Reply
from isr_dpo.records import Grade
from isr_dpo.steps.common import rows_of
from isr_dpo.steps.score import read_replies
from tests.servers.grader_server import KEY, Answer, grader_server

# by hand, from the description of the public scripts; None: the script got no reply
CAPTION_REPLIES = ["Explanation: fine.\nScore: 4", "Score: 2", "it deserves 3, at most 3", "no idea", None]
OFFICIAL_REPLIES = ["{'pred': 'yes', 'score': 4.8}", "{'pred': 'no', 'score': 1}", "Yes.", "'score': 3", None]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write(tmp_path / "tgif.qa.jsonl", [row(i) | {"caption": "a red ball"} for i in range(5)])


@pytest.fixture
def official(tmp_path: Path) -> str:
    return write(tmp_path / "tgif.qa.official.jsonl", [row(i) for i in range(5)])


@pytest.fixture
def predictions(tmp_path: Path) -> str:
    """Ids as text, where the test file has numbers; the last prediction failed."""
    return write(tmp_path / "model.jsonl", [prediction(str(i)) for i in range(4)] + [prediction("4", "error")])


def row(i: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<video>\nwhat colour ?"}, {"from": "gpt", "value": "it is red"}]
    return {"idx": i, "video": f"tgif/v{i}", "conversations": turns}


def prediction(name: str, status: str = "success") -> dict[str, Any]:
    text = "out of memory" if status == "error" else "red" if name != "1" else "blue"
    outcome = {"status": status, "message": text}
    return {"id": name, "modal_path": "x", "query": "what colour ?", "answer": "it is red", "model_prediction": outcome}


def figures(out: Path) -> dict[str, float]:
    tree: dict[str, float] = json.loads((out / "grades" / "metrics.json").read_bytes())
    return tree


def score(*arguments: str) -> int:
    return main(["score", *arguments])


def test_a_test_file_without_captions_names_the_way_to_score_it_without(
    predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "tgif.qa.jsonl", [row(i) for i in range(5)])
    arguments = (predictions, "--rows", rows, "--out", str(tmp_path / "out"))
    assert score(*arguments) == DataError.exit_code
    assert "--protocol official of isr-dpo score" in capsys.readouterr().err
    assert score(*arguments, "--protocol", "official") == 0


def test_a_prediction_file_of_others_is_scored_and_the_table_names_the_grader(
    rows: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert score(predictions, "--rows", rows, "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "graded by rule-based, caption protocol" in said
    assert "1 unscored: the policy gave no answer" in said
    assert "75.00 [" in said
    metrics = figures(out)
    assert (metrics["rows"], metrics["scored"], metrics["unscored_no_answer"]) == (5, 4, 1)
    assert metrics["accuracy"] == metrics["compat_accuracy"] == 3 / 4
    made = manifest.find(str(out / "grades"))
    assert made is not None
    manifest.verify(made)
    assert [grade.id for grade in rows_of(made, Grade)] == ["0", "1", "2", "3", "4"]
    assert json.loads((out / "grades" / "protocol.json").read_bytes())["grader"] == "rule-based"


def test_the_protocol_is_the_test_files_unless_another_is_asked_for(
    rows: str, official: str, predictions: str, tmp_path: Path
) -> None:
    for number, (file, said, expected) in enumerate(
        [(official, [], "official"), (rows, ["--protocol", "official"], "official"), (rows, [], "caption")]
    ):
        out = tmp_path / str(number)
        assert score(predictions, "--rows", file, "--out", str(out), *said) == 0
        assert json.loads((out / "grades" / "protocol.json").read_bytes())["protocol"] == expected


@pytest.mark.parametrize(
    ("protocol", "replies", "strict", "compat"),
    [
        # 4, 2, the most frequent number 3, and 1 where there is none
        ("caption", CAPTION_REPLIES, (1 / 2, (4 + 2) / 2), (2 / 4, (4 + 2 + 3 + 1) / 4)),
        # yes, no, yes, and a reply that has a score alone; the digits of 4.8 are 4
        ("official", OFFICIAL_REPLIES, (0 / 1, 1.0), (2 / 3, (4 + 1 + 3) / 3)),
    ],
)
def test_a_public_scripts_replies_give_its_figures_without_asking_anybody(
    rows: str,
    tmp_path: Path,
    protocol: str,
    replies: list[str | None],
    strict: tuple[float, float],
    compat: tuple[float, float],
) -> None:
    predictions = write(tmp_path / "all.jsonl", [prediction(str(i)) for i in range(5)])
    given = [{"id": i, "response": text} for i, text in enumerate(replies[:4])] + [{"id": 4, "error": "filtered"}]
    file = write(tmp_path / "gpt.jsonl", given)
    for reading, (accuracy, points) in {"strict": strict, "compat": compat}.items():
        out = tmp_path / reading
        asked = ["--rows", rows, "--protocol", protocol, "--reading", reading, "--replies", file]
        assert score(predictions, *asked, "--out", str(out)) == 0
        metrics = figures(out)
        assert (metrics["accuracy"], metrics["score"]) == (accuracy, points)
        assert metrics["unscored_no_reply"] == 1
        assert json.loads((out / "grades" / "protocol.json").read_bytes())["grader"] == "stored replies"


def test_grades_are_read_again_the_other_way_and_keep_their_graders_name(
    rows: str, predictions: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert score(predictions, "--rows", rows, "--out", str(first)) == 0
    stored = str(first / "grades")
    again = ["--rows", rows, "--reading", "compat", "--replies", stored, "--out", str(second)]
    assert score(predictions, *again) == 0
    assert figures(second)["accuracy"] == figures(first)["compat_accuracy"]
    assert figures(second)["strict_accuracy"] == figures(first)["accuracy"]
    said = json.loads((second / "grades" / "protocol.json").read_bytes())
    assert (said["grader"], said["reading"]) == ("rule-based", "compat")


def test_replies_to_other_answers_or_of_another_protocol_are_refused(
    rows: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(predictions, "--rows", rows, "--out", str(tmp_path / "out")) == 0
    stored = str(tmp_path / "out" / "grades")
    official = ["--rows", rows, "--protocol", "official", "--replies", stored]
    assert score(predictions, *official, "--out", str(tmp_path / "a")) == DataError.exit_code
    assert "caption protocol" in capsys.readouterr().err
    changed = [prediction(str(i)) for i in range(5)]
    changed[2]["model_prediction"]["message"] = "something else"
    other = write(tmp_path / "other.jsonl", changed)
    assert score(other, "--rows", rows, "--replies", stored, "--out", str(tmp_path / "b")) == DataError.exit_code
    assert "other predictions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer": "it is blue"}, "'2' has the ground truth 'it is blue'"),
        ({"id": "99"}, "'99' answers no question"),
        ({"id": "1"}, "'1' stands twice"),
        ({"model_prediction": {"status": "success"}}, "model.jsonl:3: not a Prediction row: model_prediction.message"),
    ],
)
def test_a_prediction_file_that_does_not_fit_is_refused_by_name(
    rows: str, tmp_path: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [prediction(str(i)) for i in range(4)]
    given[2] |= changes
    file = write(tmp_path / "model.jsonl", given)
    assert score(file, "--rows", rows, "--out", str(tmp_path / "out")) == DataError.exit_code
    assert said in capsys.readouterr().err


def test_rows_without_captions_are_named_and_are_no_hindrance_to_the_official_protocol(
    official: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert score(predictions, "--rows", official, "--protocol", "caption", *out) == DataError.exit_code
    assert "tgif.qa.official.jsonl:1: row '0' has no caption" in capsys.readouterr().err
    assert score(predictions, "--rows", official, *out) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "gpt-x"], "--grader openai"),
        (["--evaluate", "max_request=5"], "max_request"),
        (["--replies", "nowhere"], "nowhere"),
    ],
)
def test_wrong_options_are_one_clear_line(
    rows: str, predictions: str, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(predictions, "--rows", rows, "--out", str(tmp_path / "out"), *arguments) != 0
    message = capsys.readouterr().err
    assert said in message
    assert len(message.strip().splitlines()) == 1


def test_a_file_of_replies_is_read_by_id_and_an_empty_one_is_a_reply(tmp_path: Path) -> None:
    given = [{"id": 1, "response": "Score: 4"}, {"id": "2", "response": ""}, {"id": "3", "response": None}]
    found = read_replies(write(tmp_path / "gpt.jsonl", given)).by_id
    assert found == {"1": Reply("Score: 4"), "2": Reply(""), "3": Reply("", failure="no reply")}


def test_a_grade_is_bought_once_whoever_scores_the_file_again(
    official: str,
    predictions: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with grader_server(lambda prompt, n: Answer(text='{"pred": "yes", "score": 5}')) as server:
        asked = ["--rows", official, "--grader", "openai", "--model", "gpt-x", "--base-url", server.url]
        prices = ["--evaluate", "price_prompt_usd=1.0", "--evaluate", "price_completion_usd=2.0"]
        for name in ("first", "again"):
            assert score(predictions, *asked, *prices, "--out", str(tmp_path / name)) == 0
            assert "graded by gpt-x, official protocol" in capsys.readouterr().out
        different = len(set(server.prompts))
        assert len(server.prompts) == different == 2, "three of the four answers are the same"
    first, again = figures(tmp_path / "first"), figures(tmp_path / "again")
    assert (first["bought"], again["bought"]) == (different, 0)
    assert first["cost_usd"] == pytest.approx(different * (100 * 1.0 + 10 * 2.0) / 1e6)
    assert first["accuracy"] == again["accuracy"] == 1.0


def test_a_spent_budget_says_so_and_the_same_command_goes_on(
    rows: str, predictions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with grader_server(lambda prompt, n: Answer()) as server:
        asked = ["--rows", rows, "--grader", "openai", "--model", "gpt-x", "--base-url", server.url]
        out = ["--out", str(tmp_path / "out")]
        assert score(predictions, *asked, *out, "--evaluate", "max_requests=1") == BudgetSpent.exit_code
        assert "remain" in capsys.readouterr().err
        assert len(server.prompts) == 1
        assert score(predictions, *asked, *out, "--evaluate", "max_requests=5") == 0
        assert len(server.prompts) == len(set(server.prompts)) == 2
