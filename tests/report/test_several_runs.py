"""One page over several runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import synthetic_run
from html_view import View
from synthetic_run import HOSTILE, MADE, recipe

from isr_dpo import layout
from isr_dpo.cli import main
from isr_dpo.report import render
from isr_dpo.report.data import Page, gather
from isr_dpo.report.reading import KeptRun
from isr_dpo.report.sections import sections


def write(uri: Path, *, grader: str = "rule-based", model: str | None = None, **changes: object) -> KeptRun:
    made_by = recipe(name=uri.name, **changes)
    synthetic_run.write(str(uri), rounds=1, evaluated=0)
    for index in made_by.policies if not made_by.is_benchmark else ():
        synthetic_run.write_evaluation(str(uri), index, grader=grader, model=model)
    return KeptRun(str(uri), made_by, made_by.name)


def page_of(*runs: KeptRun) -> Page:
    return gather(runs, made=MADE)


def test_runs_stand_side_by_side_with_their_differences(tmp_path: Path) -> None:
    first = write(tmp_path / "first")
    other = write(tmp_path / "other", retrospect={"context": "none"})
    view = View(render(page_of(first, other)))
    assert "2 runs side by side" in view.text
    assert "other against first dev policy-03 against policy-03 +0.0" in view.text
    assert "first policy-03 answers 66.7 %" in view.text
    assert "Different graders" not in view.text
    assert "Context designs of these runs" in view.text
    ids = view.values("id")
    assert len(ids) == len(set(ids))


def test_figures_of_different_graders_are_flagged_and_never_subtracted(tmp_path: Path) -> None:
    first = write(tmp_path / "first")
    other = write(tmp_path / "other", grader="gpt-4o", model="gpt-4o")
    text = View(render(page_of(first, other))).text
    assert "Different graders: these figures are not comparable" in text
    assert "dev: first by rule-based grader (no model) by the caption protocol; other by gpt-4o" in text
    assert "not compared graded differently" in text


def test_lines_of_several_runs_are_drawn_in_one_figure(tmp_path: Path) -> None:
    runs = [write(tmp_path / name) for name in ("first", "other", "third")]
    figures = {figure.key: figure for section in sections(page_of(*runs)) for figure in section.figures}
    for key in ("accuracy-by-policy", "words-by-round", "judge-agreement", "dropped-rows", "training-loss"):
        assert all(run.name in figures[key].alt for run in runs), key
    assert [key for key in figures if key.startswith("time")] == ["time-0", "time-1", "time-2"]


def test_a_benchmark_stands_beside_a_trained_run(tmp_path: Path) -> None:
    first = write(tmp_path / "first")
    bench = write(tmp_path / "bench", iterations=0)
    synthetic_run.write_evaluation(bench.uri, 0)
    text = View(render(page_of(first, bench))).text
    assert "nothing is trained in this run, it is a benchmark" in text
    assert "bench against first dev policy-00 against policy-03 −20.5" in text


def test_one_damaged_run_leaves_the_other_whole(tmp_path: Path) -> None:
    first, other = write(tmp_path / "first"), write(tmp_path / "other")
    Path(layout.dataset(first.uri), "set-dev.jsonl").write_text("")
    text = View(render(page_of(first, other))).text
    assert "Damaged files of first" in text
    assert "other policy-03 answers 66.7 %" in text


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    runs = [write(tmp_path / name) for name in ("first", "other")]
    for run in runs:
        tree = {"recipe": json.loads(run.recipe.canonical()), "digest": run.recipe.digest()}
        Path(layout.run_file(run.uri)).write_text(json.dumps(tree))
    return [run.uri for run in runs]


def test_the_command_writes_one_run_s_page_into_the_run(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", two[0]]) == 0
    assert capsys.readouterr().out.strip() == layout.report(two[0])
    assert Path(layout.report(two[0])).stat().st_size > 10_000


def test_the_command_writes_several_runs_elsewhere(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *two, "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert "2 runs side by side" in (tmp_path / "new" / "page.html").read_text()
    assert main(["report", *two]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{two[0]}/report/runs.html"
    assert not Path(layout.report(two[0])).exists(), "the run's own page is not touched"


def test_the_same_run_twice_is_refused(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", two[0], two[0]]) != 0
    assert "named twice" in capsys.readouterr().err


def test_hostile_names_of_runs_are_text(tmp_path: Path) -> None:
    first, other = write(tmp_path / "first"), write(tmp_path / "other")
    named = [KeptRun(run.uri, run.recipe, f"{run.name} {HOSTILE}") for run in (first, other)]
    view = View(render(page_of(*named)))
    assert len(view.all("script")) == 2
    assert view.text.count(HOSTILE) > 10
