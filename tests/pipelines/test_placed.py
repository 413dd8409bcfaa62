"""Every recipe on every placement, compiled: what each task's pod is given."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import yaml

from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError
from pipelines import package, placement, recipe_files
from pipelines.placement import STEP_CLASSES, Placement
from tests.pipelines.test_placement import CLOUDS, PACKAGED

RECIPES = sorted(path.stem for path in recipe_files.FOLDER.glob("*.yaml"))
GPU_STEPS = {"generate", "retrospect", "judge", "prefer", "answer", "train"}
HALF_A_WORKFLOW = 1.5 * 2**20 / 2


class Task(NamedTuple):
    """An executor of the compiled pipeline."""

    step: str
    container: dict[str, Any]
    pod: dict[str, Any]
    spec: dict[str, Any]

    @property
    def env(self) -> dict[str, str]:
        return {each["name"]: each["value"] for each in self.container["env"]}


def compiled(recipe: Recipe, place: Placement, **options: Any) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "package.yaml"
        package.write(placement.fitted(recipe, place), path, place, **options)
        return path.read_text()


@functools.cache
def packaged(recipe: str, place: str) -> str:
    return compiled(recipe_files.load(recipe), placement.load(place))


def tasks(text: str) -> Iterator[Task]:
    spec, platform = yaml.safe_load_all(text)
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    calls = [*spec["root"]["dag"]["tasks"].values()]
    for component in spec["components"].values():
        calls += component.get("dag", {}).get("tasks", {}).values()
    for call in calls:
        component = spec["components"][call["componentRef"]["name"]]
        if "executorLabel" in component:
            label = component["executorLabel"]
            container = spec["deploymentSpec"]["executors"][label]["container"]
            step = re.sub(r"^exec-|(-\d+)$", "", label)
            yield Task(step, container, pods[label], call)


combinations = pytest.mark.parametrize(("recipe", "place"), [(r, p) for r in RECIPES for p in PACKAGED])


@combinations
def test_a_task_runs_in_its_image_as_our_user(recipe: str, place: str) -> None:
    found = placement.load(place)
    for task in tasks(packaged(recipe, place)):
        image = found.images[found.steps[task.step].image]
        assert task.container["image"] == task.env["ISR_DPO_IMAGE"] == image
        assert task.pod["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        assert task.pod["imagePullPolicy"] == "IfNotPresent"
        assert task.env["ISR_DPO_PLACEMENT"] == place


@combinations
def test_a_task_may_write_to_the_cache_and_to_tmp_and_shares_memory_within_its_limit(recipe: str, place: str) -> None:
    for task in tasks(packaged(recipe, place)):
        mounts = {each["mountPath"]: each for each in task.pod["emptyDirMounts"]}
        assert [(each["constant"], each["mountPath"]) for each in task.pod["pvcMount"]] == [("isr-dpo-cache", "/cache")]
        assert "medium" not in mounts["/tmp"]
        assert "/dev/shm" in mounts or task.step not in GPU_STEPS
        if "/dev/shm" in mounts:
            assert mounts["/dev/shm"]["medium"] == "Memory"
            size = placement.amount(mounts["/dev/shm"]["sizeLimit"])
            assert size < placement.amount(task.container["resources"]["resourceMemoryLimit"])


@combinations
def test_a_task_has_requests_and_limits_and_the_gpus_its_recipe_uses(recipe: str, place: str) -> None:
    found, on_cpu = placement.load(place), recipe_files.load(recipe).model.device == "cpu"
    for task in tasks(packaged(recipe, place)):
        resources, step = task.container["resources"], found.steps[task.step]
        size = found.without_gpu if step.gpu and on_cpu else step
        assert resources["resourceCpuRequest"] == size.requests.cpu
        assert resources["resourceCpuLimit"] == size.limits.cpu
        assert resources["resourceMemoryRequest"] == size.requests.memory
        assert resources["resourceMemoryLimit"] == size.limits.memory
        given = resources.get("accelerator", {})
        wanted = task.step in GPU_STEPS and place in CLOUDS and not on_cpu
        assert (given.get("resourceType"), given.get("resourceCount")) == (
            ("nvidia.com/gpu", "8") if wanted else (None, None)
        )
        selector = task.pod.get("nodeSelector", {}).get("labels", {})
        assert ("spot" in str(selector)) == (task.step in GPU_STEPS and place in CLOUDS)
        taints = [each["key"] for each in task.pod.get("tolerations", [])]
        assert bool({"nvidia.com/gpu", "sku"} & set(taints)) == wanted


@combinations
def test_only_evaluate_has_the_graders_key_and_no_value_of_any_secret_is_written(recipe: str, place: str) -> None:
    text = packaged(recipe, place)
    for task in tasks(text):
        given = {s["secretName"]: [k["envVar"] for k in s["keyToEnv"]] for s in task.pod.get("secretAsEnv", [])}
        s3 = {} if place == "eks" else {"isr-dpo-s3": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]}
        grader = {"isr-dpo-openai": ["OPENAI_API_KEY"]} if task.step == "evaluate" else {}
        assert given == {**s3, **grader}
        assert not [name for name in task.env if re.search("KEY|SECRET|TOKEN", name)]


@pytest.mark.parametrize("place", PACKAGED)
@pytest.mark.parametrize(("grader", "needed"), [("rules", False), ("openai", True)])
def test_a_pod_starts_without_the_graders_key_where_no_grader_is_asked(place: str, grader: str, needed: bool) -> None:
    """What the preflight of a submission then does not look for either."""
    recipe = recipe_files.load("smoke", changes=[f"evaluate.grader={grader}"])
    for task in tasks(compiled(recipe, placement.load(place))):
        spare = {secret["secretName"]: secret["optional"] for secret in task.pod.get("secretAsEnv", [])}
        if task.step == "evaluate":
            assert spare.pop("isr-dpo-openai") is not needed
        assert not any(spare.values())


@combinations
def test_a_tasks_pod_is_labelled_by_class_run_owner_and_queue(recipe: str, place: str) -> None:
    found = placement.load(place)
    for task in tasks(packaged(recipe, place)):
        queue = {"kueue.x-k8s.io/queue-name": found.queue} if found.queue else {}
        assert task.pod["podMetadata"]["labels"] == {
            **found.labels,
            **queue,
            "app.kubernetes.io/part-of": "isr-dpo",
            "isr-dpo/run": recipe,
            "isr-dpo/step": STEP_CLASSES[task.step],
        }


@combinations
def test_a_retry_is_still_possible_when_a_pod_is_lost_at_its_deadline(recipe: str, place: str) -> None:
    found = placement.load(place)
    for task in tasks(packaged(recipe, place)):
        deadline, retry = int(task.pod["activeDeadlineSeconds"]), task.spec["retryPolicy"]
        assert deadline >= 2 * 60 * found.steps[task.step].minutes
        assert retry["maxRetryCount"] == found.retries
        assert int(retry["backoffMaxDuration"].removesuffix("s")) > retry["maxRetryCount"] * deadline
        assert not task.spec["cachingOptions"].get("enableCache", False)


@combinations
def test_no_absolute_path_of_a_machine_is_in_a_package(recipe: str, place: str) -> None:
    text = packaged(recipe, place)
    roots = {f"/{part}/" for path in (Path.cwd(), Path.home()) for part in path.parts[1:2]} | {"/home/", "/Users/"}
    assert not [root for root in roots - {"/tmp/"} if root in text]
    assert str(Path.cwd()) not in text


@pytest.mark.parametrize("place", PACKAGED)
@pytest.mark.parametrize("fused", ["true", "false"])
def test_nine_iterations_on_several_pods_take_less_than_half_a_workflow(place: str, fused: str) -> None:
    changes = ["iterations=9", "engine.pods=8", f"engine.fused={fused}"]
    text = compiled(recipe_files.load("qwen2.5-vl-7b", changes=changes), placement.load(place))
    assert len(text.encode()) < HALF_A_WORKFLOW


def test_the_tasks_of_a_share_are_placed_as_the_whole(tmp_path: Path) -> None:
    recipe = recipe_files.load("qwen2.5-vl-7b", changes=["engine.pods=3", "iterations=2"])
    found = [task for task in tasks(compiled(recipe, placement.load("gke"))) if task.step == "prefer"]
    assert len(found) == 2
    for task in found:
        assert task.container["resources"]["accelerator"]["resourceCount"] == "8"
        assert task.pod["podMetadata"]["labels"]["isr-dpo/step"] == "engine"


def test_answers_of_a_served_model_take_no_gpu() -> None:
    files = "{" + ", ".join(f"{name}: {name}.jsonl" for name in recipe_files.load("benchmarks").data.sets) + "}"
    recipe = recipe_files.load("benchmarks", changes=["model.start=null", f"answer.predictions={files}"])
    (answer,) = [task for task in tasks(compiled(recipe, placement.load("gke"))) if task.step == "answer"]
    assert "accelerator" not in answer.container["resources"]
    assert answer.container["resources"]["resourceCpuRequest"] == placement.load("gke").without_gpu.requests.cpu


def test_grades_bought_in_batches_have_the_batchs_time() -> None:
    recipe = recipe_files.load("benchmarks", changes=["evaluate.batch=true", "evaluate.batch_hours=24"])
    (evaluate,) = [task for task in tasks(compiled(recipe, placement.load("gke"))) if task.step == "evaluate"]
    assert int(evaluate.pod["activeDeadlineSeconds"]) > 24 * 3600


def test_objects_for_kubectl_hold_the_same_pipeline() -> None:
    recipe = recipe_files.load("smoke")
    text = compiled(recipe, placement.load("gke"), as_objects=True, namespace="team")
    pipeline, version = yaml.safe_load_all(text)
    spec, platform = yaml.safe_load_all(packaged("smoke", "gke"))
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert {each["apiVersion"] for each in (pipeline, version)} == {"pipelines.kubeflow.org/v2beta1"}
    assert {each["metadata"]["namespace"] for each in (pipeline, version)} == {"team"}
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "isr-dpo-smoke"
    assert version["spec"]["pipelineSpec"] == spec
    assert version["spec"]["platformSpec"] == platform
    assert len(text.encode()) < HALF_A_WORKFLOW


@pytest.mark.parametrize("name", RECIPES)
def test_objects_have_names_that_kubernetes_takes(name: str) -> None:
    changed = recipe_files.load(name, changes=[f"name={name}_B"])
    for made in yaml.safe_load_all(compiled(changed, placement.load("gke"), as_objects=True)):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", made["metadata"]["name"])


def test_a_recipe_over_kfps_parameter_limit_is_refused(tmp_path: Path) -> None:
    sets = "{" + ", ".join(f"s{n}: s3://bucket/{'x' * 60}/s{n}.qa.jsonl" for n in range(120)) + "}"
    recipe = recipe_files.load("benchmarks", changes=[f"data.sets={sets}"])
    with pytest.raises(RecipeError, match=r"KFP takes 10000; most of them are in its section data"):
        package.write(recipe, tmp_path / "p.yaml", placement.load("local"))
    assert not (tmp_path / "p.yaml").exists()
