"""Several nodes train what one does: two processes with a disk each, on loopback, as pods of a TrainJob are started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isr_dpo import layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.manifest import Manifest
from isr_dpo.steps import run_step
from isr_dpo.steps.inputs import inputs_of
from isr_dpo.steps.train_order import Order
from tests.loop import recipe_for, run_loop
from tests.servers.ports import two_free_ports

ROOT = Path(__file__).parents[2]
TRAIN = {"learning_rate": 1e-3, "batch_pairs": 2, "micro_batch_tokens": 256, "seed_epochs": 4, "checkpoint_minutes": 0}
STEPS = 8


@pytest.fixture(scope="module")
def recipe(model: Path, world: Path, tracking: str) -> Recipe:
    return recipe_for(model, world, tracking, train={**TRAIN, "ranks": 1})


@pytest.fixture(scope="module")
def prepared(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its dataset, not to be changed."""
    run = tmp_path_factory.mktemp("prepared") / "run"
    run_loop(recipe, str(run), until=("prepare", 0))
    return run


@pytest.fixture(scope="module")
def expected(recipe: Recipe, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """What two ranks of one node make of it."""
    folder = tmp_path_factory.mktemp("expected")
    run = copy_of(prepared, folder / "run")
    both = recipe.model_copy(update={"train": recipe.train.model_copy(update={"ranks": 2})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("ISR_DPO_CACHE", str(folder / "cache"))
        return run_step("train", both, inputs_of("train", both, run, 0), run, 0).manifest


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> str:
    return copy_of(prepared, tmp_path / "run")


def copy_of(prepared: Path, target: Path) -> str:
    return str(shutil.copytree(prepared, target))


class Nodes:
    """The processes of a training job on two nodes, as Kubeflow Trainer starts and restarts them."""

    def __init__(self, recipe: Recipe, run: str, folder: Path, *, run_id: str = "job") -> None:
        self.order = Order.of(recipe, inputs_of("train", recipe, run, 0), run, run_id, 0)
        self._folder = folder
        self._port = two_free_ports()
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, rank: int) -> None:
        place = {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port)}
        own = {"OMP_NUM_THREADS": "1", "ISR_DPO_CACHE": str(self._folder / f"disk-{rank}")}
        command = [sys.executable, "-m", "isr_dpo.steps.train_node", self.order.to_json()]
        self.processes[rank] = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **{f"PET_{name}": value for name, value in place.items()}, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> list[tuple[int, str]]:
        """Exit code and what was printed, by node."""
        printed = [self.processes[rank].communicate(timeout=480)[0] for rank in sorted(self.processes)]
        return [(self.processes[rank].returncode, text) for rank, text in enumerate(printed)]


@contextlib.contextmanager
def two_nodes(recipe: Recipe, run: str, folder: Path) -> Iterator[Nodes]:
    nodes = Nodes(recipe, run, folder)
    try:
        nodes.start(1)
        nodes.start(0)
        yield nodes
    finally:
        for process in nodes.processes.values():
            process.kill()
            process.wait()


def checkpoints(run: str) -> list[str]:
    return sorted(path.parent.name for path in Path(run, "round-00/training/checkpoints").glob("*/manifest.json"))


def test_two_nodes_make_the_policy_of_two_ranks_on_one_although_one_is_lost_meanwhile(
    recipe: Recipe, run: str, expected: Manifest, tmp_path: Path
) -> None:
    with two_nodes(recipe, run, tmp_path) as nodes:
        while not checkpoints(run):
            assert all(p.poll() is None for p in nodes.processes.values()), nodes.end()
            time.sleep(0.01)
        nodes.processes[1].send_signal(signal.SIGKILL)
        before = time.monotonic()
        code, printed = nodes.end()[0]
        assert time.monotonic() - before < 240
        assert code == 8, printed
        assert "node 1 of 2 is gone" in printed
        assert manifest.find(layout.policy(run, 1)) is None
        shutil.rmtree(tmp_path / "disk-1")  # another machine takes its place
        nodes.start(1)
        nodes.start(0)
        (led, printed), (followed, beside) = nodes.end()
        assert (led, followed) == (0, 0), printed + beside
        assert "going on from" in beside
        made = manifest.find(layout.policy(run, 1))
        assert made is not None
        assert made.digest == expected.digest
        log = Path(run, "round-00", "training", "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == list(range(1, STEPS + 1))
        assert not list((tmp_path / "disk-1").glob("train/*/masters"))
        nodes.start(1)  # as a pod that comes when all is done
        assert nodes.processes[1].wait(timeout=240) == 0


def test_what_is_wrong_on_another_node_is_what_the_step_reports(recipe: Recipe, run: str, tmp_path: Path) -> None:
    (tmp_path / "disk-1").write_text("no folder")
    with two_nodes(recipe, run, tmp_path) as nodes:
        ends = nodes.end()
    assert [code for code, _ in ends] == [3, 3], ends
    failed = json.loads(Path(run, "failed.json").read_text())
    assert {key: failed[key] for key in ("step", "run_id", "error")} == {
        "step": "train",
        "run_id": "job",
        "error": "DataError",
    }
    assert "disk-1" in failed["message"]


def test_told_to_stop_a_node_ends_at_once(recipe: Recipe, run: str, tmp_path: Path) -> None:
    nodes = Nodes(recipe, run, tmp_path)
    nodes.start(0)
    while not Path(run, "run.lock").exists() or not Path(run, "round-00").exists():
        assert nodes.processes[0].poll() is None, nodes.end()
        time.sleep(0.05)
    nodes.processes[0].send_signal(signal.SIGTERM)
    assert nodes.processes[0].wait(timeout=15) == 128 + signal.SIGTERM


def test_inputs_that_changed_meanwhile_are_refused(recipe: Recipe, run: str, tmp_path: Path) -> None:
    nodes = Nodes(recipe, run, tmp_path)
    nodes.order = Order(nodes.order.recipe, run, "job", 0, {**nodes.order.inputs, "dataset": "0" * 64})
    nodes.start(0)
    ((code, printed),) = nodes.end()
    assert code == 4
    assert "dataset changed after this training job was made" in printed
