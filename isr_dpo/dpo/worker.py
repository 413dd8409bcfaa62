"""One rank's program: from a job folder to trained masters.

A job folder lies on the node's local disk:

    job.json, pairs.jsonl     what to train, on what
    reference.safetensors     log-probabilities of the reference: found there, or computed first
    checkpoints/step-NNNNNN/  points of resumption, each complete or absent
    log.jsonl                 a line an optimiser step, written as it ends
    masters/                  the result, complete or absent

Run in the step's own process on one CPU; started on each rank by torchrun otherwise (`launch`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from isr_dpo import config, models, prompts
from isr_dpo.config import Recipe
from isr_dpo.data.frames import FrameStore
from isr_dpo.dpo import checkpoint, floor, launch, lora, masters, plain, reference
from isr_dpo.dpo.backend import Backend, BackendSettings, State, States
from isr_dpo.dpo.batch import Pairs
from isr_dpo.dpo.checkpoint import Checkpoint
from isr_dpo.dpo.features import Features, tower_digest
from isr_dpo.dpo.forward import SharedPrefix
from isr_dpo.dpo.masters import Masters
from isr_dpo.dpo.reference import Reference
from isr_dpo.dpo.trainer import Entry, Hardware, Round, train
from isr_dpo.models import Policy
from isr_dpo.progress import Progress
from isr_dpo.records import Preference, read_files
from isr_dpo.titles import title

log = logging.getLogger("isr_dpo")

PAIRS = "pairs.jsonl"
LOG = "log.jsonl"
MASTERS = "masters"


@dataclass(frozen=True)
class Job:
    """What one round trains."""

    recipe: str
    """Canonical JSON."""
    round_index: int
    policy: str
    """Folder of the policy to start from."""
    masters: str | None
    """Folder of its fp32 masters; none: its own weights are all there is."""
    frames: str
    """Folder of the frame store."""
    features: str | None
    """Folder for what the frozen tower gives; none: nothing is kept."""
    policy_digest: str
    """Of the policy whose log-probabilities are the reference."""
    pairs_digest: str
    reference_only: bool = False
    """Compute the reference and end."""

    def write(self, folder: Path) -> None:
        (folder / "job.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Job:
        return cls(**json.loads((folder / "job.json").read_text(encoding="utf-8")))


def run(folder: Path, on_step: Callable[[Entry], None] = lambda _: None) -> None:
    """Works through the job in `folder`: goes on from its newest checkpoint, does nothing where its masters stand.

    `on_step` is called after each optimiser step, when the log and a checkpoint that was due are on the disk.

    Raises:
        IsrDpoError: by name what is wrong with pairs, policy, reference or checkpoint.
    """
    if (folder / MASTERS).exists():
        return
    job = Job.read(folder)
    recipe = config.parse(job.recipe)
    torch.use_deterministic_algorithms(recipe.model.device == "cpu", warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # costs time for nothing
    torch.manual_seed(recipe.seed)
    distributed = launch.distributed_environment()
    policy, originals = _open_policy(job, recipe, distributed=distributed)
    parameters, weights = _trained(policy, recipe), policy.trainable()
    shape = floor.Shape.of(policy.model)
    features = Features(Path(job.features) / tower_digest(policy)[:16]) if job.features else None
    module = SharedPrefix(policy, features=features, checkpointing=recipe.train.gradient_checkpointing)
    resumed = None if job.reference_only else checkpoint.newest(folder / checkpoint.FOLDER)
    settings = BackendSettings(
        zero_stage=recipe.train.zero_stage,
        dtype=recipe.model.dtype,
        accumulate_dtype=recipe.train.accumulate_dtype,
        max_grad_norm=recipe.train.max_grad_norm,
    )
    if resumed is not None:
        log.info("%s: going on from step %d", title("train", job.round_index), resumed.step)
    done, states = resumed.step if resumed else 0, _states(resumed, originals)
    if distributed:
        from isr_dpo.dpo import zero

        backend = zero.open(module, parameters, settings, states=states, steps=done, whole=policy.model.get_decoder())
    else:
        backend = plain.open(module, parameters, settings, states=states, steps=done)
    pairs = Pairs(
        read_files(folder, [PAIRS], Preference),
        policy,
        template=prompts.load(recipe.prompts).answer,
        frames=FrameStore(job.frames).read,
        features=features,
    )
    known = _reference(folder, job, recipe, backend, pairs)
    if not job.reference_only:
        epochs = recipe.train.seed_epochs if job.round_index == 0 else recipe.train.epochs
        peak = floor.peak(policy.model.device, policy.model.dtype, override_tflops=recipe.train.peak_tflops)
        train(
            backend,
            pairs,
            known,
            settings=recipe.train,
            round_=Round(job.round_index, epochs, recipe.seed),
            hardware=Hardware(shape, peak),
            done=done,
            on_step=_Recorder(folder, backend, recipe, resumed, on_step),
        )
        _finish(folder, backend, _weights(weights, backend, recipe, originals))
    backend.close()


class _Recorder:
    """After each optimiser step: a line in the log, and a checkpoint when one is due."""

    def __init__(
        self,
        folder: Path,
        backend: Backend,
        recipe: Recipe,
        resumed: Checkpoint | None,
        on_step: Callable[[Entry], None],
    ) -> None:
        self._folder, self._backend, self._on_step = folder, backend, on_step
        self._seconds = 60 * recipe.train.checkpoint_minutes
        self._entries = list(resumed.log) if resumed else []
        self._saved = time.monotonic()
        if backend.rank == 0:
            text = "".join(json.dumps(entry) + "\n" for entry in self._entries)
            (folder / LOG).write_text(text, encoding="utf-8")

    def __call__(self, entry: Entry) -> None:
        self._entries.append(entry)
        if self._backend.rank == 0:
            with (self._folder / LOG).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(entry) + "\n")
        late = self._backend.rank == 0 and time.monotonic() - self._saved >= self._seconds
        if entry["step"] < entry["steps"] and self._backend.sum(torch.tensor([float(late)], dtype=torch.float64))[0]:
            checkpoint.save(self._folder / checkpoint.FOLDER, self._backend, self._entries)
            self._saved = time.monotonic()
        self._on_step(entry)


def _open_policy(job: Job, recipe: Recipe, *, distributed: bool) -> tuple[Policy, Mapping[str, Tensor]]:
    """The policy to train, and weights of it that are more exact than those it is held in."""
    dtype = recipe.model.dtype if distributed else "float32"
    start = Path(job.policy)
    originals: Mapping[str, Tensor] = {}
    if job.masters is not None:
        originals = Masters(Path(job.masters))
    elif distributed and (dtype != "float32" or recipe.train.lora_rank is not None):  # ranks may split the module's own
        exact = models.load(start, dtype="float32")
        originals = {name: p.detach() for name, p in exact.trainable(projector=recipe.train.projector).items()}
    device: str = recipe.model.device
    if distributed and device != "cpu" and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return models.load(start, dtype=dtype, device=device, cpu_threads=recipe.model.cpu_threads), originals


def _trained(policy: Policy, recipe: Recipe) -> dict[str, torch.nn.Parameter]:
    """Freezes what this recipe does not train; the rest by name."""
    settings = recipe.train
    if settings.lora_rank is not None:
        trained = lora.inject(policy, rank=settings.lora_rank, alpha=settings.lora_alpha)
        if settings.projector:
            trained |= {n: p for n, p in policy.model.named_parameters() if n.startswith(policy.family.PROJECTOR)}
    else:
        trained = policy.trainable(projector=settings.projector)
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(name in trained)
    return trained


def _states(resumed: Checkpoint | None, originals: Mapping[str, Tensor]) -> States:
    def state(name: str) -> State | None:
        if resumed is not None:
            return resumed.state(name)
        return State.fresh(originals[name]) if name in originals else None

    return state


def _reference(folder: Path, job: Job, recipe: Recipe, backend: Backend, pairs: Pairs) -> Reference:
    path = folder / reference.NAME
    if path.exists():
        return reference.load(path, policy=job.policy_digest, pairs=job.pairs_digest)
    made = reference.compute(
        backend,
        pairs,
        budget_tokens=recipe.train.micro_batch_tokens,
        max_bad_fraction=recipe.train.max_bad_fraction,
        progress=Progress(f"{title('train', job.round_index)}, reference", len(pairs), "pairs")
        if backend.rank == 0
        else lambda _: None,
    )
    if backend.rank == 0:
        reference.save(path, made, policy=job.policy_digest, pairs=job.pairs_digest)
    return made


def _finish(folder: Path, backend: Backend, trained: Iterator[tuple[str, Tensor]]) -> None:
    """Writes the trained weights, whole or not at all. Collective."""
    if backend.rank != 0:
        for _ in trained:
            pass
        return
    unfinished = folder / f"{MASTERS}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    masters.write(unfinished, trained)
    os.replace(unfinished, folder / MASTERS)


def _weights(
    weights: Mapping[str, torch.nn.Parameter], backend: Backend, recipe: Recipe, originals: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """What the next round starts from, fp32 by name. `weights`: of the language model, as they were named before the
    backend took the module over."""
    settings = recipe.train
    if settings.lora_rank is None:
        yield from ((name, state.master) for name, state in backend.states())
        return
    states = dict(backend.states())
    yield from lora.merged(weights, states, originals, rank=settings.lora_rank, alpha=settings.lora_alpha)
    yield from ((name, state.master) for name, state in states.items() if ".lora_" not in name)


def main() -> None:
    """`python -m isr_dpo.dpo.worker FOLDER`, on each rank of a torchrun start."""
    with launch.rank_of(Path(sys.argv[1])) as folder:
        run(folder)


if __name__ == "__main__":
    main()
