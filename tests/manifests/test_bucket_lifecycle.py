"""What the bucket forgets by itself: never what a run keeps. `isr-dpo gc` thins runs out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isr_dpo import layout
from isr_dpo.stores import s3
from tests.manifests.kustomized import ROOT, built, of_kind

RULES: list[dict[str, Any]] = json.loads((ROOT / "bucket" / "lifecycle.json").read_text())["Rules"]
RUN = "s3://example/runs/a"


def ends(key: str) -> list[str]:
    """The rules that remove an object by its age."""
    return [
        rule["ID"]
        for rule in RULES
        if key.startswith(rule["Filter"]["Prefix"]) and {"Days", "Date"} & rule.get("Expiration", {}).keys()
    ]


def test_nothing_that_a_run_keeps_ends_by_age() -> None:
    kept = [
        layout.run_file(RUN),
        layout.dataset(RUN),
        layout.frames(RUN),
        layout.policy(RUN, 9),
        layout.masters(RUN, 9),
        layout.answers(RUN, 9),
        layout.graded(RUN, 9, "caption", "dev"),
        layout.report(RUN),
        *(layout.round_output(RUN, 1, name) for name in ("responses", "contexts", "preferences", "training")),
    ]
    for uri in [*kept, "s3://example/data/videos/a.mp4", "s3://example/models/m", "s3://example/mlflow/1/a"]:
        assert not ends(f"{uri.removeprefix('s3://example/')}/file"), uri


def test_what_nobody_comes_back_for_ends() -> None:
    assert ends("tmp/a") == ["scratch"]
    assert ends("kfp/artifacts/isr-dpo/a") == ["kfp-artifacts"]
    (uploads,) = (rule for rule in RULES if "AbortIncompleteMultipartUpload" in rule)
    assert uploads["Filter"]["Prefix"] == ""
    assert all(rule["Status"] == "Enabled" for rule in RULES)


def test_mlflow_keeps_its_artifacts_where_nothing_ends() -> None:
    (mlflow,) = of_kind(built("prod"), "Deployment")["isr-dpo-mlflow"]["spec"]["template"]["spec"]["containers"]
    (destination,) = (a for a in mlflow["args"] if a.startswith("--artifacts-destination="))
    assert not ends(destination.partition("s3://$(BUCKET)/")[2] + "/1/artifacts/a")


@pytest.mark.parametrize("run_uri", ["moto", "ceph"], indirect=True)
def test_an_s3_server_takes_the_rules(run_uri: str) -> None:
    """Through boto3, which knows all fields of them, as `aws s3api put-bucket-lifecycle-configuration` does."""
    bucket = run_uri.removeprefix("s3://").partition("/")[0]
    client = s3.client()
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": RULES})
    standing = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert {rule["ID"] for rule in standing} == {rule["ID"] for rule in RULES}
