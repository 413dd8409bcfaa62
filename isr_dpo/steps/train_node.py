"""One node of a training job on several: what each pod of a TrainJob runs.

    python -m isr_dpo.steps.train_node ORDER

Node 0 is the step train itself, with its store, manifests and MLflow; its followers fetch the same inputs, train beside
it and write nothing but to their own disk. Kubeflow Trainer says by the environment which node this is (`dpo.nodes`).
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from isr_dpo import config, layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.dpo import launch, nodes
from isr_dpo.errors import IsrDpoError, StaleOutput
from isr_dpo.progress import speak
from isr_dpo.steps.common import Inputs
from isr_dpo.steps.execute import run_step
from isr_dpo.steps.inputs import inputs_of
from isr_dpo.steps.train import train_step
from isr_dpo.steps.train_machine import Machine, pairs
from isr_dpo.steps.train_order import Order
from isr_dpo.stores.lock import owner

log = logging.getLogger("isr_dpo")


def work(order: Order, node: nodes.Node) -> None:
    """Does this node's part.

    Raises:
        IsrDpoError: the step's, on node 0, which also records it in <run>/failed.json; a follower's own.
    """
    recipe = config.parse(order.recipe)
    inputs = inputs_of("train", recipe, order.run_uri, order.index)
    changed = [name for name, made in inputs.items() if order.inputs.get(name) != made.digest]
    if changed:
        raise StaleOutput(f"{order.run_uri}: {', '.join(changed)} changed after this training job was made; run again")
    if node.rank == 0:
        _lead(order, node, recipe, inputs)
    else:
        _follow(order, node, recipe, inputs)


def _lead(order: Order, node: nodes.Node, recipe: Recipe, inputs: Inputs) -> None:
    with owner(order.run_uri, order.run_id), nodes.Leader(node, token=order.run_id) as leader:
        step = functools.partial(train_step, leader=leader)
        run_step("train", recipe, inputs, order.run_uri, order.index, run_id=order.run_id, work=step)


def _follow(order: Order, node: nodes.Node, recipe: Recipe, inputs: Inputs) -> None:
    from isr_dpo.dpo import step

    def over() -> bool:
        return manifest.find(layout.policy(order.run_uri, order.index + 1)) is not None

    def prepare(told: Mapping[str, Any]) -> Callable[[], None]:
        machine = Machine(recipe, inputs, order.run_uri, order.index, node=node.rank)
        machine.write_pairs(pairs(inputs, order.index))
        machine.match(checkpoint=told["checkpoint"], reference=told["reference"])
        machine.job(reference_only=told["reference_only"]).write(machine.folder)
        ranks = step.ranks(recipe) or 1
        log.info("node %d of %d: ready with %d ranks", node.rank, node.nodes, ranks)
        start = functools.partial(launch.launch, machine.folder, ranks=ranks, on_line=lambda _: None)
        return functools.partial(start, node=node, watch=follower.check)

    follower = nodes.Follower(node, token=order.run_id, over=over)
    follower.follow(prepare)


def main() -> int:
    """The exit code is the error's own."""
    speak()
    # The first process of a container does not end on SIGTERM of its own accord. What stands in the store stays good.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    try:
        work(Order.from_json(sys.argv[1]), nodes.here())
    except IsrDpoError as error:
        log.error("%s: %s", type(error).__name__, error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
