"""The table of where tasks run: what is refused, and by which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from isr_dpo import config
from isr_dpo.errors import RecipeError
from isr_dpo.estimate import read_placement
from isr_dpo.steps import STEPS
from pipelines import placement, recipe_files

PACKAGED = sorted(path.stem for path in placement.FOLDER.glob("*.yaml"))
CLOUDS = ["aks", "eks", "gke"]


def tree(name: str = "gke") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((placement.FOLDER / f"{name}.yaml").read_text())
    return found


def refusal(changed: dict[str, Any], folder: Path) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(RecipeError) as raised:
        placement.load(str(path))
    return str(raised.value)


def test_local_and_three_clouds_are_packaged() -> None:
    assert PACKAGED == ["aks", "eks", "gke", "local"]


def test_every_step_has_a_class() -> None:
    assert placement.STEP_CLASSES.keys() == {*STEPS, "train-launch"}


@pytest.mark.parametrize("name", PACKAGED)
def test_only_evaluate_has_the_graders_key(name: str) -> None:
    found = placement.load(name)
    assert [step for step in found.steps if "OPENAI_API_KEY" in found.keys(found.steps[step])] == ["evaluate"]


@pytest.mark.parametrize("name", CLOUDS)
def test_images_go_by_digest(name: str) -> None:
    for image in placement.load(name).images.values():
        assert "@sha256:" in image


NODES = {
    "gke": (
        {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb", "cloud.google.com/gke-spot": "true"},
        {("nvidia.com/gpu", "Equal", "present"), ("cloud.google.com/gke-spot", "Equal", "true")},
    ),
    "eks": (
        {"node.kubernetes.io/instance-type": "p4de.24xlarge", "karpenter.sh/capacity-type": "spot"},
        {("nvidia.com/gpu", "Exists", None)},
    ),
    "aks": (
        {
            "node.kubernetes.io/instance-type": "Standard_ND96amsr_A100_v4",
            "kubernetes.azure.com/scalesetpriority": "spot",
        },
        {("sku", "Equal", "gpu"), ("kubernetes.azure.com/scalesetpriority", "Equal", "spot")},
    ),
}
"""Of GPU pods, by the documents of the three clouds."""


@pytest.mark.parametrize("name", CLOUDS)
def test_gpu_pods_go_to_the_clouds_gpu_nodes(name: str) -> None:
    found = placement.load(name)
    nodes = found.nodes_of(found.steps["train"], gpu=True)
    selector, taints = NODES[name]
    assert nodes.node_selector == selector
    assert {(each.key, each.operator, each.value) for each in nodes.tolerations} == taints
    assert found.nodes_of(found.steps["report"], gpu=False) == placement.Nodes()


@pytest.mark.parametrize("name", PACKAGED)
def test_an_estimate_reads_the_same_gpus(name: str) -> None:
    found, seen = placement.load(name), read_placement(placement.FOLDER / f"{name}.yaml")
    for step, settings in found.steps.items():
        place = seen.place(step)
        assert (place and (place.kind, place.count)) == (settings.gpu and (settings.gpu.kind, settings.gpu.count))


def test_a_name_that_is_no_placement_is_answered_with_the_packaged_ones() -> None:
    with pytest.raises(RecipeError, match=r"'gcp'.*aks, eks, gke, local"):
        placement.load("gcp")


def test_an_unknown_step_is_named(tmp_path: Path) -> None:
    changed = tree()
    changed["steps"]["trian"] = changed["steps"].pop("train")
    assert "unknown step 'trian'; steps are preflight" in refusal(changed, tmp_path)


def test_a_missing_step_is_named(tmp_path: Path) -> None:
    changed = tree()
    del changed["steps"]["judge"]
    assert "judge missing" in refusal(changed, tmp_path)


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ((), "image"),
        (("steps", "train"), "gpus"),
        (("steps", "train", "limits"), "gpu"),
        (("gpus", "A100-80G"), "taint"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_accepted_ones(
    where: tuple[str, ...], key: str, tmp_path: Path
) -> None:
    changed = yaml.safe_load(yaml.dump(tree(), Dumper=Whole))
    section = changed
    for part in where:
        section = section[part]
    section[key] = "x"
    said = refusal(changed, tmp_path)
    assert f"unknown key {key!r}; accepted here: " in said
    assert ".".join(where) in said
    assert len(said.splitlines()) == 1


class Whole(yaml.SafeDumper):
    """Without anchors, so that a change in one step is none in another."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.mark.parametrize(
    "image", ["registry.example.com/isr-dpo/cpu:1.0", "registry.example.com/isr-dpo/cpu", "cpu@sha256:12"]
)
def test_an_image_that_can_change_is_refused(image: str, tmp_path: Path) -> None:
    changed = tree()
    changed["images"]["cpu"] = image
    said = refusal(changed, tmp_path)
    assert f"images.cpu = {image!r}" in said
    assert "by digest" in said


def test_a_secrets_value_is_refused_where_a_setting_stands(tmp_path: Path) -> None:
    changed = tree()
    changed["env"]["AWS_SECRET_ACCESS_KEY"] = "abc"
    said = refusal(changed, tmp_path)
    assert "env.AWS_SECRET_ACCESS_KEY: a secret is named" in said
    assert "abc" not in said


def test_the_graders_key_goes_to_no_other_step(tmp_path: Path) -> None:
    changed = yaml.safe_load(yaml.dump(tree(), Dumper=Whole))
    changed["steps"]["report"]["secrets"] = {"isr-dpo-openai": ["OPENAI_API_KEY"]}
    assert "steps.report.secrets: OPENAI_API_KEY is evaluate's alone" in refusal(changed, tmp_path)


@pytest.mark.parametrize(
    ("step", "settings", "said"),
    [
        ("train", {"requests": {"cpu": 97, "memory": "800Gi"}}, "requests.cpu (97) is more than limits.cpu (96)"),
        ("train", {"shm": "1000Gi"}, "shm (1000Gi) counts as memory, and limits.memory is 1000Gi"),
        ("train", {"gpu": {"kind": "H100", "count": 8}}, "'H100' is none of gpus (A100-80G)"),
        ("train", {"gpu": {"kind": "A100-80G", "count": 0}}, "steps.train.gpu.count = 0"),
        ("judge", {"nodes": 2}, "steps.judge.nodes = 2: only train"),
        ("train", {"minutes": 0}, "steps.train.minutes = 0"),
        ("train", {"limits": {"cpu": "96 cores", "memory": "1Ti"}}, "steps.train.limits.cpu = '96 cores'"),
    ],
)
def test_an_impossible_value_is_named(step: str, settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    changed = yaml.safe_load(yaml.dump(tree(), Dumper=Whole))
    changed["steps"][step] |= settings
    assert said in refusal(changed, tmp_path)


def test_quantities_are_kubernetes() -> None:
    assert [placement.amount(text) for text in ("500m", "2", "1.5Gi", "1M")] == [0.5, 2, 1.5 * 2**30, 1e6]


def test_a_recipe_with_a_local_database_is_tracked_by_the_clusters_mlflow() -> None:
    place, recipe = placement.load("gke"), recipe_files.load("smoke")
    assert placement.fitted(recipe, place).tracking.uri == "http://isr-dpo-mlflow.isr-dpo:5000"
    named = config.parse(recipe.canonical(), changes=["tracking.uri=http://other:5000"])
    assert placement.fitted(named, place) == named


def test_a_served_model_needs_a_key_in_the_step_that_asks_it(tmp_path: Path) -> None:
    place = placement.load("gke")
    served = recipe_files.load(
        "benchmarks", changes=["model.start=null", "engine.kind=openai", "engine.model=m", "evaluate.grader=rules"]
    )
    with pytest.raises(
        RecipeError, match=r"engine.kind is openai, but placement gke gives answer no key: steps.answer"
    ):
        placement.fitted(served, place)
    changed = yaml.safe_load(yaml.dump(tree(), Dumper=Whole))
    changed["steps"]["answer"]["secrets"] = {"isr-dpo-openai": ["OPENAI_API_KEY"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(changed))
    placement.fitted(served, placement.load(str(tmp_path / "mine.yaml")))
