"""A TrainJob is what Kubeflow Trainer's own models take, says all that a placement asks for, and holds no secret."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isr_dpo.cluster.train_job import DIGEST, QUEUE, Pods, SecretKey, job_name, train_job
from isr_dpo.errors import RecipeError
from tests.servers.kube_server import _impossible, _unknown

PODS = Pods(
    image="registry.example/isr-dpo-train@sha256:" + "0" * 64,
    nodes=4,
    gpus=8,
    deadline_minutes=240,
    requests={"cpu": "64", "memory": "900Gi"},
    limits={"cpu": "96", "memory": "1000Gi"},
    node_selector={"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
    queue="isr-dpo",
    cache_claim="isr-dpo-cache",
    shm="64Gi",
    env={"MLFLOW_TRACKING_URI": "http://isr-dpo-mlflow:5000"},
    secrets=(SecretKey(env="AWS_SECRET_ACCESS_KEY", secret="isr-dpo-s3", key="secret-key"),),
    labels={"isr-dpo/cost-owner": "video"},
)


def made(pods: Pods = PODS, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"arguments": ['{"index": 1}'], "ranks": 8, "run_id": "run/1 of a team", **changes}
    return train_job("isr-dpo-train-01-0123456789", pods, **given)


def pod(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template: dict[str, Any] = replicated["template"]["spec"]["template"]
    return template


@pytest.mark.parametrize("pods", [PODS, Pods(image="i@sha256:0", nodes=2, gpus=0, deadline_minutes=1)])
def test_kubeflow_trainer_knows_every_field(pods: Pods) -> None:
    assert [*_unknown(made(pods)), *_impossible(made(pods))] == []


def test_the_double_refuses_what_kubeflow_trainer_does_not_know() -> None:
    job = made()
    job["spec"]["podTemplateOverrides"] = []  # of Trainer 2.1
    pod(job)["spec"]["hostNetwork"] = True
    assert _unknown(job) == [
        'unknown field "spec.runtimePatches[0].trainingRuntimeSpec.template.spec.replicatedJobs[0].template.spec'
        '.template.spec.hostNetwork"',
        'unknown field "spec.podTemplateOverrides"',
    ]


def test_every_node_is_placed_as_asked() -> None:
    job = made()
    trainer, template = job["spec"]["trainer"], pod(job)
    assert job["spec"]["runtimeRef"]["name"] == "torch-distributed"
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 8)
    assert trainer["resourcesPerNode"]["requests"] == {"cpu": "64", "memory": "900Gi", "nvidia.com/gpu": "8"}
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "96", "memory": "1000Gi", "nvidia.com/gpu": "8"}
    assert job["metadata"]["labels"][QUEUE] == "isr-dpo"
    assert job["spec"]["activeDeadlineSeconds"] == 240 * 60
    assert template["metadata"]["labels"]["isr-dpo/step"] == "train"  # what the NetworkPolicies know it by
    assert template["metadata"]["labels"]["isr-dpo/cost-owner"] == "video"
    assert template["spec"]["nodeSelector"] == dict(PODS.node_selector)
    assert template["spec"]["tolerations"] == [dict(PODS.tolerations[0])]
    assert template["spec"]["serviceAccountName"] == "isr-dpo-train"
    volumes = {volume.pop("name"): volume for volume in template["spec"]["volumes"]}
    assert volumes["cache"] == {"persistentVolumeClaim": {"claimName": "isr-dpo-cache"}}
    assert volumes["shm"] == {"emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}}


def test_pods_are_restricted() -> None:
    """As the namespace's Pod Security asks; what is written goes to mounts."""
    spec = pod(made())["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/cache", "/tmp", "/dev/shm"}


def test_secrets_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    job = made()
    (secret,) = [given for given in job["spec"]["trainer"]["env"] if given["name"] == "AWS_SECRET_ACCESS_KEY"]
    assert secret["valueFrom"] == {"secretKeyRef": {"name": "isr-dpo-s3", "key": "secret-key"}}
    assert "hunter2" not in json.dumps(job)


def test_a_name_is_the_same_for_each_attempt_and_no_other_step() -> None:
    name = job_name("s3://bucket/run", "id-1", "train", 3)
    assert name == job_name("s3://bucket/run", "id-1", "train", 3)
    others = [("s3://bucket/other", "id-1", 3), ("s3://bucket/run", "id-2", 3), ("s3://bucket/run", "id-1", 4)]
    assert len({name, *(job_name(uri, run_id, "train", index) for uri, run_id, index in others)}) == 4
    assert len(f"{name}-node-0-0-abcde") <= 63


def test_the_digest_changes_with_what_is_asked_for() -> None:
    jobs = [made(), made(arguments=["{}"]), made(Pods.from_json(PODS.to_json().replace('"nodes":4', '"nodes":2')))]
    assert len({job["metadata"]["annotations"][DIGEST] for job in jobs}) == 3
    assert made()["metadata"]["annotations"] == made()["metadata"]["annotations"]


def test_what_the_pods_are_travels_as_json() -> None:
    assert Pods.from_json(PODS.to_json()) == PODS
    with pytest.raises(RecipeError, match=r"nodes: .*greater than or equal to 2; .*gpu_kind: Unexpected"):
        Pods.from_json(json.dumps({"image": "i", "nodes": 1, "gpus": 8, "deadline_minutes": 1, "gpu_kind": "a100"}))
