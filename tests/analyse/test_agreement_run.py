"""The world's oracle end to end on tiny runs: annotate, analyse agreement, and the same pairs judged again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from isr_dpo import layout, outputs, preflight, start
from isr_dpo.analyse.agreement import Agreement
from isr_dpo.analyse.form import from_json
from isr_dpo.analyse.runs import open_run
from isr_dpo.annotate.choices import read_all
from isr_dpo.cli import main
from isr_dpo.config import Recipe
from isr_dpo.data.world import draw
from isr_dpo.records import to_jsonl
from isr_dpo.steps.execute import STEPS
from isr_dpo.steps.inputs import inputs_of
from isr_dpo.stores import join, write_bytes
from tests.judged_run import judged_row, write
from tests.loop import recipe_for
from tests.tiny import make_policy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "drawn"
    draw(folder, seed=0, train=12, dev=2, test=2, seed_preferences=0)
    return folder


def judged_once(recipe: Recipe, uri: str) -> None:
    """The first round up to its judgement, without what a whole run does besides."""
    preflight.claim(recipe, uri)
    outputs.alias(layout.policy(uri, 0), start.start_manifest(recipe, None))
    begun = (("prepare", 0), ("train", 0), ("generate", 1))
    described = (("retrospect", 1),) if recipe.retrospect.context != "none" else ()
    for name, index in (*begun, *described, ("judge", 1)):
        STEPS[name](recipe, inputs_of(name, recipe, uri, index), uri, index)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, world: Path) -> tuple[str, str]:
    """Self-rewarding and retrospective, judged once, labelled by the oracle."""
    folder = tmp_path_factory.mktemp("runs")
    model, tracking = make_policy(folder / "model"), f"sqlite:///{folder}/mlflow.db"
    made = []
    for context in ("none", "retrospective"):
        recipe = recipe_for(model, world, tracking, name=context, retrospect={"context": context, "max_new_tokens": 6})
        uri = str(folder / context)
        judged_once(recipe, uri)
        assert main(oracle(uri, world / "train.jsonl")) == 0
        made.append(uri)
    return made[0], made[1]


def oracle(uri: str, truth: Path | str, *more: str) -> list[str]:
    return ["annotate", uri, "--round", "1", "--oracle", "rules", "--truth", str(truth), *more]


def result(uri: str) -> Agreement:
    place = Path(layout.analysis(uri, "agreement-round-01"))
    return from_json(Agreement, place.read_bytes(), where=str(place))


@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_the_oracle_chooses_the_right_answer(tmp_path: Path, world: Path, run_uri: str) -> None:
    """Against the world's own facts, wherever they lie: an answer that is right beats one that is wrong, in either
    place."""
    truths = join(run_uri, "train.jsonl")
    write_bytes(truths, (world / "train.jsonl").read_bytes())
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    judged = []
    for number, row in enumerate(rows):
        wrong = row["rejected"] if row.get("rejected") else "the object is a teapot ."
        answers = (row["answer"], wrong) if number % 2 else (wrong, row["answer"])
        judged.append(judged_row(0, id=row["id"], video=row["video"], prompt=row["prompt"], responses=answers))
    run = str(tmp_path / "judged")
    write(run, judged)
    recipe = recipe_for(tmp_path, world, "sqlite:///x.db")
    write_bytes(layout.run_file(run), json.dumps({"recipe": recipe.model_dump(mode="json")}).encode())
    assert main(oracle(run, truths)) == 0
    chosen = read_all(run, 1)["oracle:rule-based"]
    assert len(chosen) == len(rows)
    by_id = {row.id: row for row in judged}
    for choice in chosen:
        truth = next(row["answer"] for row in rows if row["id"] == choice.id)
        assert choice.outcome == "preferred"
        assert by_id[choice.id].responses[choice.choice or 0] == truth


def test_runs_of_two_designs_stand_beside_the_paper_s_figures(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    none, retrospective = runs
    assert main(["analyse", "agreement", none, "--round", "1", "--against", retrospective]) == 0
    shown = capsys.readouterr().out
    for text in ("none, context none", "retrospective, context retrospective", "oracle:rule-based", "59.0", "75.0"):
        assert text in shown
    found = result(none)
    assert [run.context for run in found.runs] == ["none", "retrospective"]
    for run in found.runs:
        (labels,) = run.labels
        assert labels.judge.compared + sum(labels.judge.left_out.values()) == labels.labelled == len(run.rows)
        assert set(run.made_from) == {"preferences", "choices/oracle:rule-based"}
    assert found.same_pairs is None


def test_judging_the_same_pairs_again_gives_what_both_rounds_stored(runs: tuple[str, str]) -> None:
    """The two runs' first rounds have one policy and equal responses, so with the other's descriptions its judge is the
    other's judge."""
    none, retrospective = runs
    assert main(["analyse", "agreement", none, "--round", "1", "--against", retrospective, "--engine"]) == 0
    found = result(none)
    same = found.same_pairs
    assert same is not None
    assert (same.policy, same.contexts_of, same.by) == (1, "retrospective", "oracle:rule-based")
    assert same.without == found.runs[0].labels[0].judge
    assert same.with_context == found.runs[1].labels[0].judge
    assert same.shuffled.compared + sum(same.shuffled.left_out.values()) == found.runs[0].labels[0].labelled
    read = {
        design: next(Path(none, "round-01").glob(f"rejudged-{design}-*/judged-00000.jsonl")).read_text().splitlines()
        for design in ("none", "retrospective", "shuffled")
    }
    contexts = {design: [json.loads(row).get("context") for row in rows] for design, rows in read.items()}
    assert set(contexts["none"]) == {None}
    assert contexts["shuffled"] != contexts["retrospective"]
    if same.difference is not None:
        assert found.difference is not None
        assert same.difference.value == pytest.approx(found.difference.value)


def test_what_was_judged_again_is_not_asked_twice_and_the_runs_own_outputs_stay(runs: tuple[str, str]) -> None:
    _, retrospective = runs
    before = open_run(retrospective).judged(1)
    command = ["analyse", "agreement", retrospective, "--round", "1", "--engine"]
    assert main(command) == 0
    places = sorted(Path(retrospective, "round-01").glob("rejudged-*/manifest.json"))
    assert len(places) == 3
    times = [os.stat(place).st_mtime_ns for place in places]
    first = result(retrospective)
    assert main(command) == 0
    assert [os.stat(place).st_mtime_ns for place in places] == times
    assert result(retrospective) == first
    assert open_run(retrospective).judged(1) == before


def test_the_oracle_asked_again_adds_nothing(runs: tuple[str, str], world: Path) -> None:
    file = Path(layout.choices(runs[0], 1, "oracle:rule-based"))
    before = file.read_bytes()
    assert main(oracle(runs[0], world / "train.jsonl")) == 0
    assert file.read_bytes() == before


def test_wrong_input_is_one_line(
    runs: tuple[str, str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none, _ = runs
    short = tmp_path / "short.jsonl"
    short.write_text((world / "train.jsonl").read_text().splitlines()[0] + "\n")
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(to_jsonl([{"id": "a"}]))
    unlabelled = str(tmp_path / "unlabelled")
    write(unlabelled, [judged_row(0)])
    write_bytes(layout.run_file(unlabelled), Path(layout.run_file(none)).read_bytes())
    capsys.readouterr()
    for command, code, message in (
        (["annotate", none, "--round", "1", "--oracle"], 2, "--oracle needs --truth"),
        (["annotate", none, "--round", "1", "--truth", str(short)], 2, "--truth: only with --oracle"),
        (oracle(none, short, "--port", "1"), 2, "--port: not with --oracle"),
        (oracle(none, short), 3, "have no ground truth, the first is"),
        (oracle(none, broken), 3, "broken.jsonl:1: not a Truth row: answer"),
        (oracle(none, tmp_path / "nowhere"), 3, f"--truth: there is no {tmp_path}/nowhere"),
        (oracle(none, short, "--evaluate", "modle=x"), 2, "modle"),
        (["analyse", "agreement", none, "--round", "9"], 3, "round 9 is not judged"),
        (["analyse", "agreement", unlabelled, "--round", "1"], 3, "nobody has labelled round 1"),
        (["analyse", "agreement", none, "--round", "1", "--engine"], 3, "no descriptions there to judge with"),
    ):
        assert main(command) == code, command
        said = capsys.readouterr().err.strip().splitlines()
        assert message in said[-1], said
        assert len(said) == 1
