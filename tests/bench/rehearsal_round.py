"""The round that the rehearsal runs: a run laid out around a random policy, and `train_step` on it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.bench.dpo_setup import Sizes
from tests.family_parts import Shape

BATCH_PAIRS = 8
RUN_BYTES, CACHE_BYTES, CHECKPOINT_BYTES = 8, 6, 12
"""On the disk: start, masters and policy in the run, masters and policy in the job's folder under the cache; a
checkpoint, in both."""


def weights_of(shape: Shape) -> int:
    layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate
    return shape.layers * layer + 2 * shape.vocabulary * shape.hidden


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def train(folder: Path, sizes: Sizes, options: argparse.Namespace) -> None:
    """One round in this process, and what it took."""
    import torch

    gpu = torch.cuda.is_available() and not options.small
    if gpu:  # one rank of a group of one, in this process: so it can be looked into
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    recipe, uri = _recipe(folder, sizes, options, gpu=gpu), str(folder / "run")
    seconds: dict[str, float] = {}
    with _timed(seconds, "build"):
        _lay_out(folder, recipe, uri, sizes, device="cuda" if gpu else "cpu")
    room = min(shutil.disk_usage(place).free for place in (folder, os.environ["ISR_DPO_CACHE"]))
    checkpoints = int(room > weights_of(sizes.shape) * (RUN_BYTES + CACHE_BYTES + 2 * CHECKPOINT_BYTES))
    if not checkpoints:
        print("rehearsal: too little disk for a checkpoint, three times the masters; none is written", flush=True)
    with _watched(seconds, checkpoints=checkpoints), _tracked(), _timed(seconds, "train step"):
        from isr_dpo.steps.inputs import inputs_of
        from isr_dpo.steps.train import train_step

        metrics = dict(train_step(recipe, inputs_of("train", recipe, uri, 0), uri, 0).metrics)
    _report(folder, sizes, seconds, metrics, gpu=gpu)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _recipe(folder: Path, sizes: Sizes, options: argparse.Namespace, *, gpu: bool) -> Any:
    from isr_dpo.config import Recipe

    if gpu and not has("deepspeed"):
        print("rehearsal: deepspeed is not installed; ZeRO stage 0", flush=True)
    settings = {
        "learning_rate": 5e-7,
        "seed_epochs": 1,
        "batch_pairs": BATCH_PAIRS if gpu else 2,
        "micro_batch_tokens": options.micro_batch_tokens,
        "gradient_checkpointing": options.checkpointing,
        "zero_stage": 2 if gpu and has("deepspeed") else 0,
        "checkpoint_minutes": 0,
    }
    device = "cuda" if gpu else "cpu"
    tree = {
        "name": "rehearsal",
        "model": {
            "start": str(folder / "start" / "policy"),
            "registered_name": "rehearsal",
            "dtype": "bfloat16",
            "device": device,
            "cpu_threads": options.threads,
        },
        "data": {"train": "unused", "sets": {"dev": "unused"}, "frames": sizes.shape.frames},
        "train": settings,
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    return Recipe.model_validate(tree)


def _lay_out(folder: Path, recipe: Any, uri: str, sizes: Sizes, *, device: str) -> None:
    """A run that has come as far as its seed DPO: policy-00, frames, dataset."""
    from isr_dpo import layout, outputs, start
    from isr_dpo.data.frames import FrameWriter, encode
    from isr_dpo.manifest import Origin
    from isr_dpo.outputs import Output
    from isr_dpo.records import to_jsonl
    from tests.bench.dpo_setup import clip, read_pairs, write

    write(folder / "start", sizes, device=device, dtype="bfloat16")
    outputs.alias(layout.policy(uri, 0), start.start_manifest(recipe))
    pairs, shards = read_pairs(folder / "start"), folder / "shards"
    shards.mkdir()
    writer = FrameWriter(shards, number=0)
    for pair in pairs:
        writer.add(pair.video, encode(clip(pair.video, sizes), sha256="0" * 64))
    writer.finish()

    def begin(where: str, kind: str, inputs: dict[str, str]) -> Output:
        out = outputs.begin(where, Origin(kind, "prepare", inputs, "", ""))
        assert isinstance(out, Output)
        return out

    frames = begin(layout.frames(uri), "frames", {})
    frames.put_folder(shards)
    dataset = begin(layout.dataset(uri), "dataset", {"frames": frames.seal(rows=len(pairs), deterministic=True).digest})
    dataset.write("seed-00000.jsonl", to_jsonl(pairs))
    dataset.seal(rows=len(pairs), deterministic=True)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


@contextmanager
def _watched(seconds: dict[str, float], *, checkpoints: int) -> Iterator[None]:
    """Times what the step does beside training; of the checkpoints that are due only the first ones are written."""
    from isr_dpo.dpo import checkpoint, masters, reference, step

    originals = [(reference, "compute"), (checkpoint, "save"), (masters, "write"), (step, "export")]
    kept = [(module, name, getattr(module, name)) for module, name in originals]
    left = [checkpoints]

    def watching(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "save":
                left[0] -= 1
                if left[0] < 0:
                    return None
            with _timed(seconds, name):
                return function(*args, **kwargs)

        return call

    for module, name, function in kept:
        setattr(module, name, watching(name, function))
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


@contextmanager
def _tracked() -> Iterator[None]:
    """Without mlflow the curves go nowhere."""
    if has("mlflow"):
        yield
        return
    print("rehearsal: mlflow is not installed; no curves", flush=True)
    from isr_dpo import live

    class Nowhere:
        def log(self, line: Any) -> None:
            pass

    shown, live.show = live.show, lambda *_, **__: nullcontext(Nowhere())  # type: ignore[assignment]
    try:
        yield
    finally:
        live.show = shown


def _report(folder: Path, sizes: Sizes, seconds: dict[str, float], metrics: dict[str, float], *, gpu: bool) -> None:
    import torch

    from tests.bench.dpo_child import peak_bytes

    log = folder / "run" / "round-00" / "training" / "log.jsonl"
    steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()][1:]  # the first one warms up
    middle = {key: statistics.median(step[key] for step in steps) for key in ("pairs_per_second", "mfu", "floor_ratio")}
    device = torch.cuda.get_device_name(0) if gpu else f"CPU, {torch.get_num_threads()} threads"
    known = {"compute": "reference", "save": "checkpoint", "write": "masters", "export": "export"}
    shown = {known.get(name, name): value for name, value in seconds.items()}
    print(
        f"{device}, torch {torch.__version__}: {weights_of(sizes.shape) / 1e9:.3f} B weights, {sizes.pairs} pairs\n"
        + "seconds: "
        + ", ".join(f"{name} {value:.1f}" for name, value in shown.items())
        + f"\nrehearsal pairs_per_second={middle['pairs_per_second']:.3f} mfu={middle['mfu']:.3f} "
        f"floor={middle['floor_ratio']:.2f} peak_gb={peak_bytes() / 1e9:.2f} "
        f"checkpoint_seconds={seconds.get('save', float('nan')):.1f} export_seconds={seconds['export']:.1f} "
        f"update_kept={metrics['update_kept']:.3f}",
        flush=True,
    )
