"""Rounds follow one another: masters, adapters, the reference of the first round."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isr_dpo import models
from isr_dpo.config import Recipe
from isr_dpo.dpo import checkpoint, lora, step
from isr_dpo.dpo.backend import State
from isr_dpo.dpo.batch import Pairs
from isr_dpo.dpo.forward import SharedPrefix
from isr_dpo.dpo.masters import Masters
from isr_dpo.dpo.worker import LOG, MASTERS
from isr_dpo.errors import CorruptOutput, StaleOutput
from tests.dpo.jobs import frames_in, job_of, recipe_of, trained
from tests.dpo.ordinary import MORE, TEMPLATE
from tests.tiny import clip, make_policy


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return frames_in(tmp_path_factory.mktemp("frames") / "store")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy stored in bf16: fp32 holds it exactly."""
    policy = models.load(make_policy(tmp_path_factory.mktemp("tiny")), dtype="bfloat16")
    folder = tmp_path_factory.mktemp("start")
    models.save(policy, folder)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in models.load(folder, dtype="float32").trainable().items()}


def three_rounds(folder: Path, recipe: Recipe, start: Path, frames: Path, *, masters: bool) -> list[dict[str, float]]:
    """Three rounds on the same pairs, each from the last one's export or masters; their metrics."""
    policy, held, found = start, None, []
    for index in (1, 2, 3):
        here = folder / str(index)
        job = job_of(here, recipe, policy=policy, frames=frames, masters=held, round_index=index)
        step.check_masters(job)
        found.append(trained(here, recipe, job))
        policy, held = here / step.POLICY, str(here / MASTERS) if masters else None
    return found


def test_bf16_policies_lose_small_updates_unless_masters_travel(start: Path, frames: Path, tmp_path: Path) -> None:
    small = {"learning_rate": 5e-7}
    exact = three_rounds(tmp_path / "fp32", recipe_of(**small), start, frames, masters=False)
    rounded = recipe_of(dtype="bfloat16", **small)
    held = three_rounds(tmp_path / "held", rounded, start, frames, masters=True)
    three_rounds(tmp_path / "lost", rounded, start, frames, masters=False)
    before, wanted = weights(start), weights(tmp_path / "fp32" / "3" / step.POLICY)
    masters = Masters(tmp_path / "held" / "3" / MASTERS)
    assert all(torch.equal(masters[name], wanted[name]) for name in wanted)  # nothing is lost
    moved = math.sqrt(sum(float((wanted[n] - before[n]).square().sum()) for n in wanted))
    after = weights(tmp_path / "lost" / "3" / step.POLICY)
    kept = math.sqrt(sum(float((after[n] - before[n]).square().sum()) for n in wanted))
    ahead = sum(float(((after[n] - before[n]) * (wanted[n] - before[n])).sum()) for n in wanted) / moved**2
    assert ahead < 0.6  # of the way that three rounds make, although
    assert kept > 0  # some weights jump by a whole bf16 step
    assert [metrics["update_kept"] for metrics in exact] == [1, 1, 1]
    assert all(0 < metrics["update_kept"] < 0.6 for metrics in held)


def test_masters_of_another_policy_are_refused(start: Path, frames: Path, tmp_path: Path) -> None:
    recipe = recipe_of(dtype="bfloat16")
    job = job_of(tmp_path, recipe, policy=start, frames=frames)
    trained(tmp_path, recipe, job)
    mixed = replace(job, masters=str(tmp_path / MASTERS))  # of the policy that came of `start`
    with pytest.raises(StaleOutput, match="is not the policy's"):
        step.check_masters(mixed)
    step.check_masters(replace(mixed, policy=str(tmp_path / step.POLICY)))


def test_adapters_train_and_are_merged_into_the_policy(start: Path, frames: Path, tmp_path: Path) -> None:
    recipe = recipe_of(lora_rank=4, lora_alpha=8, learning_rate=3e-3, epochs=4)
    job = job_of(tmp_path, recipe, policy=start, frames=frames)
    metrics = trained(tmp_path, recipe, job)
    assert metrics["loss_first"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["margin"] > 0.05
    before, after = weights(start), weights(tmp_path / step.POLICY)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        difference = weight - before[name]
        linear = ".layers." in name and weight.ndim == 2
        assert bool(difference.any()) is linear, name
        if linear:
            assert torch.linalg.matrix_rank(difference, rtol=1e-3) <= 4
    assert not any("lora" in name for name in models.load(tmp_path / step.POLICY).model.state_dict())


def test_the_merged_weights_say_what_the_adapters_said(start: Path) -> None:
    policy, plain_policy = (models.load(start) for _ in range(2))
    adapters = lora.inject(policy, rank=3, alpha=6)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.normal_(std=0.1)
    states = {name: State.fresh(parameter.detach()) for name, parameter in adapters.items()}
    merged = dict(lora.merged(policy.trainable(), states, {}, rank=3, alpha=6))
    assert merged.keys() == plain_policy.trainable().keys()
    plain_policy.model.load_state_dict(merged, strict=False)
    with torch.no_grad():
        ours, theirs = (
            torch.stack(SharedPrefix(p)(Pairs(MORE, p, template=TEMPLATE, frames=clip).batch(range(9))))
            for p in (policy, plain_policy)
        )
        before = models.load(start)
        untouched = torch.stack(
            SharedPrefix(before)(Pairs(MORE, before, template=TEMPLATE, frames=clip).batch(range(9)))
        )
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours - untouched).abs().max() > 0.1


def test_the_reference_of_the_first_policy_is_kept_for_later_rounds(start: Path, frames: Path, tmp_path: Path) -> None:
    recipe = recipe_of(reference="initial")
    other = make_policy(tmp_path / "other", seed=1)
    job = job_of(tmp_path / "job", recipe, policy=other, frames=frames)
    step.train_round(tmp_path / "job", recipe, replace(job, policy=str(start), reference_only=True))
    assert not (tmp_path / "job" / MASTERS).exists()
    log: list[dict[str, float]] = []
    step.train_round(tmp_path / "job", recipe, job, on_step=log.append)
    assert abs(log[0]["loss"] - math.log(2)) > 1e-3  # the policy is not its own reference


@pytest.mark.parametrize("at", [1, 4, 9])
def test_a_restart_at_any_step_ends_with_the_same_weights(start: Path, frames: Path, tmp_path: Path, at: int) -> None:
    recipe = recipe_of(checkpoint_minutes=0)

    class Killed(BaseException):
        pass

    def kill(entry: dict[str, float]) -> None:
        if entry["step"] == at:
            raise Killed

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    trained(whole, recipe, job_of(whole, recipe, policy=start, frames=frames))
    job = job_of(killed, recipe, policy=start, frames=frames)
    with pytest.raises(Killed):
        step.train_round(killed, recipe, job, on_step=kill)
    assert len(checkpoint.found(killed / checkpoint.FOLDER)) == min(at, 2)
    seen: list[float] = []
    trained(killed, recipe, job, on_step=lambda entry: seen.append(entry["step"]))
    assert seen == list(range(at + 1, 11))  # what was done is not done again
    ours, theirs = weights(killed / step.POLICY), weights(whole / step.POLICY)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = [json.loads(line) for line in (killed / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["loss"] for line in lines] == [json.loads(x)["loss"] for x in (whole / LOG).read_text().splitlines()]


def test_a_checkpoint_without_its_state_is_named(start: Path, frames: Path, tmp_path: Path) -> None:
    recipe = recipe_of()
    job = job_of(tmp_path, recipe, policy=start, frames=frames)
    (tmp_path / checkpoint.FOLDER / "step-000003").mkdir(parents=True)
    with pytest.raises(CorruptOutput, match=r"step-000003: not a checkpoint"):
        step.train_round(tmp_path, recipe, job)


def test_one_process_on_a_cpu_never_loads_deepspeed(start: Path, frames: Path, tmp_path: Path) -> None:
    recipe = recipe_of(epochs=1)
    job_of(tmp_path, recipe, policy=start, frames=frames)
    program = (
        "import sys; from pathlib import Path; from isr_dpo import config; from isr_dpo.dpo import step, worker\n"
        f"folder = Path({str(tmp_path)!r}); job = worker.Job.read(folder); recipe = config.parse(job.recipe)\n"
        "step.train_round(folder, recipe, job); step.export(folder, recipe, job)\n"
        "assert 'deepspeed' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / step.POLICY / "model.safetensors").is_file()
