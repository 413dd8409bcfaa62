"""What the tests of the grader share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isr_dpo.config import Evaluate
from isr_dpo.evaluate import account
from isr_dpo.evaluate.caption import CaptionProtocol
from isr_dpo.evaluate.ledger import Entry, Ledger
from isr_dpo.evaluate.openai import OpenAIGrader
from isr_dpo.evaluate.protocol import Task
from tests.servers.grader_server import KEY, Answer

PROTOCOL = CaptionProtocol()
GOOD = Answer()


def tasks(count: int, start: int = 0) -> list[Task]:
    return [Task(caption="c", question="q", truth="t", prediction=f"answer {i} here") for i in range(start, count)]


def settings(url: str, **changes: Any) -> Evaluate:
    tree = {"grader": "openai", "model": "grader-1", "base_url": url, "timeout_seconds": 60.0, "concurrency": 4}
    return Evaluate.model_validate({**tree, **changes})


def grader(url: str, run: Path, *, retries: int = 2, **changes: Any) -> OpenAIGrader:
    return OpenAIGrader(settings(url, **changes), run_uri=str(run), max_retries=retries)


def scripted(*answers: Answer) -> Callable[[str, int], Answer]:
    """Each prompt gets these answers in turn, the last one for ever."""
    return lambda prompt, n: answers[min(n, len(answers) - 1)]


def number(prompt: str, of: int = 100) -> int:
    """Which of `tasks` a prompt is about."""
    return next(i for i in range(of) if f"answer {i} here" in prompt)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right key, and short waits."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.05)
    monkeypatch.setattr(account, "POLL_SECONDS", 0.02)


def entries(run: Path) -> list[Entry]:
    """All that stands in the ledger beside a run."""
    folder = run.parent / "ledger"
    ledger = Ledger(str(folder))
    found = [ledger.get(path.stem) for path in sorted(folder.rglob("*.json"))]
    assert None not in found
    return [entry for entry in found if entry is not None]
