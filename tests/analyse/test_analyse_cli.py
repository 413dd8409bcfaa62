"""`isr-dpo analyse`: what it prints and writes, and one clear line for wrong input."""

from __future__ import annotations

from pathlib import Path

import pytest

from isr_dpo.analyse.claims import Claims
from isr_dpo.analyse.designs import Designs
from isr_dpo.analyse.form import from_json
from isr_dpo.analyse.lengths import Lengths
from isr_dpo.analyse.tables import Table
from isr_dpo.analyse.trajectories import Trajectories
from isr_dpo.analyse.win_rate import WinRate
from isr_dpo.cli import main
from isr_dpo.errors import DataError, RecipeError
from tests.analyse.analysed_run import RunFiles, asked_row, judged_row

ROWS = [asked_row(number) for number in range(4)]
HOSTILE = "[red]bold[/] \x1b[31m<b>"


def made(folder: Path, name: str, texts: list[str | None], *, context: str = "retrospective") -> str:
    sets = {"dev": "dev.qa.jsonl", "actnet": "actnet.qa.jsonl"}
    files = RunFiles(folder, name, data={"train": "t.jsonl", "sets": sets}, retrospect={"context": context})
    files.dataset(dict.fromkeys(sets, ROWS), train=[("t0", "clip0")])
    files.round(1, [judged_row("t0", "clip0", (HOSTILE, "a cat"), 0)], {"clip0": "a dog"})
    files.answers(2, ROWS, texts)
    files.answers(3, ROWS, texts)
    files.grades(3, ROWS, [5, 4, 1, None])
    files.grades(3, ROWS, [5, 4, 1, None], name="actnet")
    return files.uri


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    ours = made(tmp_path, "ours", ["red", "it is red", "a red ball", "red and a cat"])
    return ours, made(tmp_path, "base", ["blue", "blue", "red", None], context="none")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["analyse", *arguments]) == 0
    return capsys.readouterr().out


def test_lengths(runs: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "lengths.json"
    text = said(capsys, "lengths", *runs, "--out", str(out))
    assert "Figure 4" in text
    assert f"written: {out}" in text
    assert [one.run for one in from_json(list[Lengths], out.read_bytes(), where="out")] == ["ours", "base"]


def test_designs(runs: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = said(capsys, "designs", *runs, "--out", str(tmp_path / "d.json"))
    assert "Context designs (Table 5), policy-03" in text
    assert "66.7" in text
    assert "1 of 4" in text
    assert "rule-based grader (no model)" in text
    assert len(from_json(Designs, (tmp_path / "d.json").read_bytes(), where="out").designs) == 2


def test_trajectories_show_texts_as_they_are(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = said(capsys, "trajectories", runs[0], "--count", "1", "--out", str(tmp_path / "t.json"))
    assert "[red]bold[/]" in text
    assert "\x1b" not in text
    assert "a dog" in text
    (found,) = from_json(list[Trajectories], (tmp_path / "t.json").read_bytes(), where="out")
    assert found.videos[0].questions[0].responses[0].chosen == HOSTILE


def test_tables(runs: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = said(capsys, "tables", *runs, "--table", "1", "--out", str(tmp_path / "t.json"))
    assert "82.99 / 3.26" in text
    assert "reported, retired grader" in text
    (ours,) = [line for line in text.splitlines() if "ours, policy-03" in line]
    assert "66.67 [" in ours
    assert "1 of 4" in ours
    assert "rule-based grader (no model)" in ours
    (found,) = from_json(list[Table], (tmp_path / "t.json").read_bytes(), where="out")
    assert found.number == 1
    for number in (1, 2, 3, 5):
        assert f"Table {number}. " in said(capsys, "tables")


def test_win_rate_writes_where_the_report_looks(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "win-rate", *runs)
    assert "ours, policy-03 against base, policy-03 (Figure 6), graded by rule-based grader (no model)" in text
    file = Path(runs[0]) / "analysis" / "win-rate-03-base-03.json"
    found = from_json(WinRate, file.read_bytes(), where="out")
    (of,) = found.sets
    assert (of.set, of.wins, of.ties, of.unscored) == ("dev", 2, 1, 1)


def test_two_policies_of_one_run_against_each_other(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "ours, policy-03 against ours, policy-02" in said(capsys, "win-rate", f"{runs[0]}:3", f"{runs[0]}:2")


def test_claims_write_where_the_report_looks(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "claims", runs[0], "--policies", "2,3", "--limit", "4")
    assert "policy-02" in text
    assert "red and [a cat]" in text
    found = from_json(Claims, (Path(runs[0]) / "analysis" / "claims-dev.json").read_bytes(), where="out")
    assert [of.policy for of in found.policies] == [2, 3]


def test_wrong_input_is_one_clear_line(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ours, base = runs
    for arguments, code, words in [
        (("lengths", str(tmp_path / "none")), DataError.exit_code, "none: no run.json there, so no run"),
        (("lengths", ours, ours + "/"), DataError.exit_code, "named twice"),
        (("trajectories", ours, "--video", "clip7"), DataError.exit_code, "no video 'clip7'"),
        (("trajectories", ours, "--set", "tset"), DataError.exit_code, "no evaluation set 'tset'"),
        (("win-rate", ours, ours), DataError.exit_code, "the same policy; name others"),
        (("win-rate", f"{ours}:4", base), DataError.exit_code, "no policy 4; it has 1 to 3"),
        (("win-rate", f"{ours}:1", base), DataError.exit_code, "have answered no set in common"),
        (("win-rate", ours, base, "--set", "actnet"), DataError.exit_code, "no finished answers there"),
        (("win-rate", ours, base, "--grader", "openai"), RecipeError.exit_code, "OPENAI_API_KEY"),
        (("win-rate", ours, base, "--evaluate", "concurrency=0"), RecipeError.exit_code, "evaluate.concurrency = 0"),
        (("win-rate", ours, base, "--evaluate", "speed"), RecipeError.exit_code, "written as key=value"),
        (("claims", ours, "--evaluate", "nokey=1"), RecipeError.exit_code, "unknown key 'evaluate.nokey'"),
        (("claims", ours, "--policies", "1,3"), DataError.exit_code, "policy-01/dev: no finished answers there"),
        (("claims", ours, "--policies", "9"), DataError.exit_code, "no policy 9; it has 1 to 3"),
        (("claims", ours, "--set", "actnet"), DataError.exit_code, "no policy has answered the set 'actnet' yet"),
    ]:
        assert main(["analyse", *arguments]) == code, arguments
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["lengths"],
        ["tables", "--table", "4"],
        ["win-rate", "one"],
        ["claims", "r", "--limit", "0"],
        ["claims", "r", "--policies", "one"],
        ["nonsense"],
    ],
)
def test_incomplete_analyses_show_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["analyse", *arguments])
    assert caught.value.code == 2
    assert "usage: isr-dpo analyse" in capsys.readouterr().err
