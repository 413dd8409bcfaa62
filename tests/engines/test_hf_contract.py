"""The embedded engine keeps the engines' contract, on a tiny policy of each family, and of each form of Video-LLaVA."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from isr_dpo.engines.hf import HFEngine
from tests import families
from tests.engines.contract import *  # noqa: F403 - its tests, and a fixture
from tests.engines.contract import Frames


@pytest.fixture(scope="module", params=[*families.FAMILIES, *families.FORMS])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def frames(family: str) -> Frames:
    return functools.partial(families.clip, family)


@pytest.fixture(scope="module")
def engine(folder: Path, frames: Frames) -> HFEngine:
    return HFEngine(folder, frames, dtype="float32", device="cpu", batch_rows=4)
