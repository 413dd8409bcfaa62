"""The Job that fetches data: valid for Kubernetes, restricted, and a command that our own parser takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from isr_dpo import cli, errors

FOLDER = Path(__file__).parents[2] / "manifests" / "data-fetch"


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: https://kubernetes.io/docs/tasks/tools")
    built = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (document,) = yaml.safe_load_all(built.stdout)
    assert document["kind"] == "Job"
    return dict(document)


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    return dict(job["spec"]["template"]["spec"])


@pytest.mark.parametrize("version", ["1.29", "1.32", "1.35"])
def test_it_is_valid_by_the_schemas_of_kubernetes(job: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(job, version, strict=True)
    broken = {**job, "spec": {**job["spec"], "backofLimit": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_its_pod_fits_the_restricted_standard(job: dict[str, Any]) -> None:
    pod = pod_of(job)
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(set(volume) <= {"name", "emptyDir"} for volume in pod["volumes"])
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for kind in ("requests", "limits"):
        assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"][kind].keys()
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]


def test_no_secret_stands_in_it(job: dict[str, Any]) -> None:
    (container,) = pod_of(job)["containers"]
    plain = {entry["name"] for entry in container["env"] if "value" in entry}
    assert plain == {"HOME"}
    assert [source["secretRef"]["name"] for source in container["envFrom"]] == ["isr-dpo-s3", "isr-dpo-hub"]


def test_its_image_is_the_cpu_one_by_digest(job: dict[str, Any]) -> None:
    (container,) = pod_of(job)["containers"]
    name, _, digest = container["image"].partition("@")
    assert name.endswith("/isr-dpo-cpu")
    assert digest.startswith("sha256:")


def test_its_command_is_one_of_ours(job: dict[str, Any]) -> None:
    (container,) = pod_of(job)["containers"]
    assert container["command"] == ["isr-dpo"]
    options = cli._parser().parse_args([argument.replace("$(BUCKET)", "bucket") for argument in container["args"]])
    assert options.run.__module__ == "isr_dpo.cli.data"
    assert options.rows == ["s3://bucket/data/sft_dpo_17k.jsonl"]
    assert {"BUCKET", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"} <= {entry["name"] for entry in container["env"]}


def test_only_what_another_attempt_may_help_is_tried_again(job: dict[str, Any]) -> None:
    ignored, failed = job["spec"]["podFailurePolicy"]["rules"]
    assert ignored["onPodConditions"][0]["type"] == "DisruptionTarget"
    final = failed["onExitCodes"]["values"]
    for error in (errors.RecipeError, errors.DataError, errors.CorruptOutput, errors.StoreError):
        assert error.exit_code in final
    assert errors.OutsideError.exit_code not in final
    assert 137 not in final  # killed
    assert job["spec"]["backoffLimit"] > 0
    assert pod_of(job)["restartPolicy"] == "Never"
