"""Job folders for the trainer: a tiny policy, its frames, pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from isr_dpo.config import Recipe
from isr_dpo.data.frames import FrameWriter, encode
from isr_dpo.dpo import step
from isr_dpo.dpo.trainer import Entry
from isr_dpo.dpo.worker import PAIRS, Job
from isr_dpo.records import Preference, to_jsonl
from tests.dpo.ordinary import MORE
from tests.tiny import clip

TRAIN = {"learning_rate": 1e-3, "beta": 0.2, "batch_pairs": 2, "micro_batch_tokens": 150, "warmup_fraction": 0.25}


def recipe_of(*, dtype: str = "float32", **train: Any) -> Recipe:
    """A recipe for one process on a CPU, two epochs over nine pairs: ten optimiser steps."""
    tree = {
        "name": "job",
        "seed": 3,
        "prompts": "world",
        "model": {"start": "unused", "registered_name": "job", "device": "cpu", "dtype": dtype, "cpu_threads": 1},
        "data": {"train": "unused", "sets": {"dev": "unused"}},
        "train": {**TRAIN, "epochs": 2, "cache_features": False, "peak_tflops": 0.01, **train},
    }
    return Recipe.model_validate(tree)


def frames_in(folder: Path) -> Path:
    """A frame store of the clips that the pairs are about."""
    folder.mkdir(parents=True)
    writer = FrameWriter(folder, number=0)
    for key in sorted({row.video for row in MORE}):
        writer.add(key, encode(clip(key), sha256="0" * 64))
    writer.finish()
    return folder


def job_of(
    folder: Path, recipe: Recipe, *, policy: Path, frames: Path, rows: Sequence[Preference] = MORE, **fields: Any
) -> Job:
    """A job in `folder`, its pairs written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAIRS).write_bytes(to_jsonl(rows))
    given = {
        "recipe": recipe.canonical(),
        "round_index": 1,
        "policy": str(policy),
        "masters": None,
        "frames": str(frames),
        "features": None,
        "policy_digest": "p" * 64,
        "pairs_digest": "q" * 64,
    }
    job = Job(**{**given, **fields})
    job.write(folder)
    return job


def trained(
    folder: Path, recipe: Recipe, job: Job, *, on_step: Callable[[Entry], None] = lambda _: None
) -> dict[str, float]:
    """Runs the job and exports its policy; the metrics."""
    step.train_round(folder, recipe, job, on_step=on_step)
    return step.export(folder, recipe, job)
