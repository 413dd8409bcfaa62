import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_run
from html_view import View
from synthetic_run import HOSTILE, finish, metrics, recipe

from isr_dpo import layout
from isr_dpo.report import build, render, rendering
from isr_dpo.report.failure import Failure
from isr_dpo.stores import read_bytes


def view_of(run_uri: str, *, failure: Failure | None = None, **changes: object) -> View:
    return View(render(synthetic_run.page(run_uri, failure=failure, **changes)))


def test_build_writes_the_page_into_the_run(run_uri: str) -> None:
    uri = build(run_uri, recipe())
    assert uri == layout.report(run_uri)
    assert read_bytes(uri).decode().lstrip().startswith("<!DOCTYPE html>")


def test_a_page_that_would_say_the_same_stands_as_it_is(run_uri: str) -> None:
    uri = build(run_uri, recipe())
    old = read_bytes(uri).replace(b'<time id="made">2', b'<time id="made">1')
    Path(uri).write_bytes(old)
    build(run_uri, recipe())
    assert read_bytes(uri) == old
    synthetic_run.write_training(run_uri, 0)
    build(run_uri, recipe())
    assert read_bytes(uri) != old


def test_the_page_refers_to_nothing_outside_itself(whole_page: str) -> None:
    view = View(whole_page)
    assert not re.findall(r"(?i)https?:", whole_page)
    assert all(source.startswith("data:image/") for source in view.values("src"))
    assert all(target.startswith("#") for target in view.values("href"))
    assert {tag for tag, _ in view.elements}.isdisjoint({"link", "iframe", "object", "base"})
    assert "@import" not in whole_page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", whole_page))


def test_the_policy_lets_nothing_run_but_our_script_and_style_by_their_hashes(whole_page: str) -> None:
    view = View(whole_page)
    said = next(m["content"] for m in view.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    styles = re.findall(r"<style>(.*?)</style>", whole_page, re.DOTALL)
    scripts = re.findall(r"<script>(.*?)</script>", whole_page, re.DOTALL)
    assert len(styles) == len(scripts) == 1
    assert said == rendering.policy(styles[0], scripts[0])
    assert said.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in said
    assert not view.values("style"), "inline styles would be blocked"


def test_references_within_the_page_meet_exactly_one_element(whole_page: str) -> None:
    view = View(whole_page)
    ids = view.values("id")
    assert len(ids) == len(set(ids))
    named = [t.removeprefix("#") for t in view.values("href")] + re.findall(r"url\(#([^)]*)\)", whole_page)
    named += [
        name for value in view.values("aria-labelledby") + view.values("aria-describedby") for name in value.split()
    ]
    assert set(named) <= set(ids)


def test_hostile_model_text_stands_as_text(hostile_run: str) -> None:
    view = view_of(hostile_run)
    assert [script.get("type", "ours") for script in view.all("script")] == ["application/json", "ours"]
    assert not [image for image in view.all("img") if "onerror" in image]
    assert len(view.all("style")) == 1
    assert view.text.count(HOSTILE) > 24
    assert not {name for _, attributes in view.elements for name in attributes if name.startswith("on")}


def test_a_hostile_recipe_name_and_message_stand_as_text(run_uri: str) -> None:
    view = view_of(run_uri, failure=Failure("judge", 1, "ModelError", HOSTILE), prompts=HOSTILE)
    assert len(view.all("script")) == 2
    assert f"ModelError: {HOSTILE}" in view.text


def test_samples_show_frames_answers_descriptions_and_verdicts(whole_page: str) -> None:
    view = View(whole_page)
    assert "80 of 80 judged rows" in view.text
    assert "Description before a red square moves left on a plain ground, in round 1, followed by a disc" in view.text
    assert "in round 2, followed by a blue disc" in view.text
    assert "Response 1: rejected" in view.text
    assert "response 1 chosen at P = 0.97" in view.text
    assert "Shown first p(response 1) p(response 2)" in view.text


def test_videos_and_questions_are_followed_over_the_iterations(whole_page: str) -> None:
    text = View(whole_page).text
    assert "round 2 a red square moves left on a plain ground, in round 2, followed by a blue disc" in text
    assert "policy-02 right a red square moves left home, says policy 2" in text, "one that changed sides"
    assert "Fig. 7" in text
    assert "Fig. 8" in text


def test_analyses_that_stand_in_the_run_are_shown(whole_page: str) -> None:
    view = View(whole_page)
    assert "smoke, policy-03 against other, policy-03: whose answer is nearer the ground truth" in view.text
    assert "54.5 % 19.5–89.6" in view.text, "six wins of eleven scored pairs"
    assert "20 of 24 replies bought at $0.50" in view.text
    assert "1 of 9 answers unscored" in view.text
    marks = [m["class"] for m in view.all("mark")]
    assert marks.count("unsupported") == 1 + 3, "the legend, and a claim in each of three examples"
    assert "policy-03, 1 unsupported" in view.text


def test_an_analysis_of_answers_that_have_changed_since_is_named_and_left_out(run_uri: str) -> None:
    synthetic_run.write(run_uri)
    synthetic_run.write_analyses(run_uri)
    path = Path(layout.analysis(run_uri, "claims-dev"))
    path.write_text(path.read_text().replace('"made_from": {}', '"made_from": {"1": "0000"}'))
    text = view_of(run_uri).text
    assert "claims-dev.json: made from other answers than stand now; analyse again" in text
    assert "Verbosity hallucination" not in text
    assert "whose answer is nearer the ground truth" in text


def test_choices_stand_beside_labels_and_what_the_paper_reports(run_uri: str) -> None:
    synthetic_run.write_agreement(run_uri)
    text = view_of(run_uri).text
    assert "Choices beside labels, round 2" in text
    assert re.search(r"smoke context: retrospective anna 5\d\.\d \d+\.\d–\d+\.\d \d+ of 1\d", text)
    assert "Reported in the paper Self-rewarding own pairs people 59.0" in text
    assert "ISR-DPO own pairs people 75.0" in text


def test_what_the_run_has_spent_on_its_grader_is_said_with_its_ceilings(run_uri: str) -> None:
    synthetic_run.write_account(run_uri)
    evaluate = {"max_requests": 5000, "max_cost_usd": 3, "price_prompt_usd": 0.1, "price_completion_usd": 0.4}
    text = view_of(run_uri, evaluate={"grader": "openai", **evaluate}).text
    assert "smoke has spent $0.25 on it at the most, in 120 requests, of at most 5,000 requests and $3.00." in text


def test_an_analysis_that_cannot_be_read_is_named(run_uri: str) -> None:
    for name, content in {"broken": "{", "alien": '{"kind": "dance"}', "old": '{"kind": "claims"}'}.items():
        path = Path(layout.analysis(run_uri, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    text = view_of(run_uri).text
    assert "broken.json: not the result of an analysis" in text
    assert "an analysis of kind 'dance'" in text
    assert "old.json: not a Claims of this version" in text


def test_the_paper_s_tables_stand_beside_ours_as_reported_by_retired_graders(whole_page: str) -> None:
    text = View(whole_page).text
    assert "No policy here is graded on their sets." in text
    assert "ISR-DPO, policy-09 reported, retired grader 82.99; 3.26 79.00; 3.13 88.11; 3.40" in text


def test_our_figures_stand_below_the_reported_ones(run_uri: str) -> None:
    synthetic_run.write_evaluation(run_uri, 1, sets=("dev", "msvd"))
    text = view_of(run_uri, data={"train": "t", "sets": {"dev": "dev.qa.jsonl", "msvd": "msvd.qa.jsonl"}}).text
    assert re.search(r"Ours smoke, policy-01 rule-based grader \(no model\) 53\.8; 3\.15 .*1 of 40 unscored", text)


def test_an_empty_run_is_shown_as_not_finished(run_uri: str) -> None:
    view = view_of(run_uri)
    assert view.text.count("not finished") == 3
    assert "No policy is graded yet." in view.text
    assert "No round has been judged yet." in view.text
    assert "No two policies are graded on the same questions yet." in view.text
    assert not view.all("svg")


def test_a_trained_policy_without_grades_is_pending(run_uri: str) -> None:
    synthetic_run.write(run_uri, rounds=1, evaluated=1)
    text = view_of(run_uri).text
    assert "policy-02 evaluation pending" in text
    assert "policy-03 not finished" in text
    assert "Policies trained 2 of 3" in text


def test_answers_that_wait_for_the_grader_are_named(run_uri: str) -> None:
    synthetic_run.write(run_uri, rounds=1, evaluated=2)
    Path(layout.evaluation(run_uri, 2), "caption-dev", "manifest.json").unlink()
    assert "Waiting for it: policy-02 on dev; isr-dpo evaluate completes them." in view_of(run_uri).text


def test_policy_01_without_seed_preferences_is_the_start_and_pending(run_uri: str) -> None:
    finish(layout.dataset(run_uri), metrics(train_rows=5, seed_rows=0))
    assert "policy-01 evaluation pending" in view_of(run_uri).text


def test_missing_frames_and_contexts_are_said(run_uri: str) -> None:
    synthetic_run.write_round(run_uri, 1, "a disc")
    view = view_of(run_uri)
    assert view.text.count("are not at hand.") == rendering.STATIC_SAMPLES
    assert "None: this is the first look." in view.text
    assert not view.all("img")


def test_a_damaged_file_is_named_and_the_rest_shown(run_uri: str) -> None:
    synthetic_run.write(run_uri)
    Path(layout.round_output(run_uri, 2, "preferences"), "judged-00000.jsonl").write_text("{}\n")
    Path(layout.graded(run_uri, 2, "caption", "dev"), "part-00000.jsonl").write_text("{}\n")
    Path(layout.time(run_uri, "judge", 1)).write_text("{")
    text = view_of(run_uri).text
    assert "Damaged files" in text
    assert "judged-00000.jsonl has 3 bytes" in text
    assert "part-00000.jsonl has 3 bytes" in text
    assert "judge-01.json: not a record of a step's time" in text
    assert "policy-03 best on dev" in text


def test_the_run_s_failure_stands_at_the_top(run_uri: str) -> None:
    synthetic_run.write(run_uri, rounds=1, evaluated=1)
    failed = '{"step": "judge", "index": 2, "error": "GuardTripped", "message": "3 of 40", "exit_code": 6}'
    Path(layout.failure(run_uri)).write_text(failed)
    text = view_of(run_uri).text
    assert "The run stopped: judge, round 2 GuardTripped: 3 of 40 Look at the trend below" in text
    assert text.index("The run stopped") < text.index("policy-01 answers")


def test_a_failure_that_is_given_wins_over_the_recorded_one(run_uri: str) -> None:
    Path(run_uri).mkdir()
    Path(layout.failure(run_uri)).write_text('{"step": "train", "index": 0, "error": "E", "message": "old"}')
    text = view_of(run_uri, failure=Failure("evaluate", 2, "Killed", "new", retry=True)).text
    assert "The run stopped: evaluate, policy-02 Killed: new Run the same command again" in text
    assert "old" not in text


def test_a_failure_that_cannot_be_read_is_one(run_uri: str) -> None:
    Path(run_uri).mkdir()
    Path(layout.failure(run_uri)).write_text("{")
    assert "failed.json cannot be read" in view_of(run_uri).text


def test_no_banner_without_a_failure(whole_page: str) -> None:
    assert "The run stopped" not in whole_page


def test_equal_runs_give_equal_pages_in_every_process(whole_run: str, whole_page: str) -> None:
    script = (
        "import sys, synthetic_run\n"
        "from isr_dpo.report import render\n"
        f"sys.stdout.write(render(synthetic_run.page({whole_run!r})))"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}
    other = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
    assert other.stdout.decode() == whole_page


@pytest.mark.parametrize("context", ["none", "fixed"])
def test_a_design_without_descriptions_of_its_own_each_round_is_shown(run_uri: str, context: str) -> None:
    synthetic_run.write_round(run_uri, 1, "a disc")
    judged = synthetic_run.judged_row(0, 2, "a disc", "a disc on a plain ground, in round 1, followed by a disc")
    if context == "none":
        judged = judged.model_copy(update={"context": None})
    uri = layout.round_output(run_uri, 2, "preferences")
    finish(uri, {"judged-00000.jsonl": synthetic_run.to_jsonl([judged]), **metrics(rows=1, pairs=1)})
    text = view_of(run_uri, retrospect={"context": context}).text
    assert "41 of 41 judged rows" in text
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


def test_a_control_judge_is_called_one(run_uri: str) -> None:
    judged = synthetic_run.judged_row(0, 1, "a disc", "c").model_copy(update={"probabilities": (), "rationales": ()})
    uri = layout.round_output(run_uri, 1, "preferences")
    finish(uri, {"judged-00000.jsonl": synthetic_run.to_jsonl([judged]), **metrics(rows=1, pairs=1)})
    text = view_of(run_uri, judge={"by": "random"}).text
    assert "The judge is a control, random" in text
    assert "The judge was not asked, so there are no probabilities." in text
