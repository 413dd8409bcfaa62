"""What `kubectl kustomize` makes of the manifests: of overlays, and of sets of parts as an overlay would take them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2] / "manifests"
OVERLAYS = sorted(folder.name for folder in (ROOT / "overlays").iterdir())
SETTINGS = {
    "AWS_ACCOUNT": "111122223333",
    "AWS_REGION": "eu-central-1",
    "AZURE_CLIENT_ID": "00000000-0000-0000-0000-000000000001",
    "AZURE_TENANT_ID": "00000000-0000-0000-0000-000000000002",
    "AZURE_VAULT_URL": "https://example.vault.azure.net",
    "BUCKET": "example",
    "DATABASE_CIDR": "10.0.32.0/28",
    "GCP_ACCOUNT": "isr-dpo@example.iam.gserviceaccount.com",
    "GCP_PROJECT": "example",
    "GRADER_HOST": "grader.example.com",
    "KUBE_API_CIDR": "10.0.0.0/28",
    "MLFLOW_TRACKING_URI": "http://isr-dpo-mlflow:5000",
    "MODEL_NAME": "m",
    "PGHOST": "database.example.com",
    "PGSSLMODE": "require",
    "S3_CIDR": "10.0.16.0/24",
}
OWN = ("namespace", "base", "serving")
COMBINATIONS = {
    "own namespace": OWN,
    "own namespace, static keys": (*OWN, "components/static-keys"),
    "own namespace, database inside": (*OWN, "components/postgres"),
    "own namespace, queueing": (*OWN, "components/kueue"),
    "own namespace, Cilium": (*OWN, "components/cilium-fqdn"),
    "own namespace, proxy": (*OWN, "components/egress-proxy"),
    "EKS": (*OWN, "components/eks", "components/external-secrets/aws", "components/irsa"),
    "GKE": (
        *OWN,
        "components/gke",
        "components/external-secrets/gcp",
        "components/gke-workload-identity",
        "components/static-keys",
    ),
    "AKS": (
        *OWN,
        "components/aks",
        "components/external-secrets/azure",
        "components/aks-workload-identity",
        "components/static-keys",
    ),
    "data job": ("namespace", "base", "data-fetch"),
    "KFP's namespace": ("base", "components/kfp-standalone", "components/postgres", "components/static-keys"),
    "KFP's namespace, proxy": ("base", "components/kfp-standalone", "components/egress-proxy"),
    "KFP's namespace, Cilium": ("base", "serving", "components/kfp-standalone", "components/cilium-fqdn"),
}
"""Parts by what they make; components/settings comes last in each."""
ALL = [*OVERLAYS, *COMBINATIONS]

Object = dict[str, Any]


@functools.cache
def built(name: str) -> list[Object]:
    """The objects of an overlay or a combination, in order; shared by all tests, which leave them as they are."""
    text = _kustomize(ROOT / "overlays" / name) if name in OVERLAYS else combined(*COMBINATIONS[name])
    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    """By name."""
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Whatever makes pods: `kind/name` and its pod template."""
    for found in objects:
        spec = found.get("spec") or {}
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if isinstance(template, dict) and "spec" in template and "containers" in template["spec"]:
            yield f"{found['kind']}/{found['metadata']['name']}", template


def containers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Each container, those that initialise included: `kind/name/container` and itself."""
    for where, template in pods(objects):
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
            yield f"{where}/{container['name']}", container


def combined(*parts: str) -> str:
    """As YAML; the parts as an overlay with all settings would take them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        paths = {part: os.path.relpath(ROOT / part, folder) for part in (*parts, "components/settings")}
        settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "isr-dpo-settings"}, "data": SETTINGS}
        settings["metadata"]["labels"] = {"app.kubernetes.io/name": "settings", "app.kubernetes.io/part-of": "isr-dpo"}
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        tree = {
            "namespace": "isr-dpo" if "namespace" in parts else "kubeflow",
            "resources": ["settings.yaml", *(path for part, path in paths.items() if not _is_component(part))],
            "components": [path for part, path in paths.items() if _is_component(part)],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(tree))
        return _kustomize(folder)


def _is_component(part: str) -> bool:
    return part.startswith("components/")


def _kustomize(folder: Path) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the manifests are not built")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower(), done.stderr
    return done.stdout
