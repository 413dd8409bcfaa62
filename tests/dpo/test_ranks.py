"""One rank or two: the same training. Each start of two ranks costs many seconds of imports, so there are few."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isr_dpo import models
from isr_dpo.config import Recipe
from isr_dpo.dpo import checkpoint, launch, step
from isr_dpo.dpo.checkpoint import Checkpoint
from isr_dpo.dpo.masters import Masters
from isr_dpo.dpo.plan import optimiser_batches
from isr_dpo.dpo.trainer import Entry
from isr_dpo.dpo.worker import LOG, MASTERS
from isr_dpo.errors import DataError
from tests.dpo.jobs import frames_in, job_of, recipe_of
from tests.dpo.ordinary import MORE, loop
from tests.tiny import clip, make_policy


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return frames_in(tmp_path_factory.mktemp("frames") / "store")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("tiny"))


def log_of(folder: Path) -> list[Entry]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def first_gradient(folder: Path) -> dict[str, Tensor]:
    """After one step Adam's first moment is a tenth of the gradient."""
    first = Checkpoint(folder / checkpoint.FOLDER / "step-000001", 1, [])
    names = [name.removeprefix("master/") for name in Masters(first.folder) if name.startswith("master/")]
    states = {name: first.state(name) for name in names}
    return {name: state.exp_avg / 0.1 for name, state in states.items() if state is not None}


def ran(folder: Path, recipe: Recipe, start: Path, frames: Path, *, ranks: int) -> Path:
    job_of(folder, recipe, policy=start, frames=frames)
    if ranks > 1:
        launch.launch(folder, ranks=ranks, on_line=lambda _: None, worker="tests.dpo.keep_all_worker")
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "KEPT", 1000)
            step.worker.run(folder)
    return folder


@pytest.fixture(scope="module")
def one(start: Path, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("one"), recipe_of(checkpoint_minutes=0), start, frames, ranks=1)


def far(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative difference over all parameters together."""
    assert found.keys() == wanted.keys()
    difference = torch.cat([(found[n] - wanted[n]).flatten() for n in wanted])
    return float(difference.norm() / torch.cat([w.flatten() for w in wanted.values()]).norm())


def test_one_process_agrees_with_twenty_lines(one: Path, start: Path) -> None:
    recipe, policy = recipe_of(), models.load(start)
    batches = optimiser_batches(range(len(MORE)), batch_pairs=2, epochs=2, seed=3, round_index=1)
    losses, gradient = loop(policy, MORE, batches, recipe.train, clip)
    assert [entry["loss"] for entry in log_of(one)] == pytest.approx(losses, abs=1e-4)
    assert far(first_gradient(one), gradient) <= 1e-5


def test_two_ranks_agree_with_one(one: Path, start: Path, frames: Path, tmp_path: Path) -> None:
    recipe = recipe_of(checkpoint_minutes=0, ranks=2, zero_stage=2)
    two = ran(tmp_path / "two", recipe, start, frames, ranks=2)
    ours, theirs = log_of(two), log_of(one)
    assert [entry["step"] for entry in ours] == list(range(1, 11))
    assert [entry["loss"] for entry in ours] == pytest.approx([entry["loss"] for entry in theirs], abs=1e-4)
    assert [entry["grad_norm"] for entry in ours] == pytest.approx([e["grad_norm"] for e in theirs], rel=1e-3)
    assert far(first_gradient(two), first_gradient(one)) <= 1e-5
    assert far(dict(Masters(two / MASTERS)), dict(Masters(one / MASTERS))) <= 1e-4


def test_two_ranks_go_on_from_one_ranks_checkpoint(one: Path, start: Path, frames: Path, tmp_path: Path) -> None:
    recipe = recipe_of(checkpoint_minutes=0, ranks=2, zero_stage=3)
    folder = tmp_path / "resumed"
    job = job_of(folder, recipe, policy=start, frames=frames)
    for name in ("reference.safetensors", "checkpoints/step-000006"):
        (shutil.copytree if (one / name).is_dir() else shutil.copy)(one / name, folder / name)
    seen: list[Entry] = []
    step.train_round(folder, recipe, job, on_step=seen.append)
    assert [entry["step"] for entry in seen][-4:] == [7, 8, 9, 10]
    assert [entry["loss"] for entry in log_of(folder)] == pytest.approx([e["loss"] for e in log_of(one)], abs=1e-4)


def test_bad_pairs_are_named(start: Path, frames: Path, tmp_path: Path) -> None:
    recipe = recipe_of()
    one_sided = [*MORE[:3], MORE[3].model_copy(update={"rejected": " "}), *MORE[4:]]
    bad = job_of(tmp_path / "bad", recipe, policy=start, frames=frames, rows=one_sided)
    with pytest.raises(
        DataError, match=r"1 of 9 pairs cannot be trained on.*\n  pair q3: the rejected response is emp"
    ):
        step.train_round(tmp_path / "bad", recipe, bad)


def test_adapters_on_two_ranks_that_split_the_weights_agree_with_one(start: Path, frames: Path, tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        recipe = recipe_of(lora_rank=4, ranks=ranks, zero_stage=3, checkpoint_minutes=60)
        folder = tmp_path / str(ranks)
        step.train_round(folder, recipe, job_of(folder, recipe, policy=start, frames=frames))
        found.append(dict(Masters(folder / MASTERS)))
    assert far(found[1], found[0]) <= 1e-5
    before = models.load(start).trainable()
    moved = {name: weight - before[name].detach() for name, weight in found[0].items()}
    difference = {name: found[1][name] - found[0][name] for name in moved}
    norms = [torch.cat([t.flatten() for t in tensors.values()]).norm() for tensors in (difference, moved)]
    assert norms[1] > 0
    assert norms[0] / norms[1] <= 1e-3
