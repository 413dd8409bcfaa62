"""Kubernetes' rules for NetworkPolicies, stated independently: may a connection be opened?

A pod that no policy of a direction selects may do anything in that direction. One that some select may do what at least
one of their rules allows. A connection needs the sender's egress and the receiver's ingress. Policies are of one
namespace and concern its pods; outside addresses have no ingress.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    """Beside the one that Kubernetes itself gives: the name."""

    def all_namespace_labels(self) -> Mapping[str, str]:
        return {"kubernetes.io/metadata.name": self.namespace, **self.namespace_labels}


@dataclass(frozen=True)
class Address:
    """Outside the cluster, or the API server."""

    ip: str


Peer = Pod | Address


def may_connect(policies: Sequence[Policy], source: Pod, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to `target`."""
    leaves = _passes(policies, "Egress", source, target, port, protocol)
    return leaves and (isinstance(target, Address) or _passes(policies, "Ingress", target, source, port, protocol))


def _passes(policies: Sequence[Policy], direction: str, here: Pod, there: Peer, port: int, protocol: str) -> bool:
    mine = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == here.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], here.labels)
    ]
    if not mine:
        return True
    side = {"Egress": "to", "Ingress": "from"}[direction]
    rules = [(policy, rule) for policy in mine for rule in policy["spec"].get(direction.lower(), [])]
    return any(
        _port_matches(rule.get("ports"), port, protocol)
        and (side not in rule or any(_is_peer(peer, there, policy["metadata"]["namespace"]) for peer in rule[side]))
        for policy, rule in rules
    )


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A label selector; the empty one selects all."""
    unknown = selector.keys() - {"matchLabels", "matchExpressions"}
    assert not unknown, unknown
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        _expression_holds(expression, labels) for expression in selector.get("matchExpressions", [])
    )


def _expression_holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", [])
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[expression["operator"]]


def _is_peer(peer: Mapping[str, Any], there: Peer, namespace: str) -> bool:
    if "ipBlock" in peer:
        assert peer.keys() == {"ipBlock"}
        return isinstance(there, Address) and _in_block(peer["ipBlock"], there.ip)
    if isinstance(there, Address):
        return False
    in_namespace = (
        selects(peer["namespaceSelector"], there.all_namespace_labels())
        if "namespaceSelector" in peer
        else there.namespace == namespace
    )
    return in_namespace and selects(peer.get("podSelector", {}), there.labels)


def _in_block(block: Mapping[str, Any], ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    outer, holes = block["cidr"], block.get("except", [])
    return address in ipaddress.ip_network(outer) and not any(address in ipaddress.ip_network(hole) for hole in holes)


def _port_matches(ports: Sequence[Mapping[str, Any]] | None, port: int, protocol: str) -> bool:
    if ports is None:
        return True
    assert all(isinstance(entry["port"], int) and "endPort" not in entry for entry in ports)
    return any(entry["port"] == port and entry.get("protocol", "TCP") == protocol for entry in ports)
