"""The step train against its store: killed and restarted, told to stop, given another's checkpoint, out of masters."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isr_dpo import layout, manifest, outputs
from isr_dpo.config import Recipe
from isr_dpo.errors import CorruptOutput, DataError, StaleOutput
from isr_dpo.steps import run_step
from isr_dpo.steps.inputs import inputs_of
from isr_dpo.steps.train_machine import Machine
from isr_dpo.stores import open_store, read_bytes, surveyed, write_bytes
from tests.loop import recipe_for, run_loop

PROGRAM = """
import sys
from isr_dpo import config
from isr_dpo.progress import speak
from isr_dpo.steps import run_step
from isr_dpo.steps.inputs import inputs_of
speak()
recipe = config.parse(sys.argv[1])
run_step("train", recipe, inputs_of("train", recipe, sys.argv[2], 0), sys.argv[2], 0)
"""
GRACE_SECONDS = 15
"""Of a spot machine's pod between SIGTERM and SIGKILL."""
SEED = {"learning_rate": 1e-3, "batch_pairs": 1, "seed_epochs": 5, "checkpoint_minutes": 0}  # 20 steps


@pytest.fixture(scope="module")
def recipe(model: Path, world: Path, tracking: str) -> Recipe:
    return recipe_for(model, world, tracking, train=SEED)


@pytest.fixture(scope="module")
def prepared(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its dataset, not to be changed."""
    run = tmp_path_factory.mktemp("prepared") / "run"
    run_loop(recipe, str(run), until=("prepare", 0))
    return run


@pytest.fixture
def run(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy to train in, on a machine with nothing in its cache."""
    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    copy = tmp_path / "run"
    shutil.copytree(prepared, copy)
    return str(copy)


def train(recipe: Recipe, run: str) -> manifest.Manifest:
    return run_step("train", recipe, inputs_of("train", recipe, run, 0), run, 0).manifest


def start(recipe: Recipe, run: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, recipe.canonical(), run]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def checkpoints(run: str) -> list[Path]:
    """The complete ones in the store."""
    return sorted(path.parent for path in Path(run, "round-00", "training", "checkpoints").glob("*/manifest.json"))


def started_until(recipe: Recipe, run: str, step: int) -> subprocess.Popen[str]:
    """A training process that has brought the checkpoint of `step` to the store."""
    process = start(recipe, run)
    while not any(path.name >= f"step-{step:06d}" for path in checkpoints(run)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("disk", ["the same", "another"])
def test_killed_again_and_again_it_ends_with_the_same_policy(
    recipe: Recipe, run: str, tmp_path: Path, disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shutil.copytree(run, tmp_path / "whole")
    expected = train(recipe, str(whole))
    for step in (2, 9):
        process = started_until(recipe, run, step)
        process.kill()
        process.communicate()
        assert 1 <= len(checkpoints(run)) <= 3  # a new one stands before the third is removed
        if disk == "another":
            monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / f"cache-{step}"))
    last = start(recipe, run)
    printed = last.communicate()[0]
    assert last.returncode == 0, printed
    (went_on,) = (line for line in printed.splitlines() if "going on from step" in line)
    assert int(went_on.rpartition(" ")[2]) >= 9
    made = manifest.find(layout.policy(run, 1))
    assert made is not None
    assert made.digest == expected.digest
    assert not checkpoints(run)
    assert not any(manifest.cache_folder().glob("train/*"))
    log = Path(run, "round-00", "training", "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, 21))


def test_told_to_stop_it_exits_within_seconds_and_writes_nothing_large(recipe: Recipe, run: str) -> None:
    process = started_until(recipe, run, 2)
    before = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert time.monotonic() - before < GRACE_SECONDS
    assert process.returncode != 0
    assert manifest.find(layout.policy(run, 1)) is None


def test_another_recipes_checkpoint_is_refused_by_name(recipe: Recipe, run: str) -> None:
    process = started_until(recipe, run, 2)
    process.kill()
    process.communicate()
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"beta": 0.3})})
    with pytest.raises(StaleOutput, match=r"step-\d+: a checkpoint of another round .* the recipe keys of step train"):
        train(other, run)
    faster = recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch_tokens": 64})})
    train(faster, run)  # how it is computed may change, what is computed may not


def test_a_policy_that_is_complete_is_closed_after_a_kill(recipe: Recipe, run: str) -> None:
    train(recipe, run)
    uri = layout.round_output(run, 0, "training")
    store, made = open_store(uri), manifest.find(uri)
    assert made is not None
    store.delete(f"{uri}/manifest.json")  # as a kill between the two manifests leaves it
    Path(run, "round-00", "training", "unfinished.json").write_text(
        json.dumps({**vars(made.origin), "inputs": dict(made.inputs)}, sort_keys=True) + "\n"
    )
    left = Path(run, "round-00", "training", "checkpoints", "step-000020")
    left.mkdir(parents=True)
    (left / "state.json").write_text("{}")
    job = Machine(recipe, inputs_of("train", recipe, run, 0), run, 0).folder
    (job / "masters").mkdir(parents=True)
    train(recipe, run)
    closed = manifest.find(uri)
    assert closed is not None
    assert closed.digest == made.digest
    assert not left.exists()
    assert not job.exists()


def test_a_policy_that_is_complete_loses_the_markers_of_an_attempt_killed_as_it_sealed(
    recipe: Recipe, run: str
) -> None:
    train(recipe, run)
    markers = [Path(run, place, "unfinished.json") for place in ("policy-01", "round-00/training")]
    for marker in markers:
        marker.write_text("{}")
    train(recipe, run)
    assert not any(marker.exists() for marker in markers)


def test_a_reference_is_fetched_whole_or_not_at_all(
    recipe: Recipe, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = started_until(recipe, run, 1)
    process.kill()
    process.communicate()
    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "another"))
    reference = Path(run, "round-00", "training", "reference.safetensors").read_bytes()
    write = Path.write_bytes

    def cut(path: Path, content: bytes) -> int:
        if content != reference:
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", cut)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, run)
    folder = Machine(recipe, inputs_of("train", recipe, run, 0), run, 0).folder
    assert (folder / "pairs.jsonl").exists()
    assert not (folder / "reference.safetensors").exists()


@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_a_checkpoint_is_fetched_whole_or_not_at_all_and_takes_its_room_once(
    recipe: Recipe, run_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    machine = Machine(recipe, {}, run_uri, 0)
    uri = f"{machine.checkpoints}/step-000003"
    output = outputs.begin(uri, manifest.Origin("checkpoint", "train", {}, "", ""))
    assert isinstance(output, outputs.Output)
    files = {"masters-00-00001.safetensors": b"weights", "state.json": b"{}"}
    for name, content in files.items():
        output.write(name, content)
    made = output.seal(rows=0, deterministic=True)
    write_bytes(f"{uri}/state.json", b"[]")
    with pytest.raises(CorruptOutput, match=r"state.json was altered"):
        machine.fetch_checkpoint(uri, made)
    assert machine.local_checkpoints() == []
    write_bytes(f"{uri}/state.json", b"{}")
    machine.fetch_checkpoint(uri, made)
    assert machine.local_checkpoints() == ["step-000003"]
    standing = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path.name: path.read_bytes() for path in standing} == files
    assert len(standing) == len(files)


@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_masters_stand_for_the_newest_policy_alone(
    model: Path, world: Path, tracking: str, tmp_path: Path, run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    recipe = recipe_for(model, world, tracking)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "bfloat16"})})
    run_loop(recipe, run_uri)
    assert surveyed.folders(f"{run_uri}/masters") == ["policy-03"]
    made = manifest.find(layout.masters(run_uri, 3))
    policy = manifest.find(layout.policy(run_uri, 3))
    assert made is not None
    assert policy is not None
    assert made.inputs == policy.inputs
    copies = [path.parent.name for path in (tmp_path / "cache").glob("*/masters*")]
    assert set(copies) <= {made.digest}, "no copy outlives what it is a copy of"
    metrics = json.loads(read_bytes(f"{run_uri}/round-02/training/metrics.json"))
    assert 0 < metrics["update_kept"] < 1
    for name in ("policy-03", "round-02/training", "masters"):
        open_store(run_uri).delete(f"{run_uri}/{name}")
    with pytest.raises(DataError, match=r"masters/policy-02 is gone: .* train.allow_rounded_start=true"):
        run_step("train", recipe, inputs_of("train", recipe, run_uri, 2), run_uri, 2)
    accepted = recipe.model_copy(update={"train": recipe.train.model_copy(update={"allow_rounded_start": True})})
    run_step("train", accepted, inputs_of("train", accepted, run_uri, 2), run_uri, 2)
