"""A recipe whose data lie in a bucket, a placement, and doubles of the cluster that would run them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from isr_dpo.stores import join, write_bytes
from pipelines import placement
from tests.pipelines.test_placement import Whole
from tests.servers.kfp_server import KfpServer
from tests.servers.kube_objects import CORE, NAMESPACE, KubeObjects

SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
VIDEOS = [f"v{number}" for number in range(4)]


class Scene(NamedTuple):
    """All that a submission meets. `recipe` and `place` are files."""

    kfp: KfpServer
    kube: KubeObjects
    recipe: Path
    place: Path
    run_uri: str

    def command(self, *more: str) -> list[str]:
        return ["submit", str(self.recipe), *self.to(), *more]

    def to(self) -> list[str]:
        """Where to, and on what."""
        return ["--placement", str(self.place), "--run-uri", self.run_uri, "--host", self.kfp.url]

    def change_place(self, **sections: Any) -> None:
        tree = yaml.safe_load(self.place.read_text())
        self.place.write_text(yaml.dump({**tree, **sections}, Dumper=Whole))

    def change_recipe(self, **sections: Any) -> None:
        self.recipe.write_text(json.dumps({**json.loads(self.recipe.read_text()), **sections}))


@contextlib.contextmanager
def scene(bucket_uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Nothing is missing in it."""
    with KfpServer() as kfp, KubeObjects() as kube:
        place = _placement(folder)
        _furnish(kube)
        monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(folder / "kubeconfig")))
        monkeypatch.setenv("HOME", str(folder))
        for name in ("KFP_TOKEN", "KFP_COOKIES", "OPENAI_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        yield Scene(kfp, kube, _recipe(bucket_uri, folder), place, join(bucket_uri, "run"))


def _placement(folder: Path) -> Path:
    tree = yaml.safe_load((placement.FOLDER / "gke.yaml").read_text())
    tree["images"] = {name: f"registry.example.com/{name}@sha256:{'ab' * 32}" for name in tree["images"]}
    path = folder / "mine.yaml"
    path.write_text(yaml.dump(tree, Dumper=Whole))
    return path


def _recipe(bucket_uri: str, folder: Path) -> Path:
    data = join(bucket_uri, "data")
    rows = [{"id": v, "video": v, "prompt": "what?", "chosen": "a", "rejected": "b"} for v in VIDEOS]
    for name in ("train.jsonl", "dev.qa.jsonl"):
        write_bytes(join(data, name), "".join(json.dumps(row) + "\n" for row in rows).encode())
    for video in VIDEOS:
        write_bytes(join(data, f"{video}.mp4"), b"a clip")
    tree = {
        "name": "tiny",
        "iterations": 2,
        "prompts": "world",
        "model": {"start": "builtin:world", "registered_name": "tiny", "dtype": "bfloat16"},
        "data": {"train": join(data, "train.jsonl"), "sets": {"dev": join(data, "dev.qa.jsonl")}},
        "evaluate": {"full_at": [], "grader": "openai"},
        "train": {"zero_stage": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(tree))
    return path


def _furnish(kube: KubeObjects) -> None:
    kube.put("serviceaccounts", "isr-dpo-run")
    kube.put("persistentvolumeclaims", "isr-dpo-cache")
    kube.put("secrets", "isr-dpo-s3", data={"AWS_ACCESS_KEY_ID": "YQ==", "AWS_SECRET_ACCESS_KEY": "YQ=="})
    kube.put("secrets", "isr-dpo-openai", data={"OPENAI_API_KEY": "YQ=="})
    kube.lists["/api/v1/nodes"] = [gpu_node(8)]
    kube.lists[f"{CORE}/resourcequotas"] = [quota({"requests.nvidia.com/gpu": "10", "requests.cpu": "200"})]
    ready = {"metadata": {"labels": {"kubernetes.io/service-name": "isr-dpo-mlflow"}}}
    kube.lists[SLICES] = [{**ready, "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]}]


def gpu_node(gpus: int) -> dict[str, Any]:
    labels = {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb", "cloud.google.com/gke-spot": "true"}
    return {"metadata": {"name": "n", "labels": labels}, "status": {"allocatable": {"nvidia.com/gpu": str(gpus)}}}


def quota(hard: dict[str, str], used: dict[str, str] | None = None) -> dict[str, Any]:
    return {"metadata": {"name": "isr-dpo"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used or {}}}
