"""The step train: a round's pairs in, the next policy out.

The step's own process reads and writes the store; what trains (one process, or torchrun's ranks) sees local folders
alone: a job folder, kept under the cache until the policy is complete, so that a restart goes on from what lies there,
or from the newest checkpoint in the store where the disk is another one.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from isr_dpo import layout, live, manifest, pyfunc
from isr_dpo.config import Recipe
from isr_dpo.digests import canonical_digest
from isr_dpo.errors import DataError, StaleOutput
from isr_dpo.manifest import Manifest, Output
from isr_dpo.progress import EVERY_SECONDS
from isr_dpo.records import Preference, to_jsonl
from isr_dpo.steps.common import METRICS, Inputs, StepResult, begin, frame_store, metrics_of, origin, reused, rows_of
from isr_dpo.stores import join, open_store
from isr_dpo.titles import title

if TYPE_CHECKING:
    from isr_dpo.dpo.trainer import Entry
    from isr_dpo.dpo.worker import Job

log = logging.getLogger("isr_dpo")


def train_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult:
    """DPO from policy-t on round t's preferences (round 0: the seed's): policy-(t+1), its masters where it is stored in
    less than fp32, and round-tt/training (log, reference log-probabilities, metrics)."""
    policy_uri = layout.policy(run_uri, index + 1)
    made_from, prefix = (inputs["dataset"], "seed-") if index == 0 else (inputs["preferences"], "part-")
    rows = rows_of(made_from, Preference, prefix)
    if index == 0 and not rows:
        log.info("no seed preferences: policy-01 is the starting model")
        return StepResult(manifest.alias(policy_uri, inputs["policy"]), {}, reused=False)
    out = begin(recipe, "policy", "train", inputs, policy_uri)
    round_ = _Round(recipe, inputs, run_uri, index)
    if isinstance(out, Manifest):
        metrics = round_.close()
        return StepResult(reused(out).manifest, metrics, reused=True)
    return round_.train(rows, out)


class _Round:
    """The outputs of one round's training and what lies on this machine for it."""

    def __init__(self, recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> None:
        self._recipe, self._inputs, self._run_uri, self._index = recipe, inputs, run_uri, index
        self._digests = {name: made.digest for name, made in inputs.items()}
        self._uri = layout.round_output(run_uri, index, "training")
        self._checkpoints = join(self._uri, "checkpoints")
        self._seen: set[str] = set()
        """Local checkpoints that are in the store, or were."""

    def train(self, rows: list[Preference], out: Output) -> StepResult:
        self._refuse_foreign_checkpoints()
        if manifest.find(self._uri) is not None:  # its policy was deleted: both are made anew
            open_store(self._uri).delete(self._uri)
        training = self._begin()
        folder = self._job_folder()
        self._fetch(training, folder)
        job = self._work(rows, training, folder)
        metrics = self._finish(training, out, folder, job)
        policy = out.seal(rows=0, deterministic=self._deterministic)
        training.seal(rows=len(rows), deterministic=self._deterministic)
        shutil.rmtree(folder)
        self._clear()
        return StepResult(policy, metrics, reused=False)

    def close(self) -> dict[str, float]:
        """Ends what a step was killed in after its policy was complete; the round's metrics."""
        made = manifest.find(self._uri)
        if made is None:
            training = self._begin()
            if METRICS not in training.done:  # deleted by hand; the policy stands all the same
                return {}
            rows = int(json.loads(training.read(METRICS))["pairs"])
            made = training.seal(rows=rows, deterministic=self._deterministic)
        self._clear()
        return metrics_of(made)

    def _begin(self) -> Output:
        """The round's training directory, without the checkpoints below it, which have manifests of their own."""
        training = begin(self._recipe, "training", "train", self._inputs, self._uri)
        assert isinstance(training, Output)
        training.keep([name for name in training.done if not name.startswith("checkpoints/")])
        return training

    @property
    def _deterministic(self) -> bool:
        return self._recipe.model.device == "cpu"

    def _clear(self) -> None:
        """Removes what the complete policy makes useless: checkpoints, and masters of the policies before it."""
        open_store(self._checkpoints).delete(self._checkpoints)
        for index in range(1, self._index + 1):
            uri = layout.masters(self._run_uri, index)
            open_store(uri).delete(uri)

    def _job_folder(self) -> Path:
        """On this machine's disk, the same for every attempt at this round."""
        made_from = origin(self._recipe, "training", "train", self._digests)
        key = canonical_digest([self._uri, vars(made_from)])[:16]
        folder = manifest.cache_folder() / "train" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _refuse_foreign_checkpoints(self) -> None:
        """Raises StaleOutput: a checkpoint there is of other data, another recipe section or another policy."""
        wanted = origin(self._recipe, "checkpoint", "train", self._digests)
        for uri, made in self._stored_checkpoints().items():
            if made.origin != wanted:
                raise StaleOutput(
                    f"{uri}: a checkpoint of another round of training: "
                    f"{', '.join(made.origin.differences(wanted))} differ. Set them back to go on from it, or delete "
                    f"{self._uri} to train this round from its start"
                )

    def _stored_checkpoints(self) -> dict[str, Manifest]:
        """The complete checkpoints in the store by URI, oldest first."""
        names = sorted(open_store(self._checkpoints).list(self._checkpoints))
        uris = [join(self._checkpoints, n.rpartition("/")[0]) for n in names if n.endswith("/" + manifest.MANIFEST)]
        found = {uri: manifest.find(uri) for uri in uris}
        return {uri: made for uri, made in found.items() if made is not None}

    def _fetch(self, training: Output, folder: Path) -> None:
        """Brings what an earlier attempt left in the store, where the job folder has nothing newer."""
        from isr_dpo.dpo import checkpoint, reference

        if reference.NAME in training.done and not (folder / reference.NAME).exists():
            (folder / reference.NAME).write_bytes(training.read(reference.NAME))
        local = [path.name for path in checkpoint.found(folder / checkpoint.FOLDER)]
        for uri, made in list(self._stored_checkpoints().items())[-1:]:
            name = uri.rpartition("/")[2]
            if name > max(local, default=""):
                log.info("train: going on from %s", uri)
                target = folder / checkpoint.FOLDER / name
                unfinished = target.with_name(f"{name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                shutil.copytree(manifest.files(made), unfinished, ignore=shutil.ignore_patterns(manifest.MANIFEST))
                unfinished.rename(target)

    def _work(self, rows: list[Preference], training: Output, folder: Path) -> Job:
        """Trains until the job folder holds the masters; what must outlive this machine goes to the store meanwhile."""
        from isr_dpo.dpo import reference, step, worker

        (folder / worker.PAIRS).write_bytes(to_jsonl(rows))

        def follow(entry: Entry) -> None:
            if reference.NAME not in training.done:
                training.put(reference.NAME, folder / reference.NAME)
            self._keep_checkpoints(folder)
            progress(entry)
            shown.log(entry)

        if "initial" in self._inputs and not (folder / reference.NAME).exists():
            initial = self._job(self._inputs["initial"], masters=None, reference_only=True)
            step.train_round(folder, self._recipe, initial)
        job = self._job(self._inputs["policy"], masters=self._masters())
        step.check_masters(job)
        progress = _Progress(title("train", self._index))
        with live.show(self._recipe, run_uri=self._run_uri, step="train", index=self._index) as shown:
            step.train_round(folder, self._recipe, job, on_step=follow)
        return job

    def _job(self, policy: Manifest, *, masters: Path | None, reference_only: bool = False) -> Job:
        from isr_dpo.dpo.worker import Job

        dataset = self._inputs["dataset"]
        features = manifest.cache_folder() / "features" / dataset.inputs["frames"][:16]
        return Job(
            recipe=self._recipe.canonical(),
            round_index=self._index,
            policy=str(manifest.files(policy)),
            masters=str(masters) if masters else None,
            frames=str(frame_store(self._run_uri, dataset).folder),
            features=str(features) if self._recipe.train.cache_features else None,
            policy_digest=self._inputs.get("initial", self._inputs["policy"]).digest,
            pairs_digest=self._inputs.get("preferences", dataset).digest,
            reference_only=reference_only,
        )

    def _masters(self) -> Path | None:
        """The fp32 masters of the policy to start from; None where its own files are as exact.

        Raises:
            DataError: this run trained that policy and stores policies rounded, but its masters are gone.
        """
        policy, uri = self._inputs["policy"], layout.masters(self._run_uri, self._index)
        made = manifest.find(uri)
        if made is not None:
            if made.inputs != policy.inputs:
                raise StaleOutput(f"{uri}: masters of another {policy.uri}; delete both and train that round again")
            return manifest.files(made)
        of_this_run = policy.uri == layout.policy(self._run_uri, self._index)
        if of_this_run and self._rounded and not self._recipe.train.allow_rounded_start:
            raise DataError(
                f"{uri} is gone: masters are kept for the newest policy alone, and the {self._recipe.model.dtype} "
                f"weights of {policy.uri} hold only a part of what it learnt. Go on from the newest policy, begin "
                "again from the first, or accept the loss with train.allow_rounded_start=true"
            )
        return None

    @property
    def _rounded(self) -> bool:
        return self._recipe.model.dtype != "float32"

    def _keep_checkpoints(self, folder: Path) -> None:
        """Brings new checkpoints to the store, where at most two are kept."""
        from isr_dpo.dpo import checkpoint

        new = [path for path in checkpoint.found(folder / checkpoint.FOLDER) if path.name not in self._seen]
        if not new:
            return
        stored = self._stored_checkpoints()
        for path in new:
            uri = join(self._checkpoints, path.name)
            self._seen.add(path.name)
            out = manifest.begin(uri, origin(self._recipe, "checkpoint", "train", self._digests))
            if isinstance(out, Output):
                out.put_folder(path)
                stored[uri] = out.seal(rows=0, deterministic=self._deterministic)
        for uri in sorted(stored)[: -checkpoint.KEPT]:
            open_store(uri).delete(uri)

    def _finish(self, training: Output, out: Output, folder: Path, job: Job) -> dict[str, float]:
        """Stores everything but the manifests of policy and training."""
        from isr_dpo.dpo import reference, step, worker

        metrics = step.export(folder, self._recipe, job)
        if self._rounded:
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
