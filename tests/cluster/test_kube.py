"""Which cluster is asked: the pod's own, or the kubeconfig's."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubernetes.config import incluster_config

from isr_dpo.cluster import kube
from isr_dpo.errors import ClusterRefused
from tests.servers.kube_server import NAMESPACE, KubeServer


def test_a_pod_asks_its_own_cluster_as_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"token": "a-pods-token", "ca.crt": "certificate", "namespace": "team-a\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kube, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setattr(kube.client, "ApiClient", lambda settings: settings)  # which would read the certificate
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = kube.open_cluster()
    assert found.namespace == "team-a"
    assert found.api.host == "https://10.0.0.1:443"
    assert found.api.get_api_key_with_prefix("authorization") == "bearer a-pods-token"
    (tmp_path / "token").unlink()
    with pytest.raises(ClusterRefused, match="mount its service account's token"):
        kube.open_cluster()


def test_elsewhere_the_kubeconfig_says_cluster_and_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with KubeServer() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        found = kube.open_cluster()
        assert (found.namespace, found.api.configuration.host) == (NAMESPACE, server.url)
        assert kube.open_cluster("other").namespace == "other"
