"""The step train, on several nodes: a process without GPU that has a cluster train, and waits.

It creates a Kubeflow Trainer TrainJob whose pods run `train_node`, follows it, and returns what node 0 has stored: the
output is that of the step which trains on its own machine.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from isr_dpo import errors, layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.errors import IsrDpoError, OutsideError
from isr_dpo.manifest import Manifest
from isr_dpo.steps.common import Inputs, StepResult, begin, metrics_of, reused
from isr_dpo.steps.train import without_training
from isr_dpo.steps.train_order import Order
from isr_dpo.stores import Missing, read_bytes

if TYPE_CHECKING:
    from isr_dpo.cluster.train_job import Pods

log = logging.getLogger("isr_dpo")


def train_launch(recipe: Recipe, inputs: Inputs, run_uri: str, index: int, *, run_id: str, pods: Pods) -> StepResult:
    """As `train_step`, by a TrainJob of `pods`. Of what node 0 did, MLflow and the times of the run know already.

    Raises:
        IsrDpoError: what stopped node 0, by its own name.
        OutsideError: the TrainJob failed otherwise, or the cluster cannot be asked.
    """
    if (without := without_training(recipe, inputs, run_uri, index)) is not None:
        return without
    uri = layout.policy(run_uri, index + 1)
    if not isinstance(begin(recipe, "policy", "train", inputs, uri), Manifest):
        _train(recipe, inputs, run_uri, index, run_id, pods)
    made = manifest.find(uri)
    if made is None:
        raise OutsideError(f"the TrainJob of round {index} is complete and {uri} is not: see its log, run again")
    training = manifest.find(layout.round_output(run_uri, index, "training"))
    return StepResult(reused(made).manifest, metrics_of(training) if training else {}, reused=True)


def _train(recipe: Recipe, inputs: Inputs, run_uri: str, index: int, run_id: str, pods: Pods) -> None:
    from isr_dpo.cluster import kube, watch
    from isr_dpo.cluster.train_job import job_name, train_job

    order = Order.of(recipe, inputs, run_uri, run_id, index)
    name = job_name(run_uri, run_id, "train", index)
    ranks = recipe.train.ranks or pods.gpus or 1
    job = train_job(name, pods, [order.to_json()], ranks=ranks, run_id=run_id)

    def give_up() -> None:
        found = _recorded(order)
        if found is not None and not found.retry:  # Kubernetes would start the pods again, for the same end
            raise found

    try:
        watch.run(kube.open_cluster(), job, on_line=lambda line: log.info("node 0 | %s", line), check=give_up)
    except OutsideError as error:
        raise _recorded(order) or error from error


def _recorded(order: Order) -> IsrDpoError | None:
    """What node 0 wrote down of its failure in this attempt."""
    try:
        failed = json.loads(read_bytes(layout.failure(order.run_uri)))
    except Missing:
        return None
    if (failed["step"], failed["index"], failed["run_id"]) != ("train", order.index, order.run_id):
        return None
    kind: type[IsrDpoError] = getattr(errors, failed["error"], IsrDpoError)
    found = kind(failed["message"])
    found.exit_code, found.retry = failed["exit_code"], failed["retry"]
    return found
