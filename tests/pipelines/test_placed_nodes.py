"""Where a placement gives train several nodes: a task without GPU, and the TrainJob that it creates."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from isr_dpo.cluster.train_job import Pods, train_job
from pipelines import placement, recipe_files
from pipelines.placed import Placed
from pipelines.placement import Placement
from tests.pipelines.test_placed import Task, compiled, tasks
from tests.pipelines.test_placement import CLOUDS
from tests.servers.kube_server import _impossible, _unknown


def over_nodes(name: str, nodes: int = 4) -> Placement:
    found = placement.load(name)
    steps = {**found.steps, "train": found.steps["train"].model_copy(update={"nodes": nodes})}
    return found.model_copy(update={"steps": steps})


@pytest.fixture(scope="module")
def text() -> str:
    return compiled(recipe_files.load("qwen2.5-vl-7b"), over_nodes("gke"))


def of_step(text: str, step: str) -> list[Task]:
    return [task for task in tasks(text) if task.step == step]


def test_every_round_is_trained_by_a_task_without_gpu(text: str) -> None:
    launches = of_step(text, "train-launch")
    assert len(launches) == recipe_files.load("qwen2.5-vl-7b").iterations
    assert of_step(text, "train") == []
    for task in launches:
        assert "accelerator" not in task.container.get("resources", {})
        assert task.pod["podMetadata"]["labels"]["isr-dpo/step"] == "train-launch"


def arguments(text: str) -> list[dict[str, Any]]:
    spec = next(iter(yaml.safe_load_all(text)))
    calls = spec["root"]["dag"]["tasks"].values()
    return [call["inputs"]["parameters"] for call in calls if "pods" in call["inputs"].get("parameters", {})]


def test_what_it_creates_is_what_the_placement_says_of_train(text: str) -> None:
    (given, *_) = arguments(text)
    pods = Pods.from_json(given["pods"]["runtimeValue"]["constant"])
    place = placement.load("gke")
    step = place.steps["train"]
    assert pods.image == place.images["train"]
    assert (pods.nodes, pods.gpus, pods.gpu_resource) == (4, 8, "nvidia.com/gpu")
    assert pods.requests == step.requests.model_dump()
    assert pods.limits == step.limits.model_dump()
    assert pods.node_selector["cloud.google.com/gke-accelerator"] == "nvidia-a100-80gb"
    assert {toleration["key"] for toleration in pods.tolerations} >= {"nvidia.com/gpu"}
    assert (pods.queue, pods.cache_claim, pods.service_account) == ("isr-dpo", "isr-dpo-cache", "isr-dpo-train")
    assert pods.deadline_minutes == step.deadline_minutes
    assert {(s.env, s.secret) for s in pods.secrets} == {
        ("AWS_ACCESS_KEY_ID", "isr-dpo-s3"),
        ("AWS_SECRET_ACCESS_KEY", "isr-dpo-s3"),
    }
    assert pods.env["AWS_DEFAULT_REGION"] == "us-east-1"


@pytest.mark.parametrize("name", CLOUDS)
def test_kubeflow_trainer_takes_it(name: str) -> None:
    pods = Placed(over_nodes(name), recipe_files.load("qwen2.5-vl-7b"), run="qwen").train_pods()
    assert pods is not None
    job = train_job("isr-dpo-train-01-0123456789", pods, ["{}"], ranks=8, run_id="run")
    assert [*_unknown(job), *_impossible(job)] == []


def test_a_recipe_without_gpu_takes_none() -> None:
    pods = Placed(over_nodes("gke"), recipe_files.load("smoke"), run="smoke").train_pods()
    assert pods is not None
    assert pods.gpus == 0
    assert pods.requests == placement.load("gke").without_gpu.requests.model_dump()


def test_one_node_is_a_task_that_trains_itself() -> None:
    assert Placed(placement.load("gke"), recipe_files.load("smoke"), run="smoke").train_pods() is None
