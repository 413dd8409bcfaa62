"""Training on several nodes from where the pipeline stands: a TrainJob that runs what it says, and what comes of it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout, manifest
from isr_dpo.cluster import node_log, watch
from isr_dpo.cluster.train_job import Pods
from isr_dpo.config import Recipe
from isr_dpo.errors import DataError, IsrDpoError, OutsideError
from isr_dpo.steps import StepResult, execute, run_step
from isr_dpo.steps.inputs import inputs_of
from isr_dpo.steps.train_launch import train_launch
from isr_dpo.stores import read_bytes
from isr_dpo.stores.lock import owner
from tests.loop import recipe_for, run_loop
from tests.servers.kube_server import KubeServer
from tests.servers.ports import two_free_ports

ROOT = Path(__file__).parents[2]
PODS = Pods(image="registry.example/isr-dpo-train@sha256:" + "0" * 64, nodes=2, gpus=0, deadline_minutes=60)
RUN_ID = "the-run"


@pytest.fixture(scope="module")
def recipe(model: Path, world: Path, tracking: str) -> Recipe:
    train = {"learning_rate": 1e-3, "batch_pairs": 4, "micro_batch_tokens": 256, "seed_epochs": 1, "zero_stage": 0}
    return recipe_for(model, world, tracking, train={**train, "ranks": 1})


@pytest.fixture(scope="module")
def prepared(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its dataset, not to be changed."""
    run = tmp_path_factory.mktemp("prepared") / "run"
    run_loop(recipe, str(run), until=("prepare", 0))
    return run


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(prepared, tmp_path / "run"))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


@pytest.fixture
def server(pool: ThreadPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    """Gone before the threads of `pool`, which then give up."""
    monkeypatch.setattr(node_log, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watch, "WATCH_SECONDS", 1)
    monkeypatch.setattr(watch, "AWAY_SECONDS", 10.0)
    with KubeServer() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield running


def launch(recipe: Recipe, run: str, index: int = 0) -> StepResult:
    """As the component train_launch does, which holds the run while it waits."""
    work = functools.partial(train_launch, run_id=RUN_ID, pods=PODS)
    inputs = inputs_of("train", recipe, run, index)
    with owner(run, RUN_ID):
        return run_step("train", recipe, inputs, run, index, run_id=RUN_ID, work=work, timed=False)


def launched(pool: ThreadPoolExecutor, recipe: Recipe, run: str, index: int = 0) -> Future[StepResult]:
    return pool.submit(launch, recipe, run, index)


def play(server: KubeServer, folder: Path) -> None:
    """Starts each pod's command as a process, its log as the pod's, and ends the job as they end."""
    trainer = server.job()["spec"]["trainer"]
    assert trainer["command"][0] == "python"
    server.run(nodes=trainer["numNodes"])
    port = two_free_ports()
    processes = [process(trainer, rank, port, folder) for rank in range(trainer["numNodes"])]
    readers = [threading.Thread(target=copy_lines, args=(server, rank, p)) for rank, p in enumerate(processes)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=480)
    codes = [p.wait(timeout=120) for p in processes]
    for rank, code in enumerate(codes):
        server.end_pod(rank, code)
    server.fail() if any(codes) else server.complete()


def process(trainer: dict[str, Any], rank: int, port: int, folder: Path) -> subprocess.Popen[str]:
    place = {"NNODES": trainer["numNodes"], "NODE_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, *trainer["command"][1:], *trainer["args"]],
        cwd=ROOT,
        env={
            **os.environ,
            **{f"PET_{name}": str(value) for name, value in place.items()},
            "OMP_NUM_THREADS": "1",
            "ISR_DPO_CACHE": str(folder / f"disk-{rank}"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def copy_lines(server: KubeServer, rank: int, pod: subprocess.Popen[str]) -> None:
    assert pod.stdout is not None
    for line in pod.stdout:
        server.say(line.rstrip("\n"), node=rank)


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_a_cluster_trains_the_round_and_the_step_has_its_policy(
    server: KubeServer,
    pool: ThreadPoolExecutor,
    recipe: Recipe,
    run_uri: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In S3, where nodes share nothing else; from masters, on the reference of another policy: all that they fetch."""
    caplog.set_level("INFO", logger="isr_dpo")
    sections = {"model": {"dtype": "bfloat16"}, "train": {"reference": "initial"}}
    parts = {name: getattr(recipe, name).model_copy(update=update) for name, update in sections.items()}
    recipe = recipe.model_copy(update=parts)
    run_loop(recipe, run_uri, until=("judge", 1))
    step = launched(pool, recipe, run_uri, 1)
    play(server, tmp_path)
    result = step.result(timeout=120)
    policy = manifest.find(layout.policy(run_uri, 2))
    assert policy is not None
    assert result.manifest == policy
    assert result.metrics["pairs"] > 0
    assert manifest.find(layout.masters(run_uri, 2)) is not None
    assert any("node 0 | " in r.message and "reward accuracy" in r.message for r in caplog.records)
    assert server.jobs == {}
    (attempt,) = json.loads(read_bytes(layout.time(run_uri, "train", 1)))["attempts"]  # of the work, not the waiting
    assert attempt["ended"] == "done"
    asked = len(server.asked)
    assert launch(recipe, run_uri, 1).manifest == policy
    assert len(server.asked) == asked  # what stands complete needs no cluster


def fail_as(run: str, **said: Any) -> None:
    """Node 0 records its failure, as `run_step` does there."""
    tree = {"step": "train", "index": 0, "run_id": RUN_ID, **said}
    Path(run, "failed.json").write_text(json.dumps(tree))


def test_what_stopped_node_0_for_good_ends_the_job_under_its_own_name(
    server: KubeServer, pool: ThreadPoolExecutor, recipe: Recipe, run: str
) -> None:
    step = launched(pool, recipe, run)
    server.wait_for("watch")
    server.run()
    fail_as(run, error="DataError", message="pair s-1 is empty", exit_code=3, retry=False)
    with pytest.raises(DataError, match=r"^pair s-1 is empty$"):  # though Kubernetes would start its pods again
        step.result(timeout=120)
    assert server.jobs == {}
    with pytest.raises(IsrDpoError, match="pair s-1 is empty"):
        launch(recipe, run)  # as a retry of the task does
    assert sum(asked.verb == "create" for asked in server.asked) == 1


def test_what_may_pass_is_left_to_kubernetes_until_it_gives_up(
    server: KubeServer, pool: ThreadPoolExecutor, recipe: Recipe, run: str
) -> None:
    step = launched(pool, recipe, run)
    server.wait_for("watch")
    server.run()
    fail_as(run, error="WorkerDied", message="train: node 1 of 2 is gone", exit_code=8, retry=True)
    time.sleep(2)
    assert server.jobs
    server.fail()
    with pytest.raises(OutsideError, match="node 1 of 2 is gone"):
        step.result(timeout=120)


def test_a_job_that_is_complete_without_a_policy_is_no_success(
    server: KubeServer, pool: ThreadPoolExecutor, recipe: Recipe, run: str
) -> None:
    step = launched(pool, recipe, run)
    server.run()
    server.complete()
    with pytest.raises(OutsideError, match=r"is complete and .*policy-01 is not"):
        step.result(timeout=120)


class Artifact:
    """As much of KFP's as a component's call needs."""

    def __init__(self, path: Path) -> None:
        self.path, self.metadata = str(path), dict[str, Any]()

    def log_metric(self, metric: str, value: float) -> None:
        self.metadata[metric] = value


def component(recipe: Recipe, run: str, folder: Path) -> None:
    inputs = {}
    for name, made in inputs_of("train", recipe, run, 0).items():
        inputs[name] = Artifact(folder / name)
        Path(inputs[name].path).write_text(made.to_json())
    out = Artifact(folder / "out")
    execute("train", recipe.canonical(), run, RUN_ID, 0, inputs, out, out, pods=PODS.to_json())


def test_the_component_names_its_pods_in_json(
    server: KubeServer, recipe: Recipe, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Pods] = []

    def launched_with(recipe: Recipe, inputs: Any, run_uri: str, index: int, *, run_id: str, pods: Pods) -> StepResult:
        given.append(pods)
        assert run_id == RUN_ID
        return StepResult(inputs["policy"], {}, reused=True)

    monkeypatch.setattr(sys.modules["isr_dpo.steps.execute"], "train_launch", launched_with)
    component(recipe, run, tmp_path)
    assert given == [PODS]


def test_the_time_of_a_failed_attempt_is_recorded_by_node_0_alone(
    recipe: Recipe, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> StepResult:
        raise OutsideError("node 1 of 2 is gone")

    def launched_with(recipe: Recipe, inputs: Any, run_uri: str, index: int, *, run_id: str, pods: Pods) -> StepResult:
        return run_step("train", recipe, inputs, run_uri, index, run_id=run_id, work=fails)  # as node 0 does

    monkeypatch.setattr(sys.modules["isr_dpo.steps.execute"], "train_launch", launched_with)
    with pytest.raises(OutsideError, match="node 1 of 2 is gone"):
        component(recipe, run, tmp_path)
    (attempt,) = json.loads(read_bytes(layout.time(run, "train", 0)))["attempts"]
    assert attempt["ended"] == "OutsideError"
