"""Where tasks run: a placement is a table of steps, read from `pipelines/placements/<name>.yaml` or any file like it.

It says images, GPUs, sizes, nodes, secrets by name and expected minutes; a recipe says what is computed. Nothing here
knows KFP: placed.py puts a placement onto tasks.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError
from isr_dpo.mlflow_client import is_database

FOLDER = Path(__file__).parent / "placements"
STEP_CLASSES: Mapping[str, str] = {
    **dict.fromkeys(("preflight", "register", "report"), "cpu"),
    "evaluate": "evaluate",
    "train-launch": "train-launch",
    **dict.fromkeys(("prepare", "train"), "train"),
    **dict.fromkeys(("generate", "retrospect", "judge", "prefer", "answer"), "engine"),
}
"""All steps, each with the class that its pods are labelled by: the network rows of manifests/base go by it."""
NO_DIGEST = "sha256:" + "0" * 64
"""Stands in the packaged placements for the digest of an image of yours. It compiles; nothing with it is submitted."""
DEADLINE_FACTOR = 3
"""A pod may take so many times the expected minutes before it is stopped [O]."""

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|[KMGT]i?)?$")]
LabelValue = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
ImageName = Literal["cpu", "engine", "train"]
_UNITS = {"m": 1e-3, "": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def amount(quantity: str) -> float:
    """What a quantity of Kubernetes' counts: `500m` is 0.5, `1Gi` 2**30."""
    number = quantity.rstrip("mKMGTi")
    return float(number) * _UNITS[quantity[len(number) :]]


class Part(BaseModel):
    """A frozen part of a placement; unknown keys are errors that name the accepted ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, tree: Any) -> Any:
        unknown = [key for key in tree if key not in cls.model_fields] if isinstance(tree, dict) else []
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; accepted here: {', '.join(cls.model_fields)}")
        return tree


class Toleration(Part):
    """Of a node's taint, as Kubernetes writes it."""

    key: str
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"] | None = None


class Nodes(Part):
    """Which nodes pods are let onto."""

    node_selector: Mapping[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


class GpuNodes(Nodes):
    """Nodes with GPUs of one kind."""

    resource: str = "nvidia.com/gpu"
    scales_from_zero: bool = False
    """An autoscaler that Kubernetes cannot be asked about makes such nodes when a pod waits: none need be there."""


class Gpu(Part):
    """Of a pod. `kind` is a key of `gpus`, as data sheets write it: A100-80G."""

    kind: str
    count: Annotated[int, Field(gt=0)]


class Amounts(Part):
    """Of CPU and memory."""

    cpu: Quantity
    memory: Quantity


class Size(Part):
    """What a pod gets. Shared memory is a part of the memory limit."""

    requests: Amounts
    limits: Amounts
    shm: Quantity | None = None

    @model_validator(mode="after")
    def _holds(self) -> Self:
        for name in ("cpu", "memory"):
            least, most = getattr(self.requests, name), getattr(self.limits, name)
            if amount(least) > amount(most):
                raise ValueError(f"requests.{name} ({least}) is more than limits.{name} ({most})")
        if self.shm and amount(self.shm) >= amount(self.limits.memory):
            raise ValueError(f"shm ({self.shm}) counts as memory, and limits.memory is {self.limits.memory}")
        return self


class Step(Nodes, Size):
    """One step's pods."""

    image: ImageName
    minutes: Annotated[int, Field(gt=0)]
    """Expected. The pod's deadline and the time in which an evicted pod is started again follow from it."""
    gpu: Gpu | None = None
    nodes: Annotated[int, Field(gt=0)] = 1
    """Of train: above 1, a step of the class train-launch creates a TrainJob of so many pods."""
    spot: bool = False
    """On nodes that the cloud may take back."""
    secrets: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Of this step alone: Secrets by name, and which of their keys become environment variables of the same names."""

    @property
    def deadline_minutes(self) -> int:
        """After so many minutes on a node a pod is stopped."""
        return DEADLINE_FACTOR * self.minutes


class Placement(Part):
    """Where all steps of a run are done."""

    name: LabelValue
    images: Mapping[ImageName, str]
    """By digest. An image of `localhost/` was built on the node itself, and may go by tag."""
    steps: Mapping[str, Step]
    without_gpu: Size
    """Of a step that has GPUs here, where the recipe uses none."""
    gpus: Mapping[str, GpuNodes] = Field(default_factory=dict)
    spot: Nodes = Nodes()
    """What `spot: true` adds to a step."""
    service_account: str = "isr-dpo-run"
    """KFP has one a run."""
    train_service_account: str = "isr-dpo-train"
    """Of a TrainJob's pods."""
    user: Annotated[int, Field(gt=0)] = 10001
    """Of our images."""
    cache_claim: str | None = None
    """A volume that all pods share as /cache; none: each has an empty one of its own."""
    queue: str | None = None
    """A LocalQueue of Kueue."""
    pipeline_root: str | None = None
    """Where KFP keeps its own small artifacts; none: where the cluster's default is."""
    tracking_uri: str | None = None
    """MLflow of the cluster, for recipes whose own is a local database."""
    retries: Annotated[int, Field(ge=0)] = 3
    """Of a pod that was evicted or whose node was lost."""
    labels: Mapping[str, LabelValue] = Field(default_factory=dict)
    """Of all pods: the cost owner, for instance."""
    env: Mapping[str, str] = Field(default_factory=dict)
    secrets: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Of all steps."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in self.steps:
            if name not in STEP_CLASSES:
                raise ValueError(f"steps: unknown step {name!r}; steps are {', '.join(STEP_CLASSES)}")
        if missing := [name for name in STEP_CLASSES if name not in self.steps]:
            raise ValueError(f"steps: {', '.join(missing)} missing; a recipe may need any of them")
        if missing := sorted({step.image for step in self.steps.values()} - self.images.keys()):
            raise ValueError(f"images: {', '.join(missing)} missing")
        for name, image in self.images.items():
            _check_image(name, image)
        for name, step in self.steps.items():
            if step.gpu and step.gpu.kind not in self.gpus:
                raise ValueError(f"steps.{name}.gpu.kind: {step.gpu.kind!r} is none of gpus ({', '.join(self.gpus)})")
            if step.nodes > 1 and name != "train":
                raise ValueError(f"steps.{name}.nodes = {step.nodes}: only train goes over nodes; others: engine.pods")
        return self

    @model_validator(mode="after")
    def _keeps_secrets(self) -> Self:
        for name in self.env:
            if re.search(r"KEY|SECRET|TOKEN|PASSWORD", name):
                raise ValueError(f"env.{name}: a secret is named, never written here: secrets: {{NAME: [{name}]}}")
        for name, step in self.steps.items():
            if name != "evaluate" and "OPENAI_API_KEY" in self.keys(step) and STEP_CLASSES[name] != "engine":
                raise ValueError(f"steps.{name}.secrets: OPENAI_API_KEY is evaluate's alone; {name} asks no grader")
        return self

    def keys(self, step: Step) -> list[str]:
        """The environment variables that a step gets from Secrets."""
        return [key for keys in self.secrets_of(step).values() for key in keys]

    def secrets_of(self, step: Step) -> dict[str, tuple[str, ...]]:
        """Secrets by name with their keys: those of all steps, and its own."""
        return {**self.secrets, **step.secrets}

    def nodes_of(self, step: Step, *, gpu: bool) -> Nodes:
        """Selectors and tolerations of a step, with or without the GPU that it has here."""
        parts: list[Nodes] = [step]
        parts += [self.gpus[step.gpu.kind]] if gpu and step.gpu else []
        parts += [self.spot] if step.spot else []
        selector = {key: value for part in parts for key, value in part.node_selector.items()}
        return Nodes(node_selector=selector, tolerations=tuple(t for part in parts for t in part.tolerations))


def load(name_or_path: str) -> Placement:
    """A placement by the name of a packaged one, or from a file.

    Raises:
        RecipeError: no such placement, an unknown step or key, an image by tag, or an impossible value; each by name.
    """
    packaged = FOLDER / f"{name_or_path}.yaml"
    path = packaged if "/" not in name_or_path and packaged.is_file() else Path(name_or_path)
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise RecipeError(f"placement {name_or_path!r}: no such file, nor a packaged placement ({names})")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a placement is a mapping of keys, this is {type(tree).__name__}")
    try:
        return Placement.model_validate({"name": path.stem, **tree})
    except ValidationError as error:
        lines = dict.fromkeys(_explain(path, dict(found)) for found in error.errors())
        raise RecipeError("\n".join(lines)) from error


def fitted(recipe: Recipe, placement: Placement) -> Recipe:
    """`recipe` as it runs on `placement`: tracked by the cluster's MLflow where it named a local database.

    Raises:
        RecipeError: it needs a key that the placement gives to no step.
    """
    needs = {"evaluate": ("evaluate.grader", recipe.evaluate.grader), "answer": ("engine.kind", recipe.engine.kind)}
    for name, (key, value) in needs.items():
        if value == "openai" and "OPENAI_API_KEY" not in placement.keys(placement.steps[name]):
            raise RecipeError(
                f"{key} is openai, but placement {placement.name} gives {name} no key: "
                f"steps.{name}.secrets: {{isr-dpo-openai: [OPENAI_API_KEY]}}"
            )
    if placement.tracking_uri is None or not is_database(recipe.tracking.uri):
        return recipe
    tracking = recipe.tracking.model_copy(update={"uri": placement.tracking_uri})
    return recipe.model_copy(update={"tracking": tracking})


def _check_image(name: str, image: str) -> None:
    if not re.search(r"@sha256:[0-9a-f]{64}$", image) and not image.startswith("localhost/"):
        raise ValueError(
            f"images.{name} = {image!r}: a tag can be moved to another image between two tasks of a run; name it by "
            "digest, REPOSITORY@sha256:..., which pushing it printed"
        )


def _explain(path: Path, error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{path}: {where} is missing"
    given = "" if isinstance(error["input"], dict) or not where else f" = {error['input']!r}"
    return f"{path}: {where}{given}: {message}" if where else f"{path}: {message}"
