"""The paper's tables: the transcription against facts that do not come from it, and our rows beside the reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from isr_dpo.analyse import form
from isr_dpo.analyse.runs import open_runs
from isr_dpo.analyse.tables import NUMBERS, REPORTED, Table, TableRow, agreement, table
from tests.analyse.analysed_run import GPT, RunFiles, asked_row

ROWS = [asked_row(number) for number in range(4)]
# The accuracies that the project's notes on the method have for policies 1, 5 and 9, made apart from the transcription.
NOTED = {
    "actnet": (75.58, 81.62, 82.99),
    "vidal": (70.07, 77.33, 79.00),
    "webvid": (80.74, 86.92, 88.11),
    "msvd": (74.33, 79.63, 80.36),
    "msrvtt": (68.18, 74.07, 75.42),
    "tgif": (73.57, 77.52, 78.58),
    "ssv2": (48.91, 53.13, 54.66),
    "msvd-official": (80.1, 84.8, 85.8),
    "msrvtt-official": (69.8, 76.0, 78.7),
    "tgif-official": (61.0, 66.8, 67.8),
}
CAPTION_SYSTEMS = {
    "Video-ChatGPT",
    "LLaMA-VID",
    "Chat-UniVi",
    "Video-LLaVA",
    "VLM-RLAIF",
    "PLLaVA",
    "LLaVA-NeXT-DPO",
    "LLaVA-Hound-DPO",
}


def rows_of(found: Table, system: str) -> list[TableRow]:
    return [row for row in found.rows if row.system.split(",")[0] == system]


def test_the_policies_have_the_noted_accuracies() -> None:
    seen = set()
    for number in (1, 2, 3):
        found = table(number)
        ours = rows_of(found, "ISR-DPO")
        assert [row.system for row in ours] == [f"ISR-DPO, policy-0{policy}" for policy in (1, 5, 9)]
        for name in found.sets:
            assert tuple(row.cells[name].accuracy_percent.value for row in ours) == NOTED[name]
            seen.add(name)
    assert seen == set(NOTED)


def test_no_system_of_the_paper_is_left_out() -> None:
    assert {row.system for row in table(1).rows} >= CAPTION_SYSTEMS
    assert {row.system for row in table(2).rows} >= CAPTION_SYSTEMS
    assert {row.system for row in table(3).rows} >= CAPTION_SYSTEMS | {"VideoChat2"}
    assert [len(table(number).rows) for number in NUMBERS] == [11, 11, 12, 4]
    assert [row.system for row in table(5).rows] == ["N/A", "Fixed", "Renew", "Retrospective"]


def test_the_retrospective_design_is_the_last_policy_of_tables_1_and_2() -> None:
    retrospective = table(5).rows[-1]
    for number in (1, 2):
        last = rows_of(table(number), "ISR-DPO")[-1]
        for name, cell in last.cells.items():
            assert retrospective.cells[name] == cell


def test_the_gains_of_the_design_are_those_that_the_paper_speaks_of() -> None:
    none, fixed, renew, ours = table(5).rows

    def acc(row: TableRow, name: str) -> float:
        return row.cells[name].accuracy_percent.value

    gains = [acc(ours, name) - acc(none, name) for name in ours.cells]
    assert 0.3 <= min(gains) <= max(gains) <= 2.3
    # "Fixed outperforms Renew in most benchmarks, except for MSRVT", says the text; by the table the exception is MSVD
    assert [name for name in ours.cells if acc(renew, name) > acc(fixed, name)] == ["msvd"]
    # "For SSv2 and WebVid, Renew even performs worse than N/A"
    assert {name for name in ours.cells if acc(renew, name) < acc(none, name)} == {"ssv2", "webvid"}


def test_reported_figures_are_on_their_scales_and_the_last_policy_is_best() -> None:
    for number in (1, 2, 3):
        found = table(number)
        for name in found.sets:
            cells = [row.cells[name] for row in found.rows if name in row.cells]
            assert all(0 < cell.accuracy_percent.value < 100 for cell in cells)
            assert all(1 <= cell.score.value <= 5 for cell in cells)
            best = max(cells, key=lambda cell: cell.accuracy_percent.value)
            assert best is cells[-1]
    missing = [row.system for row in table(3).rows if len(row.cells) < 3]
    assert missing == ["VideoChat2"]


def test_what_the_authors_reproduced_is_marked() -> None:
    for number in (1, 2, 3):
        marked = {row.system for row in table(number).rows if row.mark}
        assert marked == {"VLM-RLAIF", "PLLaVA", "LLaVA-NeXT-DPO"}


def test_every_reported_row_is_marked_as_of_a_retired_grader() -> None:
    for number in NUMBERS:
        assert {row.grader for row in table(number).rows} == {REPORTED}
        assert "no longer served" in table(number).notes[0]


def test_table_4() -> None:
    assert (agreement().self_rewarding, agreement().isr_dpo) == (59.0, 75.0)


def test_ours_stand_below_with_grader_interval_and_unscored(tmp_path: Path) -> None:
    sets = {"dev": "dev.qa.jsonl", "actnet": "actnet.qa.jsonl", "vidal": "vidal.qa.jsonl"}
    files = RunFiles(tmp_path, data={"train": "t.jsonl", "sets": sets})
    files.dataset(dict.fromkeys(sets, ROWS))
    files.grades(1, ROWS, [5, 1, None, 4], name="actnet")
    files.grades(3, ROWS, [5, 5, 5, 5], name="actnet", **GPT)
    files.grades(3, ROWS, [None] * 4, name="vidal")
    runs = open_runs([files.uri])
    first, last = (row for row in table(1, runs).rows if row.origin == "ours")
    assert (first.system, first.grader) == ("ours, policy-01", "rule-based grader (no model)")
    cell = first.cells["actnet"]
    assert cell.accuracy_percent.value == pytest.approx(200 / 3)
    assert cell.accuracy_percent.high == 100
    assert (cell.unscored, cell.rows) == (1, 4)
    assert (last.system, last.grader) == ("ours, policy-03", "gpt-4o-mini")
    assert set(last.cells) == {"actnet"}  # nothing of vidal is scored
    assert [row.origin for row in table(1, runs).rows] == ["reported"] * 11 + ["ours"] * 2
    assert table(2, runs).notes[-1].startswith("None of the runs is graded on a set of this table")


def test_a_table_shows_its_own_protocol_alone(tmp_path: Path) -> None:
    sets = {"dev": "dev.qa.jsonl", "msvd-official": "msvd.qa.jsonl"}
    files = RunFiles(tmp_path, data={"train": "t.jsonl", "sets": sets})
    files.dataset(dict.fromkeys(sets, ROWS))
    files.grades(3, ROWS, [5] * 4, name="msvd-official")  # graded by the caption protocol
    assert all(row.origin == "reported" for row in table(3, open_runs([files.uri])).rows)


def test_one_policy_by_two_graders_has_two_rows(tmp_path: Path) -> None:
    sets = {"dev": "dev.qa.jsonl", "actnet": "actnet.qa.jsonl", "vidal": "vidal.qa.jsonl"}
    files = RunFiles(tmp_path, data={"train": "t.jsonl", "sets": sets})
    files.dataset(dict.fromkeys(sets, ROWS))
    files.grades(3, ROWS, [5] * 4, name="actnet")
    files.grades(3, ROWS, [5] * 4, name="vidal", **GPT)
    ours = [row for row in table(1, open_runs([files.uri])).rows if row.origin == "ours"]
    assert [(row.grader, *row.cells) for row in ours] == [
        ("rule-based grader (no model)", "actnet"),
        ("gpt-4o-mini", "vidal"),
    ]


def test_designs_and_benchmarks_in_table_5(tmp_path: Path) -> None:
    data = {"train": "t.jsonl", "sets": {"dev": "dev.qa.jsonl", "msvd": "msvd.qa.jsonl"}}
    ours = RunFiles(tmp_path, "ours", data=data, retrospect={"context": "none"})
    base = RunFiles(tmp_path, "base", data=data, iterations=0)
    for files, policy in ((ours, 3), (base, 0)):
        files.dataset({"dev": ROWS, "msvd": ROWS})
        files.grades(policy, ROWS, [5] * 4, name="msvd")
    runs = open_runs([ours.uri, base.uri])
    assert [row.system for row in table(5, runs).rows[4:]] == ["ours, policy-03, N/A"]
    assert [row.system for row in table(2, runs).rows[11:]] == ["ours, policy-03", "base"]


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(ValueError, match="table 4: accepted: 1, 2, 3, 5"):
        table(4)


def test_tables_come_back_from_their_json() -> None:
    for number in NUMBERS:
        assert form.from_json(Table, form.to_json(table(number)), where="here") == table(number)
