"""A placement put onto KFP's tasks, by `kfp-kubernetes`."""

import re

from kfp import kubernetes
from kfp.dsl.pipeline_task import PipelineTask

from isr_dpo.cluster.train_job import Pods, SecretKey
from isr_dpo.config import Recipe
from isr_dpo.preflight import PLACEMENT
from pipelines.placement import STEP_CLASSES, Placement, Step

IMAGE = "ISR_DPO_IMAGE"
"""What a step runs in, by digest: the registry tags models with it."""
QUEUE = "kueue.x-k8s.io/queue-name"


class Placed:
    """Puts one placement onto the tasks of one recipe. `run` labels the pods."""

    def __init__(self, placement: Placement, recipe: Recipe, *, run: str) -> None:
        self._placement, self._recipe = placement, recipe
        self._labels = {
            **placement.labels,
            "app.kubernetes.io/part-of": "isr-dpo",
            "isr-dpo/run": label_value(run),
        }

    def put(self, task: PipelineTask, name: str) -> PipelineTask:
        """`task` with all that the placement says of step `name`."""
        step = self._placement.steps[name]
        self._contain(task, name, step)
        self._size(task, step, gpu=step.gpu is not None and uses_gpu(self._recipe, name))
        self._label(task, name)
        self._bound(task, step)
        return task

    def train_pods(self) -> Pods | None:
        """The nodes of a TrainJob, where train goes over several; `put` places the task that creates it."""
        placement, step = self._placement, self._placement.steps["train"]
        if step.nodes == 1:
            return None
        gpu = step.gpu if uses_gpu(self._recipe, "train") else None
        size = step if gpu or not step.gpu else placement.without_gpu
        where, image = placement.nodes_of(step, gpu=gpu is not None), placement.images[step.image]
        secrets = [SecretKey(key, secret, key) for secret, keys in placement.secrets_of(step).items() for key in keys]
        return Pods(
            image=image,
            nodes=step.nodes,
            gpus=gpu.count if gpu else 0,
            gpu_resource=placement.gpus[gpu.kind].resource if gpu else "nvidia.com/gpu",
            deadline_minutes=step.deadline_minutes,
            requests=size.requests.model_dump(),
            limits=size.limits.model_dump(),
            node_selector=where.node_selector,
            tolerations=tuple(each.model_dump(exclude_none=True) for each in where.tolerations),
            queue=placement.queue,
            service_account=placement.train_service_account,
            user=placement.user,
            cache_claim=placement.cache_claim,
            shm=size.shm or "64Mi",
            env={**placement.env, IMAGE: image, PLACEMENT: placement.name},
            secrets=tuple(secrets),
            labels=self._labels,
        )

    def _contain(self, task: PipelineTask, name: str, step: Step) -> None:
        """Image, user, environment, and the two places that may be written to."""
        placement, image = self._placement, self._placement.images[step.image]
        task.set_container_image(image)
        kubernetes.set_image_pull_policy(task, "IfNotPresent")
        user = placement.user
        kubernetes.set_security_context(task, run_as_user=user, run_as_group=user, run_as_non_root=True)
        for key, value in {**placement.env, IMAGE: image, PLACEMENT: placement.name}.items():
            task.set_env_variable(key, value)
        for secret, keys in placement.secrets_of(step).items():
            spare = is_spare(self._recipe, name, step, secret)  # a pod without a Secret that it must have never starts
            kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=spare)
        if placement.cache_claim:
            kubernetes.mount_pvc(task, placement.cache_claim, "/cache")
        else:
            kubernetes.empty_dir_mount(task, "cache", "/cache")
        kubernetes.empty_dir_mount(task, "tmp", "/tmp")  # noqa: S108 - a mount of the pod's own

    def _size(self, task: PipelineTask, step: Step, *, gpu: bool) -> None:
        size = self._placement.without_gpu if step.gpu and not gpu else step
        task.set_cpu_request(size.requests.cpu).set_cpu_limit(size.limits.cpu)
        task.set_memory_request(size.requests.memory).set_memory_limit(size.limits.memory)
        if size.shm:
            kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=size.shm)  # noqa: S108
        if step.gpu and gpu:
            task.set_accelerator_type(self._placement.gpus[step.gpu.kind].resource)
            task.set_accelerator_limit(step.gpu.count)
        nodes = self._placement.nodes_of(step, gpu=gpu)
        for key, value in nodes.node_selector.items():
            kubernetes.add_node_selector(task, key, value)
        for toleration in nodes.tolerations:
            kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))

    def _label(self, task: PipelineTask, name: str) -> None:
        queue = {QUEUE: self._placement.queue} if self._placement.queue else {}
        for key, value in {**self._labels, "isr-dpo/step": STEP_CLASSES[name], **queue}.items():
            kubernetes.add_pod_label(task, key, value)

    def _bound(self, task: PipelineTask, step: Step) -> None:
        """A deadline, and a window that still has room for the last retry: KFP's default of an hour would never repeat
        a step that took longer."""
        minutes = step.deadline_minutes
        if step.image == "cpu" and self._recipe.evaluate.batch:
            minutes += int(60 * self._recipe.evaluate.batch_hours)
        kubernetes.set_timeout(task, 60 * minutes)
        retries = self._placement.retries
        if retries:
            window = f"{60 * minutes * (retries + 1)}s"
            task.set_retry(retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration=window)


def is_spare(recipe: Recipe, name: str, step: Step, secret: str) -> bool:
    """Whether the task `name` of `recipe` never reads this Secret: evaluate's own, where no grader is asked."""
    return name == "evaluate" and recipe.evaluate.grader != "openai" and secret in step.secrets


def uses_gpu(recipe: Recipe, step: str) -> bool:
    """Whether a step that may have a GPU uses it: not on a CPU, nor where somebody else answers."""
    if recipe.model.device == "cpu":
        return False
    served = recipe.engine.kind in ("openai", "fake") or bool(recipe.answer.predictions)
    return step == "train" or not served


def label_value(text: str) -> str:
    """`text` as the value of a label may read."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[-63:].strip("-._")
