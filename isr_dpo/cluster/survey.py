"""What a submission asks of a cluster before anything is started: is there what the run's pods will need?

Nothing is changed. Each question raises what is missing, with the way out, or returns a note on what can only be known
later, or to somebody with more rights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from kubernetes.client.exceptions import ApiException
from kubernetes.utils.quantity import parse_quantity

from isr_dpo.cluster.kube import TIMEOUTS, Cluster
from isr_dpo.errors import ClusterRefused, RecipeError

PATIENCE_SECONDS = 10.0
_OBJECTS: Mapping[str, tuple[str, str]] = {
    "secrets": ("read_namespaced_secret", "manifests/secrets has its template, manifests/README.md the command"),
    "serviceaccounts": ("read_namespaced_service_account", "kubectl apply -k manifests/overlays/..."),
    "persistentvolumeclaims": (
        "read_namespaced_persistent_volume_claim",
        "kubectl apply -k manifests/overlays/..., or leave cache_claim out of the placement",
    ),
}


def check_there(cluster: Cluster, resource: str, name: str) -> str | None:
    """An account or a claim."""
    return _noted(lambda: _read(cluster, resource, name) and None)


def check_secret(cluster: Cluster, name: str, keys: Collection[str]) -> str | None:
    """Is the Secret there with these keys, and none of them empty? Values are not looked at."""

    def look() -> None:
        held = _read(cluster, "secrets", name).data or {}
        if lacking := sorted(key for key in keys if not held.get(key)):
            raise RecipeError(
                f"secret {name} in namespace {cluster.namespace} has no {', '.join(lacking)}: it holds "
                f"{', '.join(sorted(held)) or 'nothing'}; {_OBJECTS['secrets'][1]}"
            )

    return _noted(look)


def check_nodes(
    cluster: Cluster, selector: Mapping[str, str], *, resource: str, count: int, scales_from_zero: bool
) -> str | None:
    """Is there a node with these labels and so many GPUs, or something that makes one when a pod waits for it?"""
    labels = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))

    def look() -> str | None:
        found = _ask(
            cluster, "list", "nodes", lambda: cluster.core.list_node(label_selector=labels, _request_timeout=TIMEOUTS)
        ).items
        most = max((parse_quantity(node.status.allocatable.get(resource, "0")) for node in found), default=0)
        if most >= count:
            return None
        if any(_makes(pool, selector) for pool in _karpenter_pools(cluster)):
            return f"no node with {labels} yet: Karpenter makes it when the first pod waits"
        if scales_from_zero:
            return f"no node with {labels} and {count} {resource} yet: the placement says that its pool grows from zero"
        seen = f"such nodes have {most} at most" if found else "no node has these labels"
        raise RecipeError(
            f"no place for a pod with {count} {resource} on {labels}: {seen}, and no Karpenter NodePool makes any. Add "
            "a node pool, mend the placement's gpus and spot, or say scales_from_zero there if a pool may stand at zero"
        )

    return _noted(look)


def check_quota(cluster: Cluster, wanted: Mapping[str, float], *, who: str) -> str | None:
    """Do the namespace's quotas ever let in `wanted` (`requests.cpu`: 8.0, ...), and do they now?"""

    def look() -> str | None:
        later = []
        for quota in _ask(
            cluster,
            "list",
            "resourcequotas",
            lambda: cluster.core.list_namespaced_resource_quota(cluster.namespace, _request_timeout=TIMEOUTS),
        ).items:
            hard, used = quota.status.hard or quota.spec.hard or {}, quota.status.used or {}
            for name, amount in wanted.items():
                if name not in hard:
                    continue
                if amount > float(parse_quantity(hard[name])):
                    raise RecipeError(
                        f"quota {quota.metadata.name} allows {hard[name]} of {name} in namespace {cluster.namespace}, "
                        f"{who} needs {amount:g}: raise it, or give the step less in the placement"
                    )
                if amount > float(parse_quantity(hard[name]) - parse_quantity(used.get(name, "0"))):
                    later.append(f"{name} ({used[name]} of {hard[name]} used)")
        return f"{who} waits until the quota has room: {', '.join(later)}" if later else None

    return _noted(look)


def check_service(cluster: Cluster, name: str, namespace: str) -> str | None:
    """Does a service inside the cluster, which nobody outside can call, have a pod that is ready?"""

    def look() -> None:
        slices = _ask(
            cluster,
            "list",
            "endpointslices.discovery.k8s.io",
            lambda: cluster.objects.list_namespaced_custom_object(
                "discovery.k8s.io",
                "v1",
                namespace,
                "endpointslices",
                label_selector=f"kubernetes.io/service-name={name}",
                _request_timeout=TIMEOUTS,
            ),
        )
        points = [point for each in slices["items"] for point in each.get("endpoints") or []]
        if not any((point.get("conditions") or {}).get("ready") for point in points):
            raise RecipeError(
                f"service {name} in namespace {namespace} has no pod that is ready: "
                f"kubectl -n {namespace} rollout status deployment/{name}"
            )

    return _noted(look)


def _read(cluster: Cluster, resource: str, name: str) -> Any:
    method, way_out = _OBJECTS[resource]
    try:
        return _ask(
            cluster,
            "get",
            resource,
            lambda: getattr(cluster.core, method)(name, cluster.namespace, _request_timeout=TIMEOUTS),
        )
    except ApiException as error:
        if error.status != 404:
            raise
        raise RecipeError(
            f"{resource.removesuffix('s')} {name} is not in namespace {cluster.namespace}: {way_out}"
        ) from error


def _karpenter_pools(cluster: Cluster) -> list[Any]:
    try:
        found = _ask(
            cluster,
            "list",
            "nodepools.karpenter.sh",
            lambda: cluster.objects.list_cluster_custom_object(
                "karpenter.sh", "v1", "nodepools", _request_timeout=TIMEOUTS
            ),
        )
    except ApiException as error:
        if error.status != 404:
            raise
        return []
    except ClusterRefused:
        return []
    return list(found["items"])


def _makes(pool: Mapping[str, Any], selector: Mapping[str, str]) -> bool:
    """Whether a NodePool's own labels and requirements can give all of `selector`."""
    template = pool["spec"]["template"]
    labels = template.get("metadata", {}).get("labels", {})
    return all(
        labels.get(key) == value or _allowed(template["spec"].get("requirements", []), key, value)
        for key, value in selector.items()
    )


def _allowed(requirements: list[Mapping[str, Any]], key: str, value: str) -> bool:
    """A well-known label that no requirement speaks of is open."""
    of_key = [each for each in requirements if each["key"] == key]
    if not of_key:
        return key.startswith(("karpenter.k8s.aws/", "node.kubernetes.io/instance-type"))
    return all(value in _values(each) if each["operator"] == "In" else value not in _values(each) for each in of_key)


def _values(requirement: Mapping[str, Any]) -> Iterator[str]:
    yield from requirement.get("values", ())


def _ask(cluster: Cluster, verb: str, resource: str, request: Callable[[], Any]) -> Any:
    return cluster.ask(verb, resource, request, patience_seconds=PATIENCE_SECONDS)


def _noted(look: Callable[[], str | None]) -> str | None:
    """What one may not look at is no finding: others may, and the run's own pods need not."""
    try:
        return look()
    except ClusterRefused as error:
        return f"not looked at: {error}"
