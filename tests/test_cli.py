"""The command line: wrong input gets one clear message, an exit code and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isr_dpo.cli import main
from isr_dpo.cli.steps import STEPS


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("isr-dpo: ")
    return code, captured.err


def test_help_names_every_command_and_how_a_run_is_started() -> None:
    out = subprocess.run([sys.executable, "-m", "isr_dpo.cli", "--help"], capture_output=True, text=True, check=True)
    for word in (
        *STEPS,
        "world",
        "ask",
        "report",
        "analyse",
        "promote",
        "rollback",
        "estimate",
        "gc",
        "python -m pipelines run",
    ):
        assert word in out.stdout


def test_a_missing_recipe_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, message = refused(capsys, "generate", str(tmp_path / "no.yaml"), "--run-uri", str(tmp_path), "--index", "1")
    assert code == 2
    assert "no.yaml: cannot be read: No such file" in message


def test_a_step_before_its_inputs_says_what_makes_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, message = refused(capsys, "prepare", "pipelines/recipes/smoke.yaml", "--run-uri", str(tmp_path / "run"))
    assert code == 3
    assert "`isr-dpo preflight` makes it" in message


def test_ask_names_a_missing_video_and_a_missing_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, message = refused(capsys, "ask", str(tmp_path / "no.mp4"), "what ?", "--model", "builtin:world")
    assert code == 3
    assert "no.mp4: no such file" in message
    video = tmp_path / "a.mp4"
    video.write_bytes(b"no video")
    code, message = refused(capsys, "ask", str(video), "what ?", "--model", str(tmp_path / "nothing"))
    assert code == 7
    assert "no config.json" in message
    code, message = refused(capsys, "ask", str(video), "what ?", "--model", "builtin:world")
    assert code == 3
    assert "a.mp4" in message
    code, message = refused(capsys, "ask", str(video), "  ", "--model", "builtin:world")
    assert "the question is empty" in message


def test_ask_answers_about_a_clip(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from isr_dpo.data.world import draw

    draw(tmp_path / "world", seed=5, train=2, dev=6, test=6, seed_preferences=1)
    video = next((tmp_path / "world" / "videos").glob("dev-*.mp4"))
    assert main(["ask", str(video), "what colour is it ?", "--model", "builtin:world"]) == 0
    assert len(capsys.readouterr().out.split()) >= 3


def test_a_registered_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"")
    uri = f"sqlite:///{tmp_path}/none.db"
    for arguments in (
        ("ask", str(video), "what ?", "--model", "models:/nobody@champion", "--tracking-uri", uri),
        ("promote", "nobody", "--tracking-uri", uri),
        ("rollback", "nobody", "--tracking-uri", uri),
    ):
        code, _ = refused(capsys, *arguments)
        assert code in (2, 8)
    assert not (tmp_path / "none.db").exists()


def test_report_of_what_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, message = refused(capsys, "report", str(tmp_path))
    assert code == 3
    assert "no run.json there" in message


def test_a_world_in_a_folder_of_other_things(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "world.json").write_text('{"arguments": {"version": 0}}')
    code, _ = refused(capsys, "world", "draw", str(tmp_path), "--train", "4")
    assert code == 3


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"no run\.json"):
        main(["--debug", "report", str(tmp_path)])


@pytest.mark.parametrize("arguments", [[], ["judge"], ["world"], ["world", "draw"], ["nonsense"]])
def test_incomplete_commands_show_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: isr-dpo" in capsys.readouterr().err
