from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tenacity

from isr_dpo.data.fetch import http

sys.path.append(str(Path(__file__).parents[1]))  # stills.py, clips.py: what tests of data share


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between attempts."""
    monkeypatch.setattr(http, "_backoff", tenacity.wait_fixed(0.01))
