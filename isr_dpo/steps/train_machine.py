"""What one machine has of a round of training: its job folder, and the inputs fetched for it.

Where several nodes train, each has its own, made from the same manifests.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from isr_dpo import layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.digests import canonical_digest
from isr_dpo.errors import DataError, StaleOutput
from isr_dpo.manifest import Manifest
from isr_dpo.records import Preference, to_jsonl
from isr_dpo.steps.common import Inputs, frame_store, origin, rows_of
from isr_dpo.stores import join, open_store, read_bytes

if TYPE_CHECKING:
    from isr_dpo.dpo.worker import Job

log = logging.getLogger("isr_dpo")


def pairs(inputs: Inputs, index: int) -> list[Preference]:
    """What a round trains on; round 0: the dataset's seed preferences."""
    made_from, prefix = (inputs["dataset"], "seed-") if index == 0 else (inputs["preferences"], "part-")
    return rows_of(made_from, Preference, prefix)


class Machine:
    """One of them. `node`: its number where several train, which may share a disk."""

    def __init__(self, recipe: Recipe, inputs: Inputs, run_uri: str, index: int, *, node: int = 0) -> None:
        self._recipe, self._inputs, self._run_uri, self._index = recipe, inputs, run_uri, index
        self.digests = {name: made.digest for name, made in inputs.items()}
        self.uri = layout.round_output(run_uri, index, "training")
        self.checkpoints = join(self.uri, "checkpoints")
        made_from = origin(recipe, "training", "train", self.digests)
        key = canonical_digest([self.uri, vars(made_from)])[:16]
        self.folder = manifest.cache_folder() / "train" / (f"{key}-node-{node}" if node else key)
        """The job folder: on this machine's disk, the same for every attempt at this round."""

    def write_pairs(self, rows: list[Preference]) -> None:
        from isr_dpo.dpo import worker

        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / worker.PAIRS).write_bytes(to_jsonl(rows))

    def local_checkpoints(self) -> list[str]:
        """Names, oldest first."""
        from isr_dpo.dpo import checkpoint

        return [path.name for path in checkpoint.found(self.folder / checkpoint.FOLDER)]

    def stored_checkpoints(self) -> dict[str, Manifest]:
        """The complete checkpoints in the store by URI, oldest first."""
        names = sorted(open_store(self.checkpoints).list(self.checkpoints))
        uris = [join(self.checkpoints, n.rpartition("/")[0]) for n in names if n.endswith("/" + manifest.MANIFEST)]
        found = {uri: manifest.find(uri) for uri in uris}
        return {uri: made for uri, made in found.items() if made is not None}

    def fetch_checkpoint(self, uri: str, made: Manifest) -> None:
        """Brings a checkpoint from the store, whole or not at all."""
        from isr_dpo.dpo import checkpoint

        log.info("train: going on from %s", uri)
        target = self.folder / checkpoint.FOLDER / uri.rpartition("/")[2]
        unfinished = target.with_name(f"{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        manifest.fetch(made, unfinished)
        unfinished.rename(target)

    def match(self, *, checkpoint: str | None, reference: bool) -> None:
        """Makes the job folder go on from what another node does: of the checkpoints and the reference in the store,
        these and no others."""
        from isr_dpo.dpo import checkpoint as checkpoints
        from isr_dpo.dpo import reference as references
        from isr_dpo.dpo import worker

        shutil.rmtree(self.folder / worker.MASTERS, ignore_errors=True)
        for name in self.local_checkpoints():
            if name != checkpoint:
                checkpoints.remove(self.folder / checkpoints.FOLDER / name)
        if checkpoint is not None and checkpoint not in self.local_checkpoints():
            uri = join(self.checkpoints, checkpoint)
            made = manifest.find(uri)
            if made is None:
                raise StaleOutput(f"{uri} is gone, which this round was to go on from; run again")
            self.fetch_checkpoint(uri, made)
        path = self.folder / references.NAME
        if reference:
            path.write_bytes(read_bytes(join(self.uri, references.NAME)))
        else:
            path.unlink(missing_ok=True)

    def job(self, *, reference_only: bool = False) -> Job:
        """What the ranks of this machine do: the round, or (`reference_only`) the log-probabilities of the policy that
        all rounds keep as their reference."""
        from isr_dpo.dpo.worker import Job

        policy = self._inputs["initial" if reference_only else "policy"]
        masters = None if reference_only else self.masters()
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

    def masters(self) -> Path | None:
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
        if of_this_run and self.rounded and not self._recipe.train.allow_rounded_start:
            raise DataError(
                f"{uri} is gone: masters are kept for the newest policy alone, and the {self._recipe.model.dtype} "
                f"weights of {policy.uri} hold only a part of what it learnt. Go on from the newest policy, begin "
                "again from the first, or accept the loss with train.allow_rounded_start=true"
            )
        return None

    @property
    def rounded(self) -> bool:
        """Policies are stored in less than fp32."""
        return self._recipe.model.dtype != "float32"
