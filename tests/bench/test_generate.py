"""The benchmark of generation runs at a tiny size, and its sides run the same policy."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.bench.generate import check
from tests.bench.generate_setup import needed_tokens


def test_the_ratio_and_the_prefill_are_printed() -> None:
    command = [sys.executable, "-m", "tests.bench.generate", "--setting", "small", "--repeats", "1", "--threads", "1"]
    made = subprocess.run([*command, "--sides", "batch1", "hf"], capture_output=True, text=True, timeout=240)
    assert made.returncode == 0, made.stderr[-3000:]
    found = dict(
        re.findall(r"^generate setting=small engine=(\w+) ratio=\d+\.\d\d prefill=(\d+\.\d\d)$", made.stdout, re.M)
    )
    assert found.keys() == {"batch1", "hf"}, made.stdout
    assert float(found["batch1"]) > float(found["hf"]) > 1  # the draws of a row share their prompt in ours


def test_sides_that_run_another_policy_are_no_comparison() -> None:
    sides = {"batch1": ("a text", (0.5, 0.25)), "hf": ("a text", (0.5, 0.3))}
    found = {side: {"check": {"text": text, "probabilities": given}} for side, (text, given) in sides.items()}
    check(found, tolerance=0.1)
    with pytest.raises(SystemExit, match="hf gives"):
        check(found, tolerance=0.01)


def test_what_is_needed_is_every_token_of_a_clips_prompts_once() -> None:
    answer, longer, other = [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 9]
    assert needed_tokens([("a", answer), ("a", longer), ("a", other), ("a", answer)]) == 6
    assert needed_tokens([("a", answer), ("b", answer)]) == 6
