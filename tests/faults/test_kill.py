"""kill -9 at any moment: the restarted loop ends with the same bytes, and no file is left half-written."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isr_dpo import layout
from isr_dpo.data.world import draw
from tests.loop import read, recipe_for, standing
from tests.tiny import make_policy


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("loop")
    draw(folder / "world", seed=1, train=12, dev=6, test=6, seed_preferences=4)
    model = make_policy(folder / "model")
    return [sys.executable, "-m", "tests.loop", str(model), str(folder / "world"), f"sqlite:///{folder}/mlflow.db"]


def outputs(run: str) -> int:
    """Files that the run has written so far."""
    return sum(1 for path in Path(run).rglob("*.json*") if path.is_file())


def kill_at(command: list[str], run: str, files: int) -> None:
    """Starts the loop and kills it as soon as it has written so many files."""
    process = subprocess.Popen([*command, run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while outputs(run) < files:
        assert process.poll() is None, f"the loop ended with {outputs(run)} files, before {files}"
        time.sleep(0.01)
    process.kill()
    process.wait()


def test_a_loop_killed_again_and_again_ends_with_the_same_bytes(command: list[str], tmp_path: Path) -> None:
    undisturbed, killed = str(tmp_path / "undisturbed"), str(tmp_path / "killed")
    subprocess.run([*command, undisturbed], check=True, capture_output=True)
    for files in sorted(random.Random(0).sample(range(5, outputs(undisturbed) - 8), 3)):
        kill_at(command, killed, files)
    last = subprocess.run([*command, killed], check=False, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr[-2000:]
    recipe = recipe_for(Path(command[3]), Path(command[4]), command[5])
    ours, theirs = standing(recipe, killed), standing(recipe, undisturbed)
    assert ours.keys() == theirs.keys()
    for place, made in theirs.items():
        if not place.endswith("training"):  # holds seconds
            assert ours[place].digest == made.digest, place
    for name in ("responses", "contexts"):
        assert read(layout.round_output(killed, 2, name)) == read(layout.round_output(undisturbed, 2, name))
    assert not list(Path(killed).rglob("unfinished.json"))
