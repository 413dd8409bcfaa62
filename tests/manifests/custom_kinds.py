"""What the custom resources that we write may hold: the fields we use, each required where its API requires it.

Kubernetes' own schemas do not cover these kinds. Stated from the documentation of Kueue v1beta2, External Secrets v1
and Cilium v2; a field that is not here is refused, so that a misspelt one is found before a cluster drops it.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


TEXT: Schema = {"type": "string", "minLength": 1}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(Ki|Mi|Gi|Ti)?$"}
NAMED = _object({"name": TEXT})

RESOURCE = _object({"name": TEXT, "nominalQuota": QUANTITY})
CLUSTER_QUEUE = _object(
    {
        "namespaceSelector": _object({"matchLabels": LABELS}),
        "resourceGroups": _list(
            _object(
                {
                    "coveredResources": _list(TEXT),
                    "flavors": _list(_object({"name": TEXT, "resources": _list(RESOURCE)})),
                }
            )
        ),
    },
    {
        "queueingStrategy": _one_of("StrictFIFO", "BestEffortFIFO"),
        "preemption": _object(
            {
                "withinClusterQueue": _one_of("Never", "LowerPriority", "LowerOrNewerEqualPriority"),
                "reclaimWithinCohort": _one_of("Never", "LowerPriority", "Any"),
            }
        ),
    },
)
EXTERNAL_SECRET = _object(
    {
        "refreshInterval": {"type": "string", "pattern": r"^[0-9]+(s|m|h)$"},
        "secretStoreRef": _object({"kind": _one_of("SecretStore", "ClusterSecretStore"), "name": TEXT}),
        "target": _object({"name": TEXT, "creationPolicy": _one_of("Owner", "Orphan", "Merge", "None")}),
        "data": _list(_object({"secretKey": TEXT, "remoteRef": _object({"key": TEXT}, {"property": TEXT})})),
    }
)
AWS = _object(
    {
        "service": _one_of("SecretsManager", "ParameterStore"),
        "region": TEXT,
        "auth": _object({"jwt": _object({"serviceAccountRef": NAMED})}),
    }
)
GCP = _object({"projectID": TEXT, "auth": _object({"workloadIdentity": _object({"serviceAccountRef": NAMED})})})
AZURE = _object(
    {"authType": _one_of("WorkloadIdentity"), "vaultUrl": {"type": "string", "pattern": "^https://"}}
    | {"serviceAccountRef": NAMED}
)
SECRET_STORE = _object(
    {
        "provider": {
            "oneOf": [_object({"aws": AWS}), _object({"gcpsm": GCP}), _object({"azurekv": AZURE})],
        }
    }
)
PORTS = _list(_object({"port": {"type": "string", "pattern": "^[0-9]+$"}, "protocol": _one_of("TCP", "UDP", "ANY")}))
CILIUM_POLICY = _object(
    {
        "endpointSelector": _object({"matchLabels": LABELS}),
        "egress": _list(
            {
                "oneOf": [
                    _object(
                        {
                            "toEndpoints": _list(_object({"matchLabels": LABELS})),
                            "toPorts": _list(
                                _object(
                                    {"ports": PORTS, "rules": _object({"dns": _list(_object({"matchPattern": TEXT}))})}
                                )
                            ),
                        }
                    ),
                    _object(
                        {
                            "toFQDNs": _list(_object({"matchName": TEXT})),
                            "toPorts": _list(_object({"ports": PORTS})),
                        }
                    ),
                ]
            }
        ),
    }
)

SPECS: dict[tuple[str, str], Schema | None] = {
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): None,
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): CLUSTER_QUEUE,
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): _object({"clusterQueue": TEXT}),
    ("external-secrets.io/v1", "ExternalSecret"): EXTERNAL_SECRET,
    ("external-secrets.io/v1", "SecretStore"): SECRET_STORE,
    ("cilium.io/v2", "CiliumNetworkPolicy"): CILIUM_POLICY,
}
"""The kinds without a schema, and their specs; None where there is none to write. A kind that is missing here fails
test_builds.py."""


def schema_of(api_version: str, kind: str) -> Schema:
    """Of a whole object. Raises KeyError: a kind that nobody has described."""
    spec = SPECS[api_version, kind]
    head = {
        "apiVersion": {"const": api_version},
        "kind": {"const": kind},
        "metadata": _object({"name": TEXT, "labels": LABELS}, {"namespace": TEXT, "annotations": LABELS}),
    }
    return _object(head if spec is None else {**head, "spec": spec})
