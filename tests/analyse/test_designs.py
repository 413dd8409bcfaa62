"""Context designs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isr_dpo.analyse import form
from isr_dpo.analyse.designs import Designs, designs
from isr_dpo.analyse.runs import Run, open_runs
from isr_dpo.errors import DataError
from tests.analyse.analysed_run import GPT, RunFiles, asked_row

ROWS = [asked_row(number) for number in range(8)]
LOW: list[float | None] = [1, 1, 1, 1, 5, 5, 5, None]
HIGH: list[float | None] = [5, 5, 1, 1, 5, 5, 5, 5]


def made(folder: Path, context: str, scores: list[float | None], *, seed: int = 0, **grader: Any) -> str:
    files = RunFiles(folder, f"{context}-{seed}", seed=seed, retrospect={"context": context})
    files.dataset({"dev": ROWS})
    files.grades(3, ROWS, scores, **grader)
    return files.uri


def opened(*uris: str) -> list[Run]:
    return open_runs(uris)


def test_gains_are_over_self_rewarding_on_the_questions_that_both_have_scored(tmp_path: Path) -> None:
    found = designs(opened(made(tmp_path, "none", LOW), made(tmp_path, "retrospective", HIGH)))
    none, ours = found.designs
    assert (found.policy, none.context, ours.context, ours.baseline) == (3, "none", "retrospective", "none-0")
    (of_none,), (of_ours,) = none.sets, ours.sets
    assert of_none.accuracy is not None
    assert of_none.accuracy.value == pytest.approx(3 / 7)
    assert (of_none.unscored, of_none.rows) == (1, 8)
    assert of_none.accuracy_gain is None
    # of the 7 scored in both, two go from 1 to 5
    assert of_ours.accuracy_gain is not None
    assert of_ours.score_gain is not None
    assert of_ours.accuracy_gain.value == pytest.approx(2 / 7)
    assert of_ours.score_gain.value == pytest.approx(8 / 7)
    assert of_ours.accuracy_gain.rows == 7
    assert of_ours.grader == "rule-based grader (no model)"
    assert found.notes == ()


def test_different_graders_are_shown_and_not_subtracted(tmp_path: Path) -> None:
    found = designs(opened(made(tmp_path, "none", LOW), made(tmp_path, "renew", HIGH, **GPT)))
    (of_ours,) = found.designs[1].sets
    assert of_ours.accuracy is not None
    assert of_ours.accuracy_gain is None
    assert of_ours.grader == "gpt-4o-mini"
    assert "not comparable: none-0, policy-03 was graded by rule-based grader" in found.notes[0]
    assert "renew-0, policy-03 by gpt-4o-mini" in found.notes[0]


def test_a_gain_is_over_the_baseline_of_the_same_seed(tmp_path: Path) -> None:
    runs = opened(
        made(tmp_path, "none", LOW), made(tmp_path, "none", HIGH, seed=1), made(tmp_path, "fixed", HIGH, seed=1)
    )
    ours = designs(runs).designs[2]
    assert ours.baseline == "none-1"
    assert ours.sets[0].accuracy_gain is not None
    assert ours.sets[0].accuracy_gain.value == 0


def test_the_policy_is_the_latest_that_all_have(tmp_path: Path) -> None:
    a = RunFiles(tmp_path, "a", retrospect={"context": "none"})
    b = RunFiles(tmp_path, "b")
    for files, policies in ((a, (1, 2, 3)), (b, (1, 2))):
        files.dataset({"dev": ROWS})
        for policy in policies:
            files.grades(policy, ROWS, HIGH)
    assert designs(opened(a.uri, b.uri)).policy == 2
    late = designs(opened(a.uri, b.uri), policy=3)
    assert late.designs[1].sets == ()
    assert late.notes == ("b: policy 3 is not graded on any set",)


def test_without_self_rewarding_there_is_no_gain_and_it_is_said(tmp_path: Path) -> None:
    found = designs(opened(made(tmp_path, "fixed", LOW), made(tmp_path, "renew", HIGH)))
    assert all(of.accuracy_gain is None for design in found.designs for of in design.sets)
    assert "no run has context 'none'" in found.notes[0]


def test_a_benchmark_has_no_design(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, "base", iterations=0)
    files.dataset({"dev": ROWS})
    files.grades(0, ROWS, HIGH)
    found = designs(opened(files.uri, made(tmp_path, "none", LOW)))
    assert [design.run for design in found.designs] == ["none-0"]
    assert found.notes == ("base: a benchmark has no context design",)
    with pytest.raises(DataError, match="no run that trains"):
        designs(opened(files.uri))


def test_designs_come_back_from_their_json(tmp_path: Path) -> None:
    found = designs(opened(made(tmp_path, "none", LOW), made(tmp_path, "retrospective", HIGH)))
    assert form.from_json(Designs, form.to_json(found), where="here") == found
