"""The rehearsal runs the whole step at a small shape, with as little as a bare GPU machine has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

MISSING = """
import importlib.machinery

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in ("deepspeed", "mlflow", "trl"):
            return None
        return super().find_spec(name, path, target)

import sys
sys.meta_path[:] = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""


def test_a_round_is_measured_where_nothing_optional_is_installed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(MISSING, encoding="utf-8")
    command = [sys.executable, "-m", "tests.bench.rehearsal", "--small", "--threads", "1", "--scratch", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert made.returncode == 0, made.stderr[-3000:]
    assert "mlflow is not installed" in made.stdout
    assert "trl is not installed" in made.stdout
    line = re.search(r"^rehearsal pairs_per_second=.*$", made.stdout, re.M)
    assert line is not None, made.stdout
    found = {key: float(value) for key, value in (item.split("=") for item in line[0].split()[1:])}
    assert found["pairs_per_second"] > 0
    assert 0 < found["mfu"] < 1
    assert found["floor"] > 1
    assert found["checkpoint_seconds"] >= 0  # one was written
    assert 0 < found["update_kept"] < 0.5  # bf16 holds little of an update at this learning rate
