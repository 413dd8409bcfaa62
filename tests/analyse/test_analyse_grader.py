"""Analyses that ask a grader, with a real one on loopback: structured replies, the ledger, an endpoint that is away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from isr_dpo.analyse.claims import Claims
from isr_dpo.analyse.claims_protocol import Stated, format_reply
from isr_dpo.analyse.form import from_json
from isr_dpo.analyse.win_rate import WinRate
from isr_dpo.cli import main
from isr_dpo.errors import OutsideError
from tests.analyse.analysed_run import RunFiles, asked_row
from tests.servers.grader_server import KEY, Answer, grader_server

ROWS = [asked_row(number) for number in range(6)]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name, word in (("ours", "good"), ("base", "poor")):
        files = RunFiles(tmp_path, name)
        files.dataset({"dev": ROWS})
        files.answers(3, ROWS, [f"a {word} answer {number}" for number in range(6)])
    return str(tmp_path / "ours"), str(tmp_path / "base")


def nearer(prompt: str, _: int) -> Answer:
    first = next(line for line in prompt.splitlines() if line.startswith("answer_1: "))
    return Answer(text=json.dumps({"explanation": "-", "nearer": "1" if "good" in first else "2"}))


def analyse(url: str, *arguments: str) -> int:
    priced = ("--evaluate", "price_prompt_usd=10", "--evaluate", "price_completion_usd=100")
    return main(["analyse", *arguments, "--grader", "openai", "--model", "grader-1", "--base-url", url, *priced])


def test_a_win_rate_is_bought_once(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with grader_server(nearer) as server:
        assert analyse(server.url, "win-rate", *runs) == 0
        assert "graded by grader-1" in capsys.readouterr().out
        assert len(server.prompts) == 12
        assert all("response_format" in asked.settings for asked in server.served.asked)
        # 100 prompt tokens at 10 and 10 completion tokens at 100 dollars a million, twelve times
        first = result(runs[0])
        assert (first.bill.bought, round(first.bill.cost_usd, 6)) == (12, 0.024)
        assert (first.sets[0].wins, first.sets[0].unscored) == (6, 0)
        assert analyse(server.url, "win-rate", *runs) == 0
        assert len(server.prompts) == 12
    again = result(runs[0])
    assert again.bill.bought == 0
    assert again.sets == first.sets


def test_a_grader_that_goes_away_keeps_what_was_bought(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    away = True

    def falling(prompt: str, n: int) -> Answer:
        return Answer(status=401) if away and len(server.prompts) > 5 else nearer(prompt, n)

    with grader_server(falling) as server:
        assert analyse(server.url, "win-rate", *runs, "--evaluate", "concurrency=1") == OutsideError.exit_code
        assert "Traceback" not in capsys.readouterr().err
        assert not (Path(runs[0]) / "analysis").exists()
        away, bought = False, len(server.prompts)
        assert analyse(server.url, "win-rate", *runs) == 0
    assert result(runs[0]).bill.bought < 12
    assert len(server.prompts) - bought == result(runs[0]).bill.bought


def test_claims_by_a_served_grader(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    def say(prompt: str, _: int) -> Answer:
        return Answer(text=format_reply([Stated("good", False), Stated("answer", True)]))

    with grader_server(say) as server:
        assert analyse(server.url, "claims", runs[0], "--limit", "3") == 0
        assert len(server.prompts) == 3
    found = from_json(Claims, (Path(runs[0]) / "analysis" / "claims-dev.json").read_bytes(), where="out")
    (of,) = found.policies
    assert of.unsupported is not None
    assert (of.answers, of.unscored, of.unsupported.value) == (3, 0, 1.0)
    assert found.grader.served_models == ("grader-1-0718",)
    assert "a [good] answer" in capsys.readouterr().out


def result(run_uri: str) -> WinRate:
    file = Path(run_uri) / "analysis" / "win-rate-03-base-03.json"
    return from_json(WinRate, file.read_bytes(), where="out")
