"""A round's training on this machine: in this process on one CPU, by torchrun's ranks otherwise; then the policy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from isr_dpo import models
from isr_dpo.config import Recipe
from isr_dpo.dpo import launch, masters, reference, worker
from isr_dpo.dpo.masters import Masters
from isr_dpo.dpo.trainer import Entry, metrics
from isr_dpo.dpo.worker import LOG, MASTERS, Job

POLICY = "policy"


def ranks(recipe: Recipe) -> int | None:
    """Processes to start; None: train in this one."""
    gpus = torch.cuda.device_count() if recipe.model.device != "cpu" else 0
    wanted = recipe.train.ranks or gpus or 1
    return None if wanted == 1 and not gpus else wanted


class Start(Protocol):
    """What starts the ranks of a job, as `launch` does on this machine alone."""

    def __call__(self, folder: Path, *, ranks: int, on_line: Callable[[str], None]) -> None: ...


def train_round(
    folder: Path,
    recipe: Recipe,
    job: Job,
    *,
    on_step: Callable[[Entry], None] = lambda _: None,
    start: Start | None = None,
) -> None:
    """Works through a job until `folder` holds its masters (or, where the job asks for no more, its reference).

    `on_step` is called in this process with each optimiser step's line of the log, when it is on the disk. `start`: on
    more machines than this one.

    Raises:
        IsrDpoError: a rank's own, or OutsideError where a rank died.
    """
    if (folder / MASTERS).exists():
        return
    job.write(folder)
    count = ranks(recipe)
    if count is None and start is None:
        worker.run(folder, on_step)
    else:
        (start or launch.launch)(folder, ranks=count or 1, on_line=lambda line: on_step(json.loads(line)))


def export(folder: Path, recipe: Recipe, job: Job) -> dict[str, float]:
    """Writes `folder/policy` in the recipe's dtype from the masters in `folder`; the round's metrics."""
    dtype = getattr(torch, recipe.model.dtype)
    trained = Masters(folder / MASTERS)
    out = folder / POLICY
    shutil.rmtree(out, ignore_errors=True)
    masters.export(Path(job.policy), trained, out, dtype=dtype)
    log = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    known = reference.load(folder / reference.NAME, policy=job.policy_digest, pairs=job.pairs_digest)
    return {
        **metrics(log),
        "pairs": len(known.pairs()),
        "left_out": len(known.left_out),
        "update_kept": masters.update_kept(weights(job), trained, dtype=dtype),
    }


def weights(job: Job) -> Mapping[str, Tensor]:
    """The round's start in fp32, by parameter name."""
    if job.masters is not None:
        return Masters(Path(job.masters))
    policy = models.load(Path(job.policy), dtype="float32")
    return {name: parameter.detach() for name, parameter in policy.trainable(projector=True).items()}


def check_masters(job: Job) -> None:
    """Raises StaleOutput where the job's masters are not its policy's."""
    if job.masters is not None:
        dtype = masters.stored_dtype(Path(job.policy))
        policy = models.load(Path(job.policy), dtype=str(dtype).removeprefix("torch."))
        masters.check(policy.model, Masters(Path(job.masters)), dtype=dtype)
