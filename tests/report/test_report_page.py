import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_run
from html_view import View
from synthetic_run import HOSTILE, MADE, finish, metrics, recipe

from isr_dpo import layout
from isr_dpo.report import build, render
from isr_dpo.report.data import Failure, gather
from isr_dpo.stores import join, read_bytes


def page_of(run_uri: str, **changes: object) -> str:
    return render(gather(run_uri, recipe(**changes), made=MADE))


def view_of(run_uri: str, **changes: object) -> View:
    return View(page_of(run_uri, **changes))


def test_build_writes_the_page_into_the_run(run_uri: str) -> None:
    uri = build(run_uri, recipe())
    assert uri == layout.report(run_uri)
    assert read_bytes(uri).decode().startswith("<!DOCTYPE html>")


def test_the_page_refers_to_nothing_outside_itself(whole_page: str) -> None:
    view = View(whole_page)
    assert not re.findall(r"(?i)https?:", whole_page)
    assert all(source.startswith("data:image/") for source in view.values("src"))
    assert all(target.startswith("#") for target in view.values("href"))
    assert {tag for tag, _ in view.elements}.isdisjoint({"script", "link", "iframe", "object", "form", "base"})
    assert "@import" not in whole_page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", whole_page))
    policy = next(m["content"] for m in view.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_references_within_the_page_meet_exactly_one_element(whole_page: str) -> None:
    view = View(whole_page)
    ids = view.values("id")
    assert len(ids) == len(set(ids))
    named = [t.removeprefix("#") for t in view.values("href")] + re.findall(r"url\(#([^)]*)\)", whole_page)
    named += [
        name for value in view.values("aria-labelledby") + view.values("aria-describedby") for name in value.split()
    ]
    assert set(named) <= set(ids)


def test_the_headline_table_says_every_figure(whole_page: str) -> None:
    text = View(whole_page).text
    assert "Best so far is policy-03: 61.1 % (58.0–64.1) correct on dev. policy-01 had 48.2 % (45.1–51.2)." in text
    assert (
        "policy-03 best on dev 61.1 % 58.0–64.1 3.44 3.32–3.56 3 of 400 11.2 86.0 % 90.0 % 32 of 40 "
        "identical 2, empty 2, tie 2, unparsed 2"
    ) in text


def test_training_stands_in_a_table_with_what_the_export_keeps_and_how_fast_it_was(whole_page: str) -> None:
    text = View(whole_page).text
    assert "seed 300 30 0.690 0.400 0.800 – – – –" in text, "of a run that did not measure them yet"
    assert "2 300 12 0.690 0.400 0.800 43.0 % 12.35 52.0 % 1.92" in text


@pytest.mark.parametrize(
    ("grader", "model", "label"),
    [("rule-based", None, "rule-based grader (no model)"), ("gpt-4o-mini", "gpt-4o-mini", "graded by gpt-4o-mini")],
)
def test_whoever_graded_is_named_at_every_figure_of_its_making(
    run_uri: str, grader: str, model: str | None, label: str
) -> None:
    synthetic_run.write(run_uri, rounds=1, evaluated=0)
    synthetic_run.write_evaluation(run_uri, 1, grader=grader, model=model)
    text = view_of(run_uri).text
    for figure in ("Accuracy", "Score"):
        assert f"{figure} by policy on dev, with 95 % intervals; {label}" in text
    assert "By policy, on dev; " + label in text
    assert "Accuracy with 95 % intervals; " + label in text


def test_two_graders_are_both_named(run_uri: str) -> None:
    synthetic_run.write_evaluation(run_uri, 1)
    synthetic_run.write_evaluation(run_uri, 2, grader="gpt-4o-mini", model="gpt-4o-mini")
    assert "rule-based grader (no model) and graded by gpt-4o-mini" in view_of(run_uri).text


def test_hostile_model_text_stands_as_text(hostile_run: str) -> None:
    view = view_of(hostile_run)
    assert not view.all("script")
    assert not [image for image in view.all("img") if "onerror" in image]
    assert len(view.all("style")) == 1
    assert view.text.count("<script>alert(1)</script></style></p>\"'<img src=x onerror=alert(2)> {{ 7*7 }}") > 24
    assert not {name for _, attributes in view.elements for name in attributes if name.startswith("on")}


def test_a_hostile_recipe_name_and_message_stand_as_text(run_uri: str) -> None:
    failure = Failure("judge", 1, "ModelError", HOSTILE)
    view = View(render(gather(run_uri, recipe(prompts=HOSTILE), made=MADE, failure=failure)))
    assert not view.all("script")
    assert f"ModelError: {HOSTILE}" in view.text


def test_samples_show_frames_answers_descriptions_and_verdicts(whole_page: str) -> None:
    view = View(whole_page)
    assert len([a for a in view.all("article") if a["class"] == "sample"]) == 12
    assert len(view.all("img")) == 12 * 8
    assert "Description before a red square moves left on a plain ground, in round 1, followed by a disc" in view.text
    assert "in round 2, followed by a blue disc" in view.text
    assert "Response 1: rejected" in view.text
    assert "response 2 chosen at P = 0.92" in view.text
    assert "Shown first p(response 1) p(response 2)" in view.text
    for reason in ("identical", "empty", "tie", "unparsed"):
        assert f"dropped: {reason}" in view.text


def test_an_empty_run_is_shown_as_not_finished(run_uri: str) -> None:
    view = view_of(run_uri)
    assert view.text.count("not finished") == 3
    assert "No policy is graded yet." in view.text
    assert "No round has been judged yet." in view.text
    assert not view.all("svg")


def test_a_trained_policy_without_grades_is_pending(run_uri: str) -> None:
    synthetic_run.write(run_uri, rounds=1, evaluated=1)
    text = view_of(run_uri).text
    assert "policy-02 evaluation pending" in text
    assert "policy-03 not finished" in text
    assert "Policies trained 2 of 3" in text


def test_policy_01_without_seed_preferences_is_the_start_and_pending(run_uri: str) -> None:
    finish(layout.dataset(run_uri), metrics(train_rows=5, seed_rows=0))
    assert "policy-01 evaluation pending" in view_of(run_uri).text


def test_a_set_of_which_nothing_is_scored_has_no_accuracy(run_uri: str) -> None:
    uri = join(layout.evaluation(run_uri, 1), "caption-dev")
    finish(uri, metrics(rows=5, scored=0, unscored=5, words=3.0))
    assert "policy-01 none scored 5 of 5" in view_of(run_uri).text


def test_missing_frames_and_contexts_are_said(run_uri: str) -> None:
    synthetic_run.write_round(run_uri, 1, "a disc")
    view = view_of(run_uri)
    assert view.text.count("are not at hand.") == 12
    assert "None: this is the first look." in view.text
    assert not view.all("img")


def test_a_damaged_file_is_named_and_the_rest_shown(run_uri: str) -> None:
    synthetic_run.write(run_uri)
    Path(layout.round_output(run_uri, 2, "preferences"), "judged-00000.jsonl").write_text("{}\n")
    text = view_of(run_uri).text
    assert "Damaged files" in text
    assert "judged-00000.jsonl has 3 bytes" in text
    assert "policy-03 best on dev" in text


def test_the_run_s_failure_stands_at_the_top(run_uri: str) -> None:
    synthetic_run.write(run_uri, rounds=1, evaluated=1)
    failed = {"step": "judge", "index": 2, "error": "GuardTripped", "message": "3 of 40", "run_id": "x", "retry": False}
    Path(layout.failure(run_uri)).write_text(json.dumps({**failed, "exit_code": 6}))
    text = view_of(run_uri).text
    assert "The run stopped: judge, round 2 GuardTripped: 3 of 40 Look at the trend below" in text
    assert text.index("The run stopped") < text.index("Best so far")


def test_a_failure_that_is_given_wins_over_the_recorded_one(run_uri: str) -> None:
    Path(run_uri).mkdir()
    Path(layout.failure(run_uri)).write_text('{"step": "train", "index": 0, "error": "E", "message": "old"}')
    failure = Failure("evaluate", 2, "Killed", "new", retry=True)
    text = View(render(gather(run_uri, recipe(), made=MADE, failure=failure))).text
    assert "The run stopped: evaluate, policy-02 Killed: new Run the same command again" in text
    assert "old" not in text


def test_no_banner_without_a_failure(whole_page: str) -> None:
    assert "The run stopped" not in whole_page


def test_equal_runs_give_equal_pages_in_every_process(whole_run: str, whole_page: str) -> None:
    script = (
        "import sys, synthetic_run\n"
        "from isr_dpo.report import render\n"
        "from isr_dpo.report.data import gather\n"
        f"sys.stdout.write(render(gather({whole_run!r}, synthetic_run.recipe(), made={MADE!r})))"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}
    other = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
    assert other.stdout.decode() == whole_page


def test_a_control_judge_is_called_one(run_uri: str) -> None:
    judged = synthetic_run.judged_row(0, 1, "a disc", "c").model_copy(update={"probabilities": (), "rationales": ()})
    uri = layout.round_output(run_uri, 1, "preferences")
    finish(uri, {"judged-00000.jsonl": synthetic_run.to_jsonl([judged]), **metrics(rows=1, pairs=1)})
    text = view_of(run_uri, judge={"by": "random"}).text
    assert "The judge of this run is a control, random" in text
    assert "No probabilities: the judge was not asked." in text


def test_a_fixed_description_is_shown_in_later_rounds(run_uri: str) -> None:
    synthetic_run.write_round(run_uri, 1, "a disc")
    judged = synthetic_run.judged_row(0, 2, "a disc", "a disc on a plain ground, in round 1, followed by a disc")
    uri = layout.round_output(run_uri, 2, "preferences")
    finish(uri, {"judged-00000.jsonl": synthetic_run.to_jsonl([judged]), **metrics(rows=1, pairs=1)})
    text = view_of(run_uri, retrospect={"context": "fixed"}).text
    assert "1 rows of round 2" in text
    assert "a disc on a plain ground, in round 1, followed by a disc" in text
    assert "another description" not in text


def test_another_video_s_description_is_told_from_the_own(run_uri: str) -> None:
    synthetic_run.write_round(run_uri, 1, "a disc")
    judged = synthetic_run.judged_row(0, 2, "a disc", "of another clip")
    finish(
        layout.round_output(run_uri, 2, "preferences"),
        {"judged-00000.jsonl": synthetic_run.to_jsonl([judged]), **metrics(rows=1, pairs=1)},
    )
    assert "The judge read another description of another clip" in view_of(run_uri).text
