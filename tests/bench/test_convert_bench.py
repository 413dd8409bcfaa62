"""The benchmark of conversion writes what is converted, and reads what a process takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isr_dpo.models import convert
from tests.bench.convert import FULL, measured, write
from tests.models.convert.original_layout import Original


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_what_it_writes_is_a_checkpoint_of_several_shards(kind: str, tmp_path: Path) -> None:
    tiny = Original(400, time=True, dtype=torch.float16)
    write(tmp_path / "source", tiny, kind, shard_bytes=100_000)
    made = convert.plan(tmp_path / "source")
    assert len(made.target.shards) > 2
    assert {*made.target.pairs, *made.target.left_out} == tiny.shapes().keys()


def test_its_model_is_of_the_published_size() -> None:
    sizes = sum(torch.Size(shape).numel() * 2 for shape in FULL.shapes().values())
    assert sizes / 1e9 == pytest.approx(14.9, abs=0.05)


def test_the_memory_of_a_process_is_its_own() -> None:
    held = bytes(300_000_000)  # of this process
    cost = measured([sys.executable, "-c", "import time; held = b'1' * 50_000_000; time.sleep(1)"])
    assert len(held) > 0
    assert 0.05 < cost.own_gb <= cost.resident_gb < 0.15
    with pytest.raises(subprocess.CalledProcessError):
        measured([sys.executable, "-c", "raise SystemExit(3)"])
