"""What placements name is what the manifests hold: classes, accounts, claims, queues, secrets, addresses."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.placement import FOLDER, STEP_CLASSES, Placement, amount, load
from tests.manifests.kustomized import built, of_kind
from tests.manifests.test_least_privilege import templates

PLACEMENTS = sorted(file.stem for file in FOLDER.glob("*.yaml"))


def overlay_of(placement: Placement) -> str:
    """The one whose MLflow it names."""
    return "dev" if placement.tracking_uri and ".kubeflow:" in placement.tracking_uri else "prod"


def test_step_classes_are_what_the_network_rows_go_by() -> None:
    rows = _classes(list(of_kind(built("prod"), "NetworkPolicy").values()))
    services = {"data-fetch", "mlflow", "postgres", "serving", "serving-rollout"}
    assert rows == set(STEP_CLASSES.values()) | services


def _classes(tree: Any) -> set[str]:
    if isinstance(tree, list):
        return {name for item in tree for name in _classes(item)}
    if not isinstance(tree, dict):
        return set()
    here = set(tree["values"]) if tree.get("key") == "isr-dpo/step" else set()
    return here | ({tree["isr-dpo/step"]} if "isr-dpo/step" in tree else set()) | _classes(list(tree.values()))


@pytest.mark.parametrize("name", PLACEMENTS)
def test_what_a_placement_names_is_there(name: str) -> None:
    placement = load(name)
    objects = built(overlay_of(placement))
    assert {placement.service_account, placement.train_service_account} <= of_kind(objects, "ServiceAccount").keys()
    assert placement.cache_claim in of_kind(objects, "PersistentVolumeClaim")
    assert placement.queue is None or placement.queue in of_kind(objects, "LocalQueue")
    settings = of_kind(objects, "ConfigMap")["isr-dpo-settings"]["data"]
    assert placement.tracking_uri == settings["MLFLOW_TRACKING_URI"]
    for step in placement.steps.values():
        for secret, keys in placement.secrets_of(step).items():
            assert set(keys) <= templates()[secret], secret


@pytest.mark.parametrize("name", PLACEMENTS)
def test_each_step_fits_the_quota_and_the_queue(name: str) -> None:
    quota = of_kind(built("prod"), "ResourceQuota")["isr-dpo"]["spec"]["hard"]
    ((flavor,),) = (
        group["flavors"] for group in of_kind(built("prod"), "ClusterQueue")["isr-dpo"]["spec"]["resourceGroups"]
    )
    queue = {resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]}
    for step in load(name).steps.values():
        for resource in ("cpu", "memory"):
            least, most = getattr(step.requests, resource), getattr(step.limits, resource)
            assert amount(least) <= min(amount(quota[f"requests.{resource}"]), amount(queue[resource]))
            assert amount(most) <= amount(quota[f"limits.{resource}"])
        if step.gpu:
            assert step.gpu.count <= min(int(quota["requests.nvidia.com/gpu"]), int(queue["nvidia.com/gpu"]))


def test_no_step_but_evaluate_is_given_the_graders_key() -> None:
    for name in PLACEMENTS:
        placement = load(name)
        given = {step for step, size in placement.steps.items() if "isr-dpo-openai" in placement.secrets_of(size)}
        assert given == {"evaluate"}
