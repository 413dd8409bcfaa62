"""A Kubeflow Trainer TrainJob: one training on several nodes, as the object that a cluster takes.

`trainer.kubeflow.org/v1alpha1` of Kubeflow Trainer 2.2 and newer, where `runtimePatches` took the place of
`podTemplateOverrides`. Its runtime `torch-distributed` tells every pod its place among the nodes. Our own entry point
starts torchrun: it has to fetch a node's inputs before, and to say why ranks fell after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from isr_dpo.digests import canonical_digest
from isr_dpo.errors import RecipeError

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RESOURCE = f"{PLURAL}.{GROUP}"
NODE = "node"
"""The job and the container of the runtime that train."""
MANAGER = "isr-dpo"
DIGEST = "isr-dpo/digest"
"""Annotation: of all that was asked for, so that a step knows its own object again."""
QUEUE = "kueue.x-k8s.io/queue-name"
ENTRY = ("python", "-m", "isr_dpo.steps.train_node")
_STRICT = ConfigDict(extra="forbid")
_Quantities = Mapping[str, str]


@dataclass(frozen=True, config=_STRICT)
class SecretKey:
    """An environment variable whose value is a key of a Secret, named and never shown."""

    env: str
    secret: str
    key: str


@dataclass(frozen=True, config=_STRICT)
class Pods:
    """With what, and where, the nodes of a training job run: what a placement says of train. Values are Kubernetes'."""

    image: str
    """Of the step train, by digest."""
    nodes: Annotated[int, Field(ge=2)]
    gpus: Annotated[int, Field(ge=0)]
    """Of a node; a rank each. 0: CPU."""
    deadline_minutes: Annotated[int, Field(ge=1)]
    """Of running, waiting in a queue not counted."""
    requests: _Quantities = field(default_factory=dict)
    """cpu, memory, ephemeral-storage of a node; GPUs come by `gpus`."""
    limits: _Quantities = field(default_factory=dict)
    gpu_resource: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str | int], ...] = ()
    queue: str | None = None
    """A Kueue LocalQueue; none: the pods start at once."""
    service_account: str = "isr-dpo-train"
    runtime: str = "torch-distributed"
    """A ClusterTrainingRuntime."""
    cache_claim: str | None = None
    """The volume of /cache, by claim; none: the node's own disk."""
    shm: str = "16Gi"
    """Of shared memory, which NCCL uses: a part of the memory limit."""
    user: int = 10001
    """Of our images."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretKey, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the object and its pods, beside `isr-dpo/step: train`."""

    def to_json(self) -> str:
        """What the component train_launch takes."""
        return _PODS.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Pods:
        """Raises RecipeError: names the keys that are unknown, missing or impossible."""
        try:
            return _PODS.validate_json(text)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise RecipeError(f"the placement of train on several nodes: {wrong}") from error


_PODS = TypeAdapter(Pods)


def job_name(run_uri: str, run_id: str, step: str, index: int) -> str:
    """The same for every attempt of a run at a step, so that a retried one finds its job again."""
    return f"isr-dpo-{step}-{index:02d}-{canonical_digest([run_uri, run_id, step, index])[:10]}"


def train_job(name: str, pods: Pods, arguments: Sequence[str], *, ranks: int, run_id: str) -> dict[str, Any]:
    """The object. `arguments` go to `isr_dpo.steps.train_node` on every node, which starts `ranks` ranks there."""
    labels = {
        "isr-dpo/run": _label(run_id),
        **pods.labels,
        "app.kubernetes.io/name": "train",
        "app.kubernetes.io/part-of": "isr-dpo",
        "app.kubernetes.io/managed-by": MANAGER,
        "isr-dpo/step": "train",
    }
    spec = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": pods.runtime},
        "trainer": _trainer(pods, arguments, ranks),
        "runtimePatches": [_patch(pods, labels)],
        "activeDeadlineSeconds": 60 * pods.deadline_minutes,
    }
    queue = {QUEUE: pods.queue} if pods.queue else {}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "labels": labels | queue,
            "annotations": {DIGEST: canonical_digest([spec, labels, queue])},
        },
        "spec": spec,
    }


def _trainer(pods: Pods, arguments: Sequence[str], ranks: int) -> dict[str, Any]:
    gpus = {pods.gpu_resource: str(pods.gpus)} if pods.gpus else {}
    secrets = [
        {"name": given.env, "valueFrom": {"secretKeyRef": {"name": given.secret, "key": given.key}}}
        for given in pods.secrets
    ]
    return {
        "image": pods.image,
        "command": list(ENTRY),
        "args": list(arguments),
        "numNodes": pods.nodes,
        "numProcPerNode": ranks,
        "resourcesPerNode": {"requests": {**pods.requests, **gpus}, "limits": {**pods.limits, **gpus}},
        "env": [*({"name": name, "value": value} for name, value in sorted(pods.env.items())), *secrets],
    }


def _patch(pods: Pods, labels: Mapping[str, str]) -> dict[str, Any]:
    """What the runtime's pods get beside the trainer's own: who they are, where they run, what they may write."""
    cache = {"persistentVolumeClaim": {"claimName": pods.cache_claim}} if pods.cache_claim else {"emptyDir": {}}
    spec = {
        "serviceAccountName": pods.service_account,
        "nodeSelector": dict(pods.node_selector),
        "tolerations": [dict(toleration) for toleration in pods.tolerations],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": pods.user,
            "runAsGroup": pods.user,
            "fsGroup": pods.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "cache", **cache},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pods.shm}},
        ],
        "containers": [
            {
                "name": NODE,
                "volumeMounts": [
                    {"name": "cache", "mountPath": "/cache"},
                    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a mount of the pod's own
                    {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the same
                ],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }
    template = {"metadata": {"labels": dict(labels)}, "spec": spec}
    job = {"name": NODE, "template": {"spec": {"template": template}}}
    return {
        "manager": f"{MANAGER}/placement",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
    }


def _label(text: str) -> str:
    """As a label's value may read."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("-._")
