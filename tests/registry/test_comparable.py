"""Where no grader has graded both: the missing evaluation is printed as a command, and found once it is done."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout
from isr_dpo.cli import main
from isr_dpo.config import Recipe
from isr_dpo.errors import GuardTripped
from isr_dpo.evaluate import open_protocol
from isr_dpo.mlflow_client import open_client
from isr_dpo.registry import Decision, Submission, decide, promote, submissions
from pipelines import __main__ as command_line
from pipelines import recipe_files
from tests.analyse.analysed_run import asked_row
from tests.loop import run_loop
from tests.registry.registered import ROWS, RULES, RegisteredRun, aliases, marks
from tests.servers.mlflow_server import fresh_database

ASKED = {"grader": "openai", "model": "gpt-4o-mini"}
GPT: dict[str, Any] = {
    "grader": "gpt-4o-mini",
    "model": "gpt-4o-mini",
    "prompt_digest": open_protocol("caption").prompt_digest,
}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return fresh_database(tmp_path)


def crowned(
    uri: str, folder: Path, scores: list[float | None], *, name: str = "older", **changes: Any
) -> RegisteredRun:
    run = RegisteredRun(uri, folder, name, **changes.pop("recipe", {}))
    run.policy(1, scores, **changes)
    promote(decide("m", uri=uri, version="1"), uri=uri, force=True)
    return run


def given(submission: Submission, monkeypatch: pytest.MonkeyPatch) -> tuple[Recipe, str]:
    """The recipe and the run URI that the command line makes of the printed command."""
    seen: list[tuple[Recipe, str]] = []

    def run(recipe: Recipe, run_uri: str, **_: object) -> int:
        seen.append((recipe, run_uri))
        return 0

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.local.run", run)
        words = shlex.split(submission.command)
        assert words[:3] == ["python", "-m", "pipelines"]
        assert command_line.main(words[3:]) == 0
    return seen[0]


def done(submission: Submission, scores: list[float | None], **grader: Any) -> None:
    """What the evaluation would leave, by a grader that this test plays."""
    made = RegisteredRun("", Path(submission.run_uri).parent, "again", place=submission.run_uri)
    made.answers(0, ROWS, ["again"] * len(ROWS))
    made.graded(layout.graded(submission.run_uri, 0, "caption", "dev"), scores, **grader)


def only(decision: Decision) -> Submission:
    (submission,) = decision.missing
    return submission


def test_the_older_runs_answers_are_graded_again_by_the_newer_runs_grader(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    older = crowned(uri, tmp_path, marks(right=20), **RULES)
    newer = RegisteredRun(uri, tmp_path, "newer", evaluate=ASKED)
    newer.policy(1, marks(right=30), **GPT)
    decision = decide("m", uri=uri)
    assert "version 1: rule-based grader (no model) by the caption protocol" in decision.reason
    assert "version 2: gpt-4o-mini by the caption protocol, prompt " in decision.reason
    submission = only(decision)
    recipe, run_uri = given(submission, monkeypatch)
    assert recipe == submission.recipe
    assert run_uri == submission.run_uri
    assert Path(run_uri).parent == tmp_path, "beside the runs, where the ledger is"
    assert submission.submit is None, "no pod reaches a folder of this machine"
    assert recipe.is_benchmark
    assert recipe.answer.predictions == {"dev": layout.answers(older.uri, 1) + "/dev"}
    assert recipe.model.start is None
    assert (recipe.evaluate.grader, recipe.evaluate.model) == ("openai", "gpt-4o-mini")
    assert recipe.data.sets == newer.open().recipe.data.sets

    assert main(["promote", "m", "--tracking-uri", uri]) == GuardTripped.exit_code
    said = capsys.readouterr().err
    assert f"  # grades the answers of version 1 again\n  {submission.command}\n" in said

    done(submission, marks(right=10), **GPT)
    assert decide("m", uri=uri).objections == ()
    assert promote(decide("m", uri=uri), uri=uri).champion == "2"


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_an_evaluation_that_pods_reach_can_be_submitted(
    uri: str, tmp_path: Path, run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    RegisteredRun(uri, tmp_path, place=run_uri).policy(1, None, answered=False)
    submission = only(decide("m", uri=uri, version="1"))
    assert submission.submit is not None
    assert submission.lines[1] == submission.command
    assert submission.lines[3] == submission.submit
    seen: list[tuple[Recipe, str]] = []

    def submit(recipe: Recipe, place: object, run_uri: str, *_: object, **__: object) -> int:
        seen.append((recipe, run_uri))
        return 0

    monkeypatch.setattr("pipelines.submit.submit", submit)
    words = shlex.split(submission.submit.replace("PLACEMENT", "gke"))
    assert words[:4] == ["python", "-m", "pipelines", "submit"]
    assert command_line.main(words[3:]) == 0
    ((recipe, place),) = seen
    assert place == submission.run_uri
    assert recipe.model_copy(update={"tracking": submission.recipe.tracking}) == submission.recipe
    assert recipe.model.start == layout.policy(run_uri, 1)


def test_a_pending_evaluation_of_the_candidate_is_completed(uri: str, tmp_path: Path) -> None:
    run = crowned(uri, tmp_path, marks(right=20))
    run.policy(2, None)
    submission = only(decide("m", uri=uri, version="2"))
    assert submission.recipe.answer.predictions == {"dev": layout.answers(run.uri, 2) + "/dev"}
    done(submission, marks(right=40))
    assert decide("m", uri=uri, version="2").objections == ()


def test_a_first_champion_without_grades_needs_some(uri: str, tmp_path: Path) -> None:
    RegisteredRun(uri, tmp_path).policy(1, None)
    decision = decide("m", uri=uri, version="1")
    assert "version 1: not graded" in decision.reason
    with pytest.raises(GuardTripped, match="python -m pipelines evaluate"):
        promote(decision, uri=uri)
    done(only(decision), marks(right=3))
    assert promote(decide("m", uri=uri, version="1"), uri=uri).done


def test_the_printed_evaluation_really_runs_and_makes_them_comparable(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowned(uri, tmp_path, marks(right=30), **GPT)
    run = RegisteredRun(uri, tmp_path, "newer")
    run.answers(1, ROWS, ["the ball is red"] * len(ROWS))
    run.policy(1, marks(right=40), answered=False, words=4)
    submission = only(decide("m", uri=uri))
    recipe, run_uri = given(submission, monkeypatch)
    run_loop(recipe, run_uri)
    decision = decide("m", uri=uri)
    assert decision.missing == ()
    assert decision.match is not None
    assert decision.match.champion is not None
    assert decision.match.champion.place.run.uri == run_uri
    assert decision.match.grader.name == "rule-based"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "gpt-5", "grader": "gpt-5"}, "gpt-5 by"),
        ({"prompt_digest": "99" * 32}, "prompt 99999999"),
        ({"reading": "compat"}, "compat reading"),
        ({"protocol": "official"}, "by the official protocol"),
    ],
)
def test_graders_that_differ_in_anything_are_not_comparable(
    change: dict[str, Any], words: str, uri: str, tmp_path: Path
) -> None:
    crowned(uri, tmp_path, marks(right=20), **GPT | change)
    RegisteredRun(uri, tmp_path, "newer", evaluate=ASKED).policy(1, marks(right=30), **GPT)
    decision = decide("m", uri=uri)
    assert words in decision.reason
    assert "version 1" in only(decision).what


def test_where_another_model_is_served_by_now_both_are_graded_anew(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    july, october = {"served_models": ["gpt-4o-mini-07"]}, {"served_models": ["gpt-4o-mini-10"]}
    crowned(uri, tmp_path, marks(right=20), **GPT, **july, recipe={"evaluate": ASKED})
    RegisteredRun(uri, tmp_path, "newer", evaluate=ASKED).policy(1, marks(right=30), **GPT, **october)
    decision = decide("m", uri=uri)
    assert "served as gpt-4o-mini-07" in decision.reason
    assert "served as gpt-4o-mini-10" in decision.reason
    mine, its = decision.missing
    for submission in (mine, its):
        recipe, run_uri = given(submission, monkeypatch)
        assert recipe.evaluate.ledger == f"{run_uri}/ledger", "grades that were bought before do not count"
        assert recipe == submission.recipe
    done(mine, marks(right=30), **GPT, served_models=["gpt-4o-mini-12"])
    assert decide("m", uri=uri).missing == (its,)
    done(its, marks(right=20), **GPT, served_models=["gpt-4o-mini-12"])
    assert decide("m", uri=uri).objections == ()


def test_a_model_that_was_asked_other_questions_is_asked_again_with_its_own_settings(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [asked_row(number, truth="blue") for number in range(40)]
    own = {"answer": {"max_new_tokens": 77}, "prompts": "world"}
    older = crowned(uri, tmp_path, marks(right=20), recipe={"rows": others, **own})
    newer = RegisteredRun(uri, tmp_path, "newer", evaluate={"concurrency": 3})
    newer.policy(1, marks(right=30))
    submission = only(decide("m", uri=uri))
    recipe, _ = given(submission, monkeypatch)
    assert recipe == submission.recipe
    assert recipe.model.start == layout.policy(older.uri, 1)
    assert (recipe.answer.max_new_tokens, recipe.prompts) == (77, "world")
    assert recipe.evaluate.concurrency == 3
    assert recipe.data.sets == newer.open().recipe.data.sets
    done(submission, marks(right=10))
    assert decide("m", uri=uri).objections == ()


def test_answers_that_are_gone_are_made_again(uri: str, tmp_path: Path) -> None:
    run = crowned(uri, tmp_path, marks(right=20), **GPT)
    shutil.rmtree(layout.answers(run.uri, 1))
    RegisteredRun(uri, tmp_path, "newer").policy(1, marks(right=30))
    assert only(decide("m", uri=uri)).recipe.model.start == layout.policy(run.uri, 1)


def test_a_champion_whose_run_is_gone_is_asked_again(uri: str, tmp_path: Path) -> None:
    older = crowned(uri, tmp_path, marks(right=20))
    shutil.rmtree(older.uri)
    RegisteredRun(uri, tmp_path, "newer").policy(1, marks(right=30))
    submission = only(decide("m", uri=uri))
    assert submission.recipe.model.start == layout.policy(older.uri, 1)
    assert submission.what == "asks version 1 again"


def test_a_candidate_whose_run_is_gone_is_promoted_by_force_alone(uri: str, tmp_path: Path) -> None:
    crowned(uri, tmp_path, marks(right=20))
    newer = RegisteredRun(uri, tmp_path, "newer")
    newer.policy(1, marks(right=30))
    shutil.rmtree(newer.uri)
    decision = decide("m", uri=uri)
    assert decision.objections == (f"{newer.uri}: no run.json there, so no run",)
    with pytest.raises(GuardTripped):
        promote(decision, uri=uri)
    assert promote(decision, uri=uri, force=True).done
    assert aliases(uri)["champion"] == "2"


def by_hand(uri: str, source: Path) -> str:
    client = open_client(uri)
    return str(client.create_model_version("m", source=str(source)).version)


def test_a_champion_that_somebody_registered_by_hand_is_asked(uri: str, tmp_path: Path) -> None:
    RegisteredRun(uri, tmp_path, "newer").policy(1, marks(right=30))
    open_client(uri).set_registered_model_alias("m", "champion", by_hand(uri, tmp_path / "theirs"))
    assert only(decide("m", uri=uri)).recipe.model.start == str(tmp_path / "theirs")


def test_a_candidate_that_somebody_registered_by_hand_is_refused_by_name(uri: str, tmp_path: Path) -> None:
    crowned(uri, tmp_path, marks(right=20))
    decision = decide("m", uri=uri, version=by_hand(uri, tmp_path / "theirs"))
    assert "m version 2 has no tag isr_dpo.run_uri: it was not registered by" in decision.reason
    with pytest.raises(GuardTripped):
        promote(decision, uri=uri)


def test_a_dev_set_under_another_name_in_the_older_run_is_found_by_its_questions(uri: str, tmp_path: Path) -> None:
    crowned(uri, tmp_path, marks(right=20))
    renamed = {"data": {"train": "t.jsonl", "sets": {"held-out": str(tmp_path / "dev.qa.jsonl")}}}
    newer = RegisteredRun(uri, tmp_path, "newer", evaluate={"dev": "held-out"}, set_name="held-out", **renamed)
    newer.policy(1, marks(right=30))
    decision = decide("m", uri=uri)
    assert decision.objections == ()
    assert decision.match is not None
    assert (decision.match.set, decision.match.candidate.place.set) == ("held-out", "held-out")


def test_an_evaluation_of_a_changed_file_is_told_from_the_right_one(uri: str, tmp_path: Path) -> None:
    crowned(uri, tmp_path, marks(right=20), **GPT)
    RegisteredRun(uri, tmp_path, "newer").policy(1, marks(right=30))
    submission = only(decide("m", uri=uri))
    others = [asked_row(number, truth="blue") for number in range(40)]
    made = RegisteredRun("", tmp_path, "again", place=submission.run_uri, rows=others)
    made.graded(layout.graded(submission.run_uri, 0, "caption", "dev"), marks(right=20))
    (objection,) = decide("m", uri=uri).objections
    assert f"{submission.run_uri} asks other questions than the candidate was asked" in objection
    assert str(tmp_path / "dev.qa.jsonl") in objection


@pytest.mark.parametrize(
    ("run", "folder"),
    [
        ("s3://bucket/runs/a", "s3://bucket/runs/"),
        ("s3://bucket/a/", "s3://bucket/"),
        ("s3://bucket", "s3://bucket/"),
        ("/runs/a", "/runs/"),
    ],
)
def test_an_evaluation_lies_beside_the_candidates_run_and_inside_its_bucket(
    run: str, folder: str, uri: str, tmp_path: Path
) -> None:
    asked = replace(RegisteredRun(uri, tmp_path).open(), uri=run)
    made = [submissions.regraded("v", asked, f"{run}/answers", fresh=fresh).run_uri for fresh in (False, False, True)]
    assert made[0] == made[1] != made[2]
    assert all(each.removeprefix(folder).startswith("comparable-") for each in made)


def test_a_runs_uri_stands_for_its_recipe(uri: str, tmp_path: Path) -> None:
    run = RegisteredRun(uri, tmp_path)
    assert recipe_files.load(run.uri) == run.open().recipe
    assert recipe_files.load(run.uri, changes=["train.beta=0.2"]).train.beta == 0.2
