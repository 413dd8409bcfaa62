"""The benchmark of a DPO step runs at a tiny size, and both sides train the same thing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from isr_dpo.dpo.floor import Lengths
from tests.bench import dpo_cost
from tests.bench.dpo_setup import Sizes

pytest.importorskip("trl", reason="the comparison needs trl")


def test_both_sides_agree_and_the_ratios_are_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.dpo_step", "--small", "--repeats", "1", "--threads", "1"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr[-3000:]
    number = r"\d+\.\d\d"
    assert re.search(rf"^dpo_step setting=defaults ratio={number} ideal={number}$", made.stdout, re.M), made.stdout
    assert re.search(rf"^dpo_step setting=equal ratio={number} memory={number}$", made.stdout, re.M), made.stdout
    found = re.search(r"losses of the steps: (.*); ours differ by at most (.*)", made.stdout)
    assert found is not None, made.stdout
    first, second = map(float, found[1].split())
    assert first == pytest.approx(0.6931, abs=1e-4)
    assert second < first  # the second step has trained on the first one's gradients, so that agreement says something
    assert float(found[2]) < 1e-5


def test_tower_and_head_stay_small_at_the_size_that_is_measured() -> None:
    sizes = Sizes()
    shares = dpo_cost.shares(sizes.shape, [Lengths(sizes.video_tokens + sizes.prompt_words, 120, 120)])
    assert sizes.video_tokens == 2056
    assert shares.tower <= 0.15
    assert shares.head <= 0.15
