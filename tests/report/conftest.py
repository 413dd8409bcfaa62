from pathlib import Path

import pytest
import synthetic_run
from synthetic_run import MADE, recipe

from isr_dpo.report import render
from isr_dpo.report.data import gather


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    synthetic_run.write(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run whose model wrote HTML; not to be changed."""
    folder = tmp_path_factory.mktemp("hostile")
    synthetic_run.write(str(folder), text=synthetic_run.HOSTILE)
    return str(folder)


@pytest.fixture(scope="session")
def whole_page(whole_run: str) -> str:
    return render(gather(whole_run, recipe(), made=MADE))


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")
