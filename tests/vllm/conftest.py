"""Both engines on a module's own `folder` and `frames`: vLLM's, and the embedded one it is compared with."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isr_dpo import config
from isr_dpo.engines import open_engine
from isr_dpo.engines.hf import HFEngine
from tests.engines.contract import Frames
from tests.vllm.published import MODEL

if TYPE_CHECKING:
    from isr_dpo.engines.vllm import VLLMEngine


@pytest.fixture(scope="module")
def engine(folder: Path, frames: Frames) -> Iterator[VLLMEngine]:
    from isr_dpo.engines.vllm import VLLMEngine

    opened = open_engine(config.Engine(kind="vllm"), MODEL, folder, frames)
    assert isinstance(opened, VLLMEngine)
    yield opened
    opened.close()
    gc.collect()


@pytest.fixture(scope="module")
def embedded(folder: Path, frames: Frames) -> HFEngine:
    return HFEngine(folder, frames, dtype="float32", device="cpu", batch_rows=8)
