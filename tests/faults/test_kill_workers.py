"""kill -9 of a worker, of its parent, or of both, and SIGTERM, at any moment of the preference stages: they end in
time, and the restarted stages make the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout, manifest
from isr_dpo.data.world import draw
from isr_dpo.errors import OutsideError
from tests.tiny import make_policy

STAGES = ("responses", "contexts", "preferences")
UNDONE = ".undone-"
"""What a process that is killed while it stores a file leaves behind; no store shows it."""
GRACE_SECONDS = 15
"""Of a spot machine's pod between SIGTERM and SIGKILL."""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("stages")
    draw(folder / "world", seed=1, train=24, dev=2, test=2, seed_preferences=0)
    model = make_policy(folder / "model")
    return [sys.executable, "-m", "tests.faults.stages", str(model), str(folder / "world")]


@pytest.fixture(scope="module")
def undisturbed(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run by one engine, in the step's own process."""
    run = str(tmp_path_factory.mktemp("undisturbed") / "run")
    subprocess.run([*command, run, "1"], check=True, capture_output=True)
    return run


class Stages:
    """The stages with two workers, started again whenever they are not running."""

    def __init__(self, command: list[str], run: str) -> None:
        self._command = [*command, run, "2"]
        self._run, self._said = run, Path(f"{run}.log")
        self._process: subprocess.Popen[bytes] | None = None

    def until(self, parts: int) -> bool:
        """Waits until so many parts are written and a worker lives; False: all was done before that."""
        while True:
            process = self._started()
            while process.poll() is None:
                if written(self._run) >= parts and self.workers():
                    return True
                time.sleep(0.001)
            self._process = None
            if process.returncode == 0:
                return False
            two_on_a_part = process.returncode == OutsideError.exit_code
            assert two_on_a_part, self._said.read_text()[-3000:]

    def workers(self) -> list[int]:
        return children(self._started().pid)

    def kill(self, victim: str, chance: random.Random) -> bool:
        """Whether there was one to kill: none is between two stages. Waits until nobody is left who should not be."""
        workers = self.workers()
        if not workers:
            return False
        if victim in ("worker", "both"):
            os.kill(chance.choice(workers), signal.SIGKILL)
        if victim == "worker":
            return True
        ending = signal.SIGTERM if victim == "terminated" else signal.SIGKILL
        process, self._process = self._started(), None
        process.send_signal(ending)
        assert process.wait(timeout=GRACE_SECONDS) == -ending
        until(lambda: not any(alive(worker) for worker in workers), seconds=GRACE_SECONDS)
        return True

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            with self._said.open("wb") as said:
                self._process = subprocess.Popen(self._command, stdout=said, stderr=said)
        return self._process


def written(run: str) -> int:
    """Parts of the round that stand."""
    return sum(1 for _ in Path(run).glob("round-01/*/*-0*.jsonl"))


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Any, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def contents(run: str) -> dict[str, bytes]:
    """Every file of the round by its path; of manifests, what names neither the run's place nor the code's version: it
    may be edited meanwhile."""
    found = [path for path in Path(run, "round-01").rglob("*") if path.is_file()]
    files = {path.relative_to(run).as_posix(): path for path in found if not path.name.startswith(UNDONE)}
    return {
        name: json.dumps({**json.loads(path.read_text()), "uri": "", "inputs": "", "code_version": ""}).encode()
        if path.name == manifest.MANIFEST
        else path.read_bytes()
        for name, path in files.items()
    }


def test_stages_ended_at_random_moments_end_with_the_same_bytes(
    command: list[str], undisturbed: str, tmp_path: Path
) -> None:
    chance = random.Random(0)
    victims = ["worker", "terminated", "parent", "both", "worker"]
    last = written(undisturbed)
    moments = sorted(chance.sample(range(last - 2), len(victims)))
    killed = str(tmp_path / "run")
    stages = Stages(command, killed)
    ended = []
    for parts, victim in zip(moments, victims, strict=True):
        while stages.until(parts):
            time.sleep(chance.uniform(0, 0.03))
            if stages.kill(victim, chance):
                ended.append(victim)
                break
    assert ended[:4] == victims[:4]  # on a busy machine all may be done before the last moment
    assert not stages.until(last + 1)  # a restart completes
    assert contents(killed) == contents(undisturbed)
    for stage in STAGES:
        assert manifest.find(layout.round_output(killed, 1, stage)) is not None
