from pathlib import Path

import pytest
import synthetic_run

from isr_dpo.report import render


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    synthetic_run.write(str(folder))
    synthetic_run.write_analyses(str(folder))
    synthetic_run.write_agreement(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run whose model wrote HTML; not to be changed."""
    folder = tmp_path_factory.mktemp("hostile")
    synthetic_run.write(str(folder), text=synthetic_run.HOSTILE)
    synthetic_run.write_analyses(str(folder), text=synthetic_run.HOSTILE)
    return str(folder)


@pytest.fixture(scope="session")
def whole_page(whole_run: str) -> str:
    return render(synthetic_run.page(whole_run))


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")
