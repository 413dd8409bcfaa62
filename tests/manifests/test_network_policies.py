"""The table of base/network-policies.yaml: who reaches whom, and that each row is needed for what it says."""

from __future__ import annotations

import pytest
import yaml

from tests.manifests.kustomized import ROOT, built, of_kind
from tests.manifests.network_model import Address, Peer, Pod, may_connect

OURS = {"app.kubernetes.io/part-of": "isr-dpo"}
RUN = {"pipelines.kubeflow.org/v2_component": "true"}
GRADER, PUBLIC = Address("104.18.7.192"), Address("151.101.1.69")
METADATA_SERVICE, PRIVATE = Address("169.254.169.254"), Address("10.99.1.2")


def actors(namespace: str) -> dict[str, Pod]:
    """The pods of our namespace, by the labels that placements and manifests give them."""
    ours = {
        "stray": {},
        "driver": RUN,
        **{f"step {name}": {**RUN, **OURS, "isr-dpo/step": name} for name in ("cpu", "evaluate", "train", "engine")},
        "step train-launch": {**RUN, **OURS, "isr-dpo/step": "train-launch"},
        "TrainJob": {**OURS, "isr-dpo/step": "train"},
        "client": {**OURS, "isr-dpo/client-of": "serving"},
    }
    for service in ("data-fetch", "mlflow", "postgres", "serving", "serving-rollout", "egress-proxy"):
        ours[service] = {**OURS, "isr-dpo/step": service}
    return {name: Pod(namespace, labels) for name, labels in ours.items()}


def targets(namespace: str) -> dict[str, tuple[Peer, int, str]]:
    """What there is to reach: who, port, protocol."""
    pods = actors(namespace)
    return {
        "DNS": (Pod("kube-system", {"k8s-app": "kube-dns"}), 53, "UDP"),
        "node's DNS": (Address("169.254.20.10"), 53, "UDP"),
        "KFP's API": (Pod("kubeflow", {"app": "ml-pipeline"}), 8887, "TCP"),
        "KFP's metadata": (Pod("kubeflow", {"component": "metadata-grpc-server"}), 8080, "TCP"),
        "KFP's store": (Pod("kubeflow", {"app": "seaweedfs"}), 8333, "TCP"),
        "API server": (Address("10.0.0.4"), 443, "TCP"),
        "bucket": (Address("10.0.16.7"), 443, "TCP"),
        "outside database": (Address("10.0.32.5"), 5432, "TCP"),
        "MLflow": (pods["mlflow"], 5000, "TCP"),
        "database": (pods["postgres"], 5432, "TCP"),
        "champion": (pods["serving"], 8000, "TCP"),
        "proxy": (pods["egress-proxy"], 3128, "TCP"),
        "TrainJob": (pods["TrainJob"], 29500, "TCP"),
        "grader": (GRADER, 443, "TCP"),
        # Nobody may reach these.
        "web": (PUBLIC, 80, "TCP"),
        "metadata service": (METADATA_SERVICE, 80, "TCP"),
        "metadata service, 443": (METADATA_SERVICE, 443, "TCP"),
        "private address": (PRIVATE, 443, "TCP"),
        "other kubeflow pod": (Pod("kubeflow", {"app": "mysql"}), 3306, "TCP"),
        "other namespace": (Pod("default", {"app": "web"}), 443, "TCP"),
        "stray": (pods["stray"], 8080, "TCP"),
        "evaluate": (pods["step evaluate"], 8080, "TCP"),
    }


def reachable(name: str, namespace: str, without: str | None = None) -> dict[str, set[str]]:
    policies = list(of_kind(built(name), "NetworkPolicy").values())
    left = [policy for policy in policies if policy["metadata"]["name"] != f"isr-dpo-{without}"]
    assert without is None or len(left) == len(policies) - 1, f"no row {without}"
    return {
        source: {target for target, where in targets(namespace).items() if may_connect(left, pod, *where)}
        for source, pod in actors(namespace).items()
    }


DNS = {"DNS", "node's DNS"}
RUN_PODS = DNS | {"KFP's API", "KFP's metadata", "KFP's store", "API server", "bucket"}
OWN_NAMESPACE = {
    "stray": DNS,
    "driver": RUN_PODS,
    "step cpu": RUN_PODS | {"MLflow"},
    "step evaluate": RUN_PODS | {"MLflow", "grader"},
    "step train-launch": RUN_PODS | {"MLflow"},
    "step train": RUN_PODS | {"MLflow", "TrainJob"},
    "step engine": RUN_PODS | {"MLflow"},
    "TrainJob": DNS | {"bucket", "MLflow", "TrainJob"},
    "client": DNS | {"champion"},
    "data-fetch": DNS | {"bucket", "grader"},  # any public address on 443
    "mlflow": DNS | {"bucket", "outside database", "database"},
    "postgres": DNS,
    "serving": DNS | {"bucket", "MLflow"},
    "serving-rollout": DNS | {"MLflow", "API server"},
    "egress-proxy": DNS,
}


def test_in_a_namespace_of_ours_these_reach_these_and_nothing_else() -> None:
    assert reachable("own namespace", "isr-dpo") == OWN_NAMESPACE
    assert reachable("prod", "isr-dpo") == OWN_NAMESPACE


def test_through_the_proxy_evaluate_alone_reaches_the_grader() -> None:
    through_proxy = RUN_PODS | {"MLflow", "proxy"}
    expected = OWN_NAMESPACE | {"step evaluate": through_proxy, "egress-proxy": DNS | {"grader"}}
    assert reachable("own namespace, proxy", "isr-dpo") == expected


def test_with_cilium_no_policy_without_a_name_opens_the_outside() -> None:
    expected = OWN_NAMESPACE | {"step evaluate": RUN_PODS | {"MLflow"}}
    assert reachable("own namespace, Cilium", "isr-dpo") == expected


@pytest.mark.parametrize("name", ["KFP's namespace", "dev"])
def test_in_kfps_namespace_only_pods_of_ours_are_bound(name: str) -> None:
    reached = reachable(name, "kubeflow")
    everything = targets("kubeflow").keys() - {"MLflow", "database", "champion", "proxy", "TrainJob", "evaluate"}
    for unlabelled in ("stray", "driver"):
        assert reached[unlabelled] == everything, "another's pod may do what it could before, but enter ours"
    same = OWN_NAMESPACE | {"mlflow": DNS | {"bucket", "database"}}
    same = {source: reach for source, reach in same.items() if source not in ("stray", "driver")}
    if name == "dev":  # its API server has another address
        same = {source: reach - {"API server"} for source, reach in same.items()}
    assert {source: reach for source, reach in reached.items() if source in same} == same


@pytest.mark.parametrize("name", ["own namespace", "own namespace, proxy", "prod"])
def test_what_is_near_an_allowed_target_is_not_allowed(name: str) -> None:
    """Another port, another protocol, another pod beside it; among the nodes of a TrainJob every port is allowed."""
    policies = list(of_kind(built(name), "NetworkPolicy").values())
    for target, (peer, port, protocol) in targets("isr-dpo").items():
        near: list[tuple[Peer, int, str]] = [(peer, port + 100, protocol), (peer, port, "SCTP")]
        if isinstance(peer, Pod):
            near.append((Pod(peer.namespace, {"app": "other"}), port, protocol))
        for source, pod in actors("isr-dpo").items():
            if target != "TrainJob":
                assert not [where for where in near if may_connect(policies, pod, *where)], f"{source}, near {target}"


ROWS: dict[str, tuple[str, str]] = {
    "dns": ("step engine", "DNS"),
    "run-to-kfp": ("driver", "KFP's metadata"),
    "run-to-kube-api": ("step train-launch", "API server"),
    "run-to-s3": ("step engine", "bucket"),
    "services-to-s3": ("TrainJob", "bucket"),
    "clients-to-mlflow": ("step cpu", "MLflow"),
    "mlflow-from-clients": ("step cpu", "MLflow"),
    "mlflow-to-database": ("mlflow", "outside database"),
    "mlflow-to-postgres": ("mlflow", "database"),
    "postgres-from-mlflow": ("mlflow", "database"),
    "evaluate-to-grader": ("step evaluate", "grader"),
    "data-fetch-to-sources": ("data-fetch", "grader"),
    "train-peers": ("TrainJob", "TrainJob"),
    "clients-to-serving": ("client", "champion"),
    "serving-from-clients": ("client", "champion"),
    "rollout-to-kube-api": ("serving-rollout", "API server"),
}
"""What each row alone makes possible."""


@pytest.mark.parametrize("row", ROWS)
def test_each_row_opens_what_no_other_does(row: str) -> None:
    source, target = ROWS[row]
    assert target in reachable("own namespace", "isr-dpo")[source]
    assert target not in reachable("own namespace", "isr-dpo", without=row)[source]


def test_the_denying_row_closes_pods_that_no_other_row_names() -> None:
    policies = of_kind(built("own namespace"), "NetworkPolicy")
    into = (Pod("default"), actors("isr-dpo")["stray"], 8080)
    out = (actors("isr-dpo")["stray"], PUBLIC, 80)
    assert not may_connect(list(policies.values()), *into)
    assert not may_connect([policies["isr-dpo-default-deny"]], *out)
    del policies["isr-dpo-default-deny"]
    assert may_connect(list(policies.values()), *into)


def test_the_table_names_each_policy_and_each_has_its_test() -> None:
    text = (ROOT / "base" / "network-policies.yaml").read_text()
    lines = text[: text.index("apiVersion:")].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# row "))
    rows = [line.split()[1] for line in lines[start + 1 : lines.index("#", start + 1)]]
    policies = of_kind(built("own namespace"), "NetworkPolicy")
    assert [f"isr-dpo-{row}" for row in rows] == _in_file_order(text)
    assert set(_in_file_order(text)) == set(policies)
    assert {"default-deny", *ROWS} == set(rows)


def _in_file_order(text: str) -> list[str]:
    return [policy["metadata"]["name"] for policy in yaml.safe_load_all(text)]


def test_clients_from_a_labelled_namespace_alone_reach_the_champion() -> None:
    policies = list(of_kind(built("own namespace"), "NetworkPolicy").values())
    champion = (actors("isr-dpo")["serving"], 8000)
    assert may_connect(policies, Pod("apps", {}, {"isr-dpo/client-of": "serving"}), *champion)
    assert not may_connect(policies, Pod("apps", {"isr-dpo/client-of": "serving"}), *champion)
    assert not may_connect(policies, Pod("apps", {}, {"isr-dpo/client-of": "serving"}), champion[0], 22)


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_an_overlay_leaves_no_address_that_stands_for_nothing(name: str) -> None:
    blocks = [
        peer["ipBlock"]["cidr"]
        for policy in of_kind(built(name), "NetworkPolicy").values()
        for rule in policy["spec"].get("egress", [])
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]
    assert blocks
    assert not [block for block in blocks if block.startswith("192.0.2.")]
