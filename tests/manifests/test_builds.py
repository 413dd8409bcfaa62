"""Every overlay and every set of components builds, and the API server would know each object."""

from __future__ import annotations

import copy
import functools
import json
from collections import Counter
from typing import Any

import jsonschema
import pytest
import yaml

from isr_dpo.cli import _parser
from isr_dpo.cli.serve import ANNOTATION
from tests.manifests.custom_kinds import SPECS, schema_of
from tests.manifests.kustomized import ALL, COMBINATIONS, ROOT, SETTINGS, built, containers, of_kind

kubernetes_validate = pytest.importorskip("kubernetes_validate")
VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest Kubernetes that knows all fields, and the newest whose schemas are at hand."""


def check(found: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError, and KeyError for a kind that neither Kubernetes nor custom_kinds describes."""
    _check(json.dumps(found, sort_keys=True))


@functools.cache
def _check(text: str) -> None:
    """Most objects are the same in many sets."""
    found = json.loads(text)
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            jsonschema.validate(found, schema_of(found["apiVersion"], found["kind"]))
        except kubernetes_validate.ValidationError as error:
            raise jsonschema.ValidationError(f"{version}: {error}") from error


@pytest.mark.parametrize("name", ALL)
def test_each_object_fits_its_schema(name: str) -> None:
    for found in built(name):
        try:
            check(found)
        except jsonschema.ValidationError as error:
            pytest.fail(f"{found['kind']} {found['metadata']['name']}: {error.message}")


def test_what_no_schema_knows_is_refused() -> None:
    deployment = copy.deepcopy(of_kind(built("prod"), "Deployment")["isr-dpo-mlflow"])
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    queue = copy.deepcopy(of_kind(built("prod"), "LocalQueue")["isr-dpo"])
    queue["spec"]["clusterqueue"] = "isr-dpo"
    for wrong in (deployment, queue):
        with pytest.raises(jsonschema.ValidationError):
            check(wrong)
    with pytest.raises(KeyError):
        check({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a"}})


def test_each_described_kind_is_in_some_set() -> None:
    seen = {(found["apiVersion"], found["kind"]) for name in ALL for found in built(name)}
    assert set(SPECS) <= seen


def test_each_part_is_in_some_set() -> None:
    """So that nothing lies there untested."""
    parts = {part for combination in COMBINATIONS.values() for part in combination}
    there = {
        file.parent.relative_to(ROOT).as_posix()
        for file in ROOT.rglob("kustomization.yaml")
        if "overlays" not in file.parts
    }
    assert there - parts <= {"components/settings", "components/external-secrets/secrets"}


@pytest.mark.parametrize("name", ALL)
def test_names_and_labels_are_consistent(name: str) -> None:
    objects = built(name)
    names = Counter((found["kind"], found["metadata"]["name"]) for found in objects)
    assert max(names.values()) == 1
    for found in objects:
        metadata, where = found["metadata"], f"{found['kind']} {found['metadata']['name']}"
        assert metadata["name"] == "isr-dpo" or metadata["name"].startswith("isr-dpo-"), where
        assert metadata["labels"]["app.kubernetes.io/name"], where
        part_of = "kubeflow-profile" if found["kind"] == "Namespace" else "isr-dpo"
        assert metadata["labels"]["app.kubernetes.io/part-of"] == part_of, where


CLUSTER_WIDE = {"Namespace", "ClusterQueue", "ResourceFlavor"}


@pytest.mark.parametrize("name", ALL)
def test_all_lies_in_one_namespace(name: str) -> None:
    namespaces = {f["metadata"].get("namespace") for f in built(name) if f["kind"] not in CLUSTER_WIDE}
    assert len(namespaces) == 1
    assert None not in namespaces


def test_components_ask_for_settings_that_the_overlay_has() -> None:
    """What a container reads from the settings, unless it is optional, and what is put in place when it is built."""
    for name in ("dev", "prod"):
        settings = of_kind(built(name), "ConfigMap")["isr-dpo-settings"]["data"]
        assert set(_read(built(name))) <= set(settings)
    assert set(SETTINGS) >= {key for name in ALL for key in _read(built(name))}


def _read(tree: Any) -> list[str]:
    if isinstance(tree, list):
        return [key for item in tree for key in _read(item)]
    if not isinstance(tree, dict):
        return []
    if tree.get("name") == "isr-dpo-settings" and not tree.get("optional"):
        return [tree["key"]] if "key" in tree else [item["key"] for item in tree.get("items", [])]
    return _read(list(tree.values()))


@pytest.mark.parametrize("name", ["dev", "prod", "data job"])
def test_images_are_named_by_digest(name: str) -> None:
    for where, container in containers(built(name)):
        if name == "data job" and not where.startswith("Job/"):
            continue
        repository, _, digest = container["image"].partition("@sha256:")
        assert len(digest) == 64, f"{where}: {container['image']}"
        assert ":" not in repository.rpartition("/")[2], "a tag beside a digest means nothing"


def test_images_are_named_in_overlays_alone() -> None:
    """Elsewhere a name stands for one: no registry, no tag."""
    for name in COMBINATIONS.keys() - {"data job"}:  # is applied by itself
        for where, container in containers(built(name)):
            assert not set(container["image"]) & set("/:@"), where


def test_the_readme_tells_of_each_setting_and_component() -> None:
    text = (ROOT / "README.md").read_text()
    for key in SETTINGS:
        assert f"`{key}`" in text, key
    for folder in (ROOT / "components").iterdir():
        assert folder.name in text.partition("## Components")[2], folder.name


def test_the_rollout_writes_the_annotation_that_pods_read() -> None:
    serving = of_kind(built("prod"), "Deployment")["isr-dpo-serving"]["spec"]["template"]
    (fetch,) = serving["spec"]["initContainers"]
    (policy,) = (variable for variable in fetch["env"] if variable["name"] == "POLICY")
    assert policy["valueFrom"] == {"fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION}']"}}
    assert "annotations" not in serving["metadata"], "applying the manifests again must not change what is served"
    rollout = of_kind(built("prod"), "CronJob")["isr-dpo-serving-rollout"]["spec"]["jobTemplate"]["spec"]["template"]
    (ask,), (patch,) = rollout["spec"]["initContainers"], rollout["spec"]["containers"]
    assert ask["args"][0] == fetch["args"][0], "the same alias"
    assert f"--patch-file={ask['args'][1]}" in patch["args"]
    assert "deployment/isr-dpo-serving" in patch["args"]


@pytest.mark.parametrize("name", ["isr-dpo-serving", "isr-dpo-serving-rollout"])
def test_the_command_line_has_what_serving_calls(name: str) -> None:
    for where, container in containers(built("prod")):
        if name in where.split("/") and container["command" if "command" in container else "args"][0] == "isr-dpo":
            parsed = _parser().parse_args([*container["command"][1:], *container["args"]])
            assert callable(parsed.run)
            return
    pytest.fail(f"{name} calls isr-dpo nowhere")


def test_the_served_model_is_one_that_a_recipe_registers() -> None:
    served = of_kind(built("prod"), "ConfigMap")["isr-dpo-settings"]["data"]["MODEL_NAME"]
    recipes = (ROOT.parent / "pipelines" / "recipes").glob("*.yaml")
    assert served in {(yaml.safe_load(file.read_text()).get("model") or {}).get("registered_name") for file in recipes}


def test_pods_run_as_the_user_of_our_images() -> None:
    users = {str(c["securityContext"]["runAsUser"]) for name in ALL for _, c in containers(built(name))}
    for file in (ROOT.parent / "images").glob("*/Dockerfile"):
        lines = [line.split()[1] for line in file.read_text().splitlines() if line.startswith("USER ")]
        assert {line.partition(":")[0] for line in lines} == users, file
