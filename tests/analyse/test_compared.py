"""`isr-dpo compare` and what it stands on, over runs of which only the graded answers are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout
from isr_dpo.cli import main
from isr_dpo.config import Recipe
from isr_dpo.errors import DataError
from isr_dpo.manifest import Origin
from isr_dpo.outputs import Output, begin
from isr_dpo.records import Grade, TestRow, to_jsonl
from isr_dpo.stores import write_bytes

GRADER = {"grader": "openai", "model": "gpt-4o-mini", "prompt_digest": "1a2b3c4d5e", "reading": "strict"}
QUESTIONS = [f"q{number}" for number in range(12)]


def row(question: str, *, truth: str = "red") -> TestRow:
    turns = [{"from": "human", "value": f"<video>\nwhat of {question} ?"}, {"from": "gpt", "value": truth}]
    return TestRow.model_validate({"id": question, "video": f"v{int(question[1:]) // 3}", "conversations": turns})


def grade(question: str, score: float | None) -> Grade:
    return Grade(
        id=question,
        video=row(question).video,
        score=score,
        correct=None if score is None else score >= 3,
        words=2,
        status="unscored" if score is None else "scored",
        reply="",
    )


def output(uri: str, kind: str, files: dict[str, bytes]) -> None:
    out = begin(uri, Origin(kind, kind, {}, "", ""))
    assert isinstance(out, Output)
    for name, content in files.items():
        out.write(name, content)
    out.seal(rows=1, deterministic=True)


def made_run(
    folder: Path,
    name: str,
    scores: dict[int, Sequence[float | None]],
    *,
    truth: str = "red",
    **grader: Any,
) -> str:
    """A run whose policies have these scores for the questions of set dev; a benchmark where policy 0 is graded."""
    uri = str(folder / name)
    model = {"start": "a-folder", "registered_name": name}
    tree = {"name": name, "iterations": max(scores), "model": model}
    tree["data"] = {"train": "t.jsonl", "sets": {"dev": "dev.qa.jsonl"}}
    recipe = Recipe.model_validate(tree)
    write_bytes(layout.run_file(uri), json.dumps({"recipe": recipe.model_dump(mode="json")}).encode())
    output(layout.dataset(uri), "dataset", {"set-dev.jsonl": to_jsonl(row(q, truth=truth) for q in QUESTIONS)})
    for policy, values in scores.items():
        grades = [grade(question, score) for question, score in zip(QUESTIONS, values, strict=True)]
        said = {"protocol": "caption", **GRADER, **grader}
        files = {"part-00000.jsonl": to_jsonl(grades), "protocol.json": json.dumps(said).encode()}
        output(layout.graded(uri, policy, "caption", "dev"), "evaluation", files)
    return uri


LOW = [1.0, 5.0, *[2.0] * 9, None]
HIGH = [5.0, 1.0, *[4.0] * 9, 4.0]


def test_two_runs_are_compared_on_the_questions_scored_in_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    a, b = made_run(tmp_path, "base", {0: LOW}), made_run(tmp_path, "ours", {1: LOW, 2: HIGH})
    assert main(["compare", a, b, "--flips"]) == 0
    said = capsys.readouterr().out
    assert "dev: gpt-4o-mini by the caption protocol, prompt 1a2b3c4d" in said
    (accuracy,) = [line.split() for line in said.splitlines() if line.startswith("accuracy")]
    # of 11 paired questions 1 is right in A, 10 in B: 9.1 %, 90.9 %; v0 gains 1 of 3, v1 to v3 all, 3, 3 and 2
    assert accuracy[2:5] == ["9.1", "90.9", "+81.8"]
    assert "A: base" in said
    assert "B: ours, policy-02" in said
    assert "11 questions on 4 videos are scored in both; without a score: 1 in A, 0 in B" in said
    assert "10 to right, 1 to wrong" in said
    assert "to wrong: q1\n" in said


def test_policies_are_named_after_the_run_and_default_to_the_newest_graded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run = made_run(tmp_path, "ours", {1: LOW, 3: HIGH})
    assert main(["compare", f"{run}:1", run, "--set", "dev"]) == 0
    said = capsys.readouterr().out
    assert "A: ours, policy-01" in said
    assert "B: ours, policy-03" in said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "gpt-5"}, r"graded by gpt-4o-mini by .*, ours, policy-01 by gpt-5 by"),
        ({"served_models": ["gpt-4o-mini-2024-07-18"]}, "served as gpt-4o-mini-2024-07-18"),
        ({"prompt_digest": "99999999ff"}, "prompt 1a2b3c4d, ours, policy-01 by .* prompt 99999999"),
        ({"reading": "compat"}, "compat reading"),
        ({"protocol": "official"}, "by the official protocol"),
        ({"truth": "blue"}, r"question 'q0' of .*ours is another one than in .*base"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    from isr_dpo.analyse.compared import System, compared
    from isr_dpo.analyse.runs import open_runs

    a, b = open_runs([made_run(tmp_path, "base", {0: LOW}), made_run(tmp_path, "ours", {1: HIGH}, **change)])
    with pytest.raises(DataError, match=f"dev: not comparable: .*{reason}"):
        compared(System(a, 0), System(b, 1), "dev")


def test_a_system_that_is_not_there_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, base = made_run(tmp_path, "ours", {2: LOW}), made_run(tmp_path, "base", {0: LOW})
    for arguments, said in {
        (f"{run}:1", base): "ours, policy-01 and base are graded on no set of one name",
        (f"{run}:4", base): "no policy 4; it has 1 to 2",
        (run, str(tmp_path / "none")): "none: no run.json there, so no run",
        (run, run): "are the same policy; name others",
        (run, base, "--set", "test"): "no evaluation set 'test'; its sets: dev",
        (f"{run}:1", base, "--set", "dev"): "ours, policy-01 is not graded; `isr-dpo evaluate RECIPE",
    }.items():
        assert main(["compare", *arguments]) == DataError.exit_code
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
