"""One round's training, from folders to folders: loads, trains, writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from isr_dpo import models, prompts
from isr_dpo.config import Recipe
from isr_dpo.dpo.trainer import Frames, Pairs, Reference, metrics, reference_logps, train
from isr_dpo.models import Policy
from isr_dpo.progress import Progress
from isr_dpo.records import Preference


def train_policy(
    recipe: Recipe,
    rows: Sequence[Preference],
    *,
    start: Path,
    initial: Path | None,
    frames: Frames,
    round_index: int,
    folder: Path,
) -> dict[str, float]:
    """Trains the policy in `start` on `rows`; writes `folder/policy` (the new policy) and `folder/training` (log.jsonl,
    a line an optimiser step, and reference.safetensors, the reference log-probs [N] by pair). Returns the metrics.

    `initial` (policy-01) gives the reference log-probs where train.reference is `initial`.
    """
    template = prompts.load(recipe.prompts).answer
    pairs = Pairs(rows, template=template, frames=frames)
    settings = recipe.train
    epochs = settings.seed_epochs if round_index == 0 else settings.epochs
    title = "seed DPO" if round_index == 0 else f"train, round {round_index}"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(recipe.seed)
    reference = _reference(recipe, pairs, initial, title) if initial is not None else None
    policy = _load(recipe, start)
    if reference is None:
        reference = _log_probs(recipe, policy, pairs, title)
    progress = Progress(title, len(pairs) * epochs, "pairs")
    trained = train(
        policy,
        pairs,
        reference,
        settings=settings,
        epochs=epochs,
        seed=recipe.seed,
        round_index=round_index,
        progress=progress,
    )
    policy.model.save_pretrained(folder / "policy")
    policy.processor.save_pretrained(folder / "policy")
    training = folder / "training"
    training.mkdir(parents=True)
    save_file({"chosen": reference.chosen, "rejected": reference.rejected}, training / "reference.safetensors")
    (training / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in trained.log), encoding="utf-8")
    return metrics(trained.log, pairs=len(pairs), seconds=trained.seconds)


def _reference(recipe: Recipe, pairs: Pairs, initial: Path, title: str) -> Reference:
    return _log_probs(recipe, _load(recipe, initial), pairs, title)


def _log_probs(recipe: Recipe, policy: Policy, pairs: Pairs, title: str) -> Reference:
    progress = Progress(f"{title}, reference", len(pairs), "pairs")
    return reference_logps(policy, pairs, micro_batch_pairs=recipe.train.micro_batch_pairs, progress=progress)


def _load(recipe: Recipe, folder: Path) -> Policy:
    return models.load(folder, dtype="float32", device=recipe.model.device, cpu_threads=recipe.model.cpu_threads)
