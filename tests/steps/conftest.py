"""A drawn world and a random policy for all tests of the steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from isr_dpo.data.world import draw
from tests.tiny import make_policy


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "drawn"
    draw(folder, seed=0, train=12, dev=6, test=6, seed_preferences=4)
    return folder


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
