"""What pods may do: to the API server, to their node, to each other's secrets."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.manifests.kustomized import ALL, ROOT, Object, built, containers, of_kind, pods

KEY = re.compile("KEY|SECRET|PASSWORD|TOKEN|CREDENTIAL", re.IGNORECASE)


def rights(objects: list[Object], account: str) -> set[tuple[str, str, str, str]]:
    """(API group, resource, name or * for any, verb) of a service account."""
    roles = of_kind(objects, "Role")
    return {
        (group, resource, name, verb)
        for binding in of_kind(objects, "RoleBinding").values()
        if any(subject["name"] == account for subject in binding["subjects"])
        for rule in roles[binding["roleRef"]["name"]]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["*"])
        for verb in rule["verbs"]
    }


RUN = {
    ("argoproj.io", "workflowtaskresults", "*", "create"),
    ("argoproj.io", "workflowtaskresults", "*", "patch"),
    ("argoproj.io", "workflowtasksets", "*", "list"),
    ("argoproj.io", "workflowtasksets", "*", "watch"),
    ("argoproj.io", "workflowtasksets/status", "*", "patch"),
    ("", "configmaps", "kfp-launcher", "get"),
    ("", "secrets", "mlpipeline-minio-artifact", "get"),
    ("", "serviceaccounts", "isr-dpo-run", "get"),
    ("", "serviceaccounts", "isr-dpo-train", "get"),
    ("", "persistentvolumeclaims", "isr-dpo-cache", "get"),
    ("", "resourcequotas", "isr-dpo", "get"),
    *(("trainer.kubeflow.org", "trainjobs", "*", verb) for verb in ("create", "get", "list", "watch", "delete")),
    ("", "pods", "*", "list"),
    ("", "pods/log", "*", "get"),
}
ROLLOUT = {("apps", "deployments", "isr-dpo-serving", verb) for verb in ("get", "patch")}


@pytest.mark.parametrize("name", ALL)
def test_only_runs_and_the_rollout_have_rights_and_only_these(name: str) -> None:
    objects = built(name)
    queue = {("kueue.x-k8s.io", "localqueues", "isr-dpo", "get")} if of_kind(objects, "LocalQueue") else set()
    for account in of_kind(objects, "ServiceAccount"):
        expected = {"isr-dpo-run": RUN | queue, "isr-dpo-serving-rollout": ROLLOUT}.get(account, set())
        assert rights(objects, account) == expected, account
    assert not of_kind(objects, "ClusterRole")
    assert not of_kind(objects, "ClusterRoleBinding")


@pytest.mark.parametrize("name", ALL)
def test_bindings_are_for_accounts_of_this_namespace(name: str) -> None:
    objects = built(name)
    for binding in of_kind(objects, "RoleBinding").values():
        for subject in binding["subjects"]:
            assert subject["kind"] == "ServiceAccount"
            assert subject["namespace"] == binding["metadata"]["namespace"]
            assert subject["name"] in of_kind(objects, "ServiceAccount")


@pytest.mark.parametrize("name", ALL)
def test_a_token_is_mounted_only_where_it_is_used(name: str) -> None:
    objects = built(name)
    automatic = {n for n, a in of_kind(objects, "ServiceAccount").items() if a["automountServiceAccountToken"]}
    assert automatic == {"isr-dpo-run"}, "a run's pods report through the API server"
    for where, template in pods(objects):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, where
        assert spec["serviceAccountName"] in of_kind(objects, "ServiceAccount"), where
        with_token = [volume["name"] for volume in spec["volumes"] if "serviceAccountToken" in str(volume)]
        users = [
            container["name"]
            for container in [*spec.get("initContainers", []), *spec["containers"]]
            if {mount["name"] for mount in container["volumeMounts"]} & set(with_token)
        ]
        assert users == (["patch"] if where == "CronJob/isr-dpo-serving-rollout" else []), where


@pytest.mark.parametrize("name", ALL)
def test_containers_are_confined(name: str) -> None:
    for where, container in containers(built(name)):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }, where


@pytest.mark.parametrize("name", ALL)
def test_pods_are_restricted_and_leave_the_node_alone(name: str) -> None:
    for where, template in pods(built(name)):
        spec = template["spec"]
        assert spec["securityContext"] == {
            "fsGroup": 10001,
            "runAsGroup": 10001,
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }, where
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "nodeName"} & spec.keys(), where
        for volume in spec["volumes"]:
            (kind,) = volume.keys() - {"name"}
            assert kind in ("emptyDir", "configMap", "projected", "persistentVolumeClaim"), where
            assert kind != "emptyDir" or volume["emptyDir"]["sizeLimit"], f"{where}: {volume['name']} has no limit"


@pytest.mark.parametrize("name", ALL)
def test_pods_carry_the_labels_that_policies_go_by(name: str) -> None:
    for where, template in pods(built(name)):
        labels = template["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "isr-dpo", where
        assert labels["isr-dpo/step"] == labels["app.kubernetes.io/name"], where


@pytest.mark.parametrize("name", ALL)
def test_each_container_says_what_it_needs_and_may_take(name: str) -> None:
    for where, container in containers(built(name)):
        resources = container["resources"]
        assert resources["requests"].keys() >= {"cpu", "memory"}, where
        assert resources["limits"].keys() >= {"cpu", "memory"}, where


@pytest.mark.parametrize("name", ALL)
def test_memory_volumes_fit_into_the_memory_limit(name: str) -> None:
    for where, template in pods(built(name)):
        memory = sum(
            _bytes(volume["emptyDir"]["sizeLimit"])
            for volume in template["spec"]["volumes"]
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        )
        limit = sum(_bytes(container["resources"]["limits"]["memory"]) for container in template["spec"]["containers"])
        assert memory * 2 < limit, where


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"([0-9]+)([KMGT]i)", quantity).groups()  # type: ignore[union-attr]
    return int(number) << 10 * ("Ki", "Mi", "Gi", "Ti").index(unit) + 10


@pytest.mark.parametrize("name", ALL)
def test_what_serves_is_probed(name: str) -> None:
    for kind in ("Deployment", "StatefulSet"):
        for where, found in of_kind(built(name), kind).items():
            for container in found["spec"]["template"]["spec"]["containers"]:
                assert {"readinessProbe", "livenessProbe"} <= container.keys(), where
                assert container["ports"], where


# Secrets.


@pytest.mark.parametrize("name", ALL)
def test_no_secret_has_a_value_here(name: str) -> None:
    objects = built(name)
    assert not of_kind(objects, "Secret")
    for where, container in containers(objects):
        for variable in container.get("env", []):
            if KEY.search(variable["name"]):
                assert "value" not in variable, f"{where}: {variable['name']}"
                assert "secretKeyRef" in variable["valueFrom"], f"{where}: {variable['name']}"
        whole = [source["secretRef"]["name"] for source in container.get("envFrom", [])]
        assert set(whole) <= {"isr-dpo-s3", "isr-dpo-hub"}, f"{where} takes whatever comes into these later: {whole}"


def templates() -> dict[str, set[str]]:
    """The secrets of secrets/*.yaml.template: name -> keys."""
    found = {}
    for file in (ROOT / "secrets").iterdir():
        tree = yaml.safe_load(file.read_text())
        assert file.name == f"{tree['metadata']['name']}.yaml.template"
        assert set(tree["stringData"].values()) == {""}, "a template has no values"
        found[tree["metadata"]["name"]] = set(tree["stringData"])
    return found


def asked_for(tree: Any) -> set[tuple[str, str]]:
    """(secret, key) that containers read."""
    if isinstance(tree, list):
        return {pair for item in tree for pair in asked_for(item)}
    if not isinstance(tree, dict):
        return set()
    here = {(tree["secretKeyRef"]["name"], tree["secretKeyRef"]["key"])} if "secretKeyRef" in tree else set()
    if "secretRef" in tree:
        here |= {(tree["secretRef"]["name"], key) for key in templates()[tree["secretRef"]["name"]]}
    return here | asked_for(list(tree.values()))


def test_templates_and_external_secrets_are_what_pods_ask_for() -> None:
    pairs = {pair for name in ALL for pair in asked_for(built(name))}
    grader = {("isr-dpo-openai", "OPENAI_API_KEY")}  # placements give it to evaluate
    assert {(secret, key) for secret, keys in templates().items() for key in keys} == pairs | grader
    kept = {
        (external["spec"]["target"]["name"], entry["secretKey"])
        for external in of_kind(built("EKS"), "ExternalSecret").values()
        for entry in external["spec"]["data"]
    }
    unneeded = ("isr-dpo-s3", "isr-dpo-hub")
    assert kept == {pair for pair in pairs | grader if pair[0] not in unneeded}, "a role needs no keys"


def test_no_pod_here_can_read_the_graders_key() -> None:
    for name in ALL:
        assert "isr-dpo-openai" not in {secret for secret, _ in asked_for(built(name))}
        for account in of_kind(built(name), "ServiceAccount"):
            for group, resource, which, _ in rights(built(name), account):
                assert (group, resource) != ("", "secrets") or which == "mlpipeline-minio-artifact"


def test_no_absolute_path_of_a_node_or_a_person_is_anywhere() -> None:
    for file in ROOT.rglob("*"):
        if file.is_file():
            assert not re.search(r"hostPath:|/home/|/Users/|/root/", file.read_text()), file


def test_rights_of_a_namespace_are_enforced_by_pod_security() -> None:
    labels = of_kind(built("prod"), "Namespace")["isr-dpo"]["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"


def test_the_namespaces_own_pods_fit_its_quota() -> None:
    quota = of_kind(built("prod"), "ResourceQuota")["isr-dpo"]["spec"]["hard"]
    gpus = sum(int(c["resources"]["requests"].get("nvidia.com/gpu", 0)) for _, c in containers(built("prod")))
    assert gpus == 1
    assert int(quota["requests.nvidia.com/gpu"]) >= 8 + 2 * gpus, "a node to train on, the champion and its successor"
