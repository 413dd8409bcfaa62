"""What a TrainJob's pods are called, run as and mount is what the manifests hold."""

from __future__ import annotations

from isr_dpo.cluster.train_job import Pods, train_job
from tests.manifests.kustomized import built, of_kind


def test_the_nodes_of_a_train_job_are_who_the_manifests_know() -> None:
    image = "registry.example.com/train@sha256:" + "0" * 64
    asked = Pods(image=image, nodes=2, gpus=8, deadline_minutes=60, queue="isr-dpo", cache_claim="isr-dpo-cache")
    job = train_job("isr-dpo-train-01", asked, [], ranks=8, run_id="r")
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = node["template"]["spec"]["template"]
    assert (
        template["metadata"]["labels"].items()
        >= {"isr-dpo/step": "train", "app.kubernetes.io/part-of": "isr-dpo"}.items()
    )
    assert template["spec"]["serviceAccountName"] in of_kind(built("prod"), "ServiceAccount")
    assert template["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] in of_kind(
        built("prod"), "PersistentVolumeClaim"
    )
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] in of_kind(built("prod"), "LocalQueue")
