"""The step train: a round's pairs in, the next policy out.

The step's own process reads and writes the store; what trains (one process, or torchrun's ranks, of several machines
perhaps) sees local folders alone: a job folder, kept under the cache until the policy is complete, so that a restart
goes on from what lies there, or from the newest checkpoint in the store where the disk is another one.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from isr_dpo import layout, live, manifest, outputs, pyfunc
from isr_dpo.config import Recipe
from isr_dpo.errors import StaleOutput
from isr_dpo.manifest import Manifest
from isr_dpo.outputs import Output
from isr_dpo.progress import EVERY_SECONDS
from isr_dpo.records import Preference
from isr_dpo.steps.common import METRICS, Inputs, StepResult, begin, metrics_of, origin, reused
from isr_dpo.steps.train_machine import Machine, pairs
from isr_dpo.stores import join, open_store, write_bytes
from isr_dpo.titles import title

if TYPE_CHECKING:
    from isr_dpo.dpo.nodes import Leader
    from isr_dpo.dpo.trainer import Entry
    from isr_dpo.dpo.worker import Job

log = logging.getLogger("isr_dpo")


def train_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int, *, leader: Leader | None = None) -> StepResult:
    """DPO from policy-t on round t's preferences (round 0: the seed's): policy-(t+1), its masters where it is stored in
    less than fp32, and round-tt/training (log, reference log-probabilities, metrics). `leader`: of the other nodes that
    train with this one (`train_node`)."""
    if (without := without_training(recipe, inputs, run_uri, index)) is not None:
        return without
    out = begin(recipe, "policy", "train", inputs, layout.policy(run_uri, index + 1))
    round_ = _Round(recipe, inputs, run_uri, index, leader)
    if isinstance(out, Manifest):
        metrics = round_.close()
        return StepResult(reused(out).manifest, metrics, reused=True)
    return round_.train(pairs(inputs, index), out)


def without_training(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult | None:
    """Without seed DPO policy-01 is the start itself; None where there is something to train on."""
    if index > 0 or (recipe.train.seed_epochs and pairs(inputs, index)):
        return None
    why = "no seed preferences" if recipe.train.seed_epochs else "train.seed_epochs is 0"
    log.info("%s: policy-01 is the starting model", why)
    return StepResult(outputs.alias(layout.policy(run_uri, 1), inputs["policy"]), {}, reused=False)


class _Round:
    """The outputs of one round's training."""

    def __init__(self, recipe: Recipe, inputs: Inputs, run_uri: str, index: int, leader: Leader | None) -> None:
        self._recipe, self._inputs, self._run_uri, self._index = recipe, inputs, run_uri, index
        self._machine = Machine(recipe, inputs, run_uri, index)
        self._leader = leader
        self._seen: set[str] = set()
        """Local checkpoints that are in the store, or were."""

    def train(self, rows: list[Preference], out: Output) -> StepResult:
        self._refuse_foreign_checkpoints()
        if manifest.find(self._machine.uri) is not None:  # its policy was deleted: both are made anew
            open_store(self._machine.uri).delete(self._machine.uri)
        training = self._begin()
        self._machine.write_pairs(rows)
        self._fetch(training)
        job = self._work(training)
        metrics = self._finish(training, out, job)
        policy = out.seal(rows=0, deterministic=self._deterministic)
        training.seal(rows=len(rows), deterministic=self._deterministic)
        self._clear()
        return StepResult(policy, metrics, reused=False)

    def close(self) -> dict[str, float]:
        """Ends what a step was killed in after its policy was complete; the round's metrics."""
        made = manifest.find(self._machine.uri)
        if made is None:
            training = self._begin()
            if METRICS not in training.done:  # deleted by hand; the policy stands all the same
                return {}
            rows = int(json.loads(training.read(METRICS))["pairs"])
            made = training.seal(rows=rows, deterministic=self._deterministic)
        open_store(self._machine.uri).delete(join(self._machine.uri, outputs.UNFINISHED))  # killed as it sealed
        self._clear()
        return metrics_of(made)

    def _begin(self) -> Output:
        """The round's training directory, without the checkpoints below it, which have manifests of their own."""
        training = begin(self._recipe, "training", "train", self._inputs, self._machine.uri)
        assert isinstance(training, Output)
        training.keep([name for name in training.done if not name.startswith("checkpoints/")])
        return training

    @property
    def _deterministic(self) -> bool:
        return self._recipe.model.device == "cpu"

    def _clear(self) -> None:
        """Removes what the complete policy makes useless: the job folder, checkpoints, and masters of the policies
        before it."""
        shutil.rmtree(self._machine.folder, ignore_errors=True)
        open_store(self._machine.checkpoints).delete(self._machine.checkpoints)
        for index in range(1, self._index + 1):
            uri = layout.masters(self._run_uri, index)
            made = manifest.find(uri)
            if made is not None:
                manifest.drop_copy(made)
            open_store(uri).delete(uri)

    def _refuse_foreign_checkpoints(self) -> None:
        """Raises StaleOutput: a checkpoint there is of other data, another recipe section or another policy."""
        wanted = origin(self._recipe, "checkpoint", "train", self._machine.digests)
        for uri, made in self._machine.stored_checkpoints().items():
            if made.origin != wanted:
                raise StaleOutput(
                    f"{uri}: a checkpoint of another round of training: "
                    f"{', '.join(made.origin.differences(wanted))} differ. Set them back to go on from it, or delete "
                    f"{self._machine.uri} to train this round from its start"
                )

    def _fetch(self, training: Output) -> None:
        """Brings what an earlier attempt left in the store, where the job folder has nothing newer."""
        from isr_dpo.dpo import reference

        path = self._machine.folder / reference.NAME
        if reference.NAME in training.done and not path.exists():
            write_bytes(str(path), training.read(reference.NAME))  # whole or not at all, unlike Path's
        newest = max(self._machine.local_checkpoints(), default="")
        for uri, made in list(self._machine.stored_checkpoints().items())[-1:]:
            if uri.rpartition("/")[2] > newest:
                self._machine.fetch_checkpoint(uri, made)

    def _work(self, training: Output) -> Job:
        """Trains until the job folder holds the masters; what must outlive this machine goes to the store meanwhile."""
        from isr_dpo.dpo import reference, step

        folder = self._machine.folder

        def follow(entry: Entry) -> None:
            self._keep_reference(training)
            self._keep_checkpoints()
            progress(entry)
            shown.log(entry)

        if "initial" in self._inputs and not (folder / reference.NAME).exists():
            job = self._machine.job(reference_only=True)
            step.train_round(folder, self._recipe, job, start=self._start(training, job))
        job = self._machine.job()
        step.check_masters(job)
        progress = _Progress(title("train", self._index))
        with live.show(self._recipe, run_uri=self._run_uri, step="train", index=self._index) as shown:
            step.train_round(folder, self._recipe, job, on_step=follow, start=self._start(training, job))
        return job

    def _start(self, training: Output, job: Job) -> Callable[..., None] | None:
        """What starts ranks on all nodes: the others learn what this one goes on from, and find it in the store."""
        from isr_dpo.dpo import launch, reference

        leader = self._leader
        if leader is None:
            return None

        def start(folder: Path, *, ranks: int, on_line: Callable[[str], None]) -> None:
            self._keep_reference(training)
            self._keep_checkpoints()
            order = {
                "reference_only": job.reference_only,
                "reference": (folder / reference.NAME).exists(),
                "checkpoint": max(self._machine.local_checkpoints(), default=None),
            }
            own = functools.partial(launch.launch, folder, ranks=ranks, on_line=on_line)
            leader.together(order, functools.partial(own, node=leader.node, watch=leader.check))

        return start

    def _keep_reference(self, training: Output) -> None:
        """Brings the reference's log-probabilities to the store, once they are there."""
        from isr_dpo.dpo import reference

        path = self._machine.folder / reference.NAME
        if path.exists() and reference.NAME not in training.done:
            training.put(reference.NAME, path)

    def _keep_checkpoints(self) -> None:
        """Brings new checkpoints to the store, where at most two are kept."""
        from isr_dpo.dpo import checkpoint

        new = [name for name in self._machine.local_checkpoints() if name not in self._seen]
        if not new:
            return
        stored = self._machine.stored_checkpoints()
        for name in new:
            uri = join(self._machine.checkpoints, name)
            self._seen.add(name)
            with checkpoint.held(self._machine.folder / checkpoint.FOLDER / name) as files:
                if files is None:
                    continue
                out = outputs.begin(uri, origin(self._recipe, "checkpoint", "train", self._machine.digests))
                if isinstance(out, Output):
                    out.put_folder(files)
                    stored[uri] = out.seal(rows=0, deterministic=self._deterministic)
        for uri in sorted(stored)[: -checkpoint.KEPT]:
            open_store(uri).delete(uri)

    def _finish(self, training: Output, out: Output, job: Job) -> dict[str, float]:
        """Stores everything but the manifests of policy and training."""
        from isr_dpo.dpo import reference, step, worker

        folder = self._machine.folder
        metrics = step.export(folder, self._recipe, job)
        if self._machine.rounded:
            uri = layout.masters(self._run_uri, self._index + 1)
            masters = begin(self._recipe, "masters", "train", self._inputs, uri)
            if isinstance(masters, Output):
                masters.put_folder(folder / worker.MASTERS)
                masters.seal(rows=0, deterministic=self._deterministic)
        policy = folder / step.POLICY
        (policy / pyfunc.NAME).write_bytes(pyfunc.mlmodel_file())
        out.put_folder(policy)
        training.put(reference.NAME, folder / reference.NAME)
        training.put(worker.LOG, folder / worker.LOG)
        training.write(METRICS, (json.dumps(metrics, indent=1, sort_keys=True) + "\n").encode())
        return metrics


class _Progress:
    """One line every few seconds: where training stands and how fast it is."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._shown = 0.0

    def __call__(self, entry: Entry) -> None:
        if time.monotonic() - self._shown < EVERY_SECONDS and entry["step"] < entry["steps"]:
            return
        self._shown = time.monotonic()
        log.info(
            "%s: step %d/%d, loss %.3f, reward accuracy %.2f, margin %+.2f, %.3g pairs/s, %.3g tokens/s, MFU %.0f %%, "
            "%.1fx of the floor",
            self._title,
            *(entry[key] for key in ("step", "steps", "loss", "reward_accuracy", "margin", "pairs_per_second")),
            entry["tokens_per_second"],
            100 * entry["mfu"],
            entry["floor_ratio"],
        )
