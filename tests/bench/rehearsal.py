"""One round of full-parameter training at the real size, on one device, through the step `train`.

    python -m tests.bench.rehearsal [--layers N] [--small] [--no-trl] ...

Builds a random Video-LLaVA of the 7B shape on the device (as many of its 32 layers as the device holds, unless told),
lays out a run around it, and runs `train_step` as a pipeline does: reference pass, AdamW on fp32 masters, checkpoint,
masters, export. Prints pairs/s, MFU, peak memory, seconds of checkpoint and export, and `update_kept`. Then TRL's
DPOTrainer takes its steps beside ours (tests.bench.dpo_step) at the largest size at which it fits too. On a CPU, or
with --small, the same at a small shape.

Needs the package with torch and transformers. What else is missing costs its part alone, and is said: deepspeed (ZeRO
stage 0 then, which needs none and holds the same on one device), mlflow (no curves), trl (nothing beside ours). Where
no registry can be reached, unpack the wheels that are missing into a folder and put it on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench import dpo_step
from tests.bench.dpo_setup import SMALL, Sizes
from tests.family_parts import Shape

PAIRS, BATCH_PAIRS = 24, 8
STATE_BYTES = 18
"""Of ours a trained weight: bf16, fp32 master and gradient, Adam's two moments."""
TRL_STATE_BYTES = 26
"""Of TRL's: fp32 weight, gradient, two moments and resident reference, bf16 copies of both under autocast."""
ACTIVATION_BYTES = 4.6e6 / 32
"""A token and layer at width 4096, without checkpointing."""
RUN_BYTES, CACHE_BYTES, CHECKPOINT_BYTES = 8, 6, 12
"""On the disk: start, masters and policy in the run, masters and policy in the job's folder under the cache; a
checkpoint, in both."""
MEMORY_DISK = Path("/dev/shm")
"""For the cache, where the disk is too small for both."""


def main() -> None:
    options = _options()
    if options.train_in:
        train(Path(options.train_in), _sizes(options), options)
        return
    gpu_bytes = _gpu_bytes() if not options.small else 0
    options.small = not gpu_bytes
    if gpu_bytes and options.layers is None:
        tokens = 0 if options.checkpointing else options.micro_batch_tokens
        options.layers = _layers(gpu_bytes, STATE_BYTES, tokens, fits=lambda shape: _places(options, shape) is not None)
    sizes = _sizes(options)
    print(f"rehearsal: {sizes.shape.layers} layers of width {sizes.shape.hidden}", flush=True)
    places = _places(options, sizes.shape)
    if places is None:
        raise SystemExit(f"rehearsal: no room for {RUN_BYTES + CACHE_BYTES} bytes a weight; choose another --scratch")
    with tempfile.TemporaryDirectory(dir=places[0]) as folder, tempfile.TemporaryDirectory(dir=places[1]) as cache:
        command = [sys.executable, "-m", "tests.bench.rehearsal", "--train-in", folder, *sys.argv[1:]]
        command += ["--layers", str(sizes.shape.layers)] + (["--small"] if options.small else [])
        subprocess.run(command, check=True, env={**os.environ, "ISR_DPO_CACHE": cache})
    if options.no_trl:
        return
    if not _has("trl"):
        print("rehearsal: trl is not installed, so nothing runs beside ours")
        return
    beside(sizes, options, layers=_layers(gpu_bytes, TRL_STATE_BYTES, tokens=0) if gpu_bytes else None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="of the 7B shape's 32; default: what the device holds")
    parser.add_argument("--trl-layers", type=int, help="of the comparison with TRL; default: what the device holds")
    parser.add_argument("--micro-batch-tokens", type=int, default=2500, help="packed into one forward pass: one pair")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--scratch", type=Path, help="folder for the run; default: the temporary folder")
    parser.add_argument("--repeats", type=int, default=3, help="steps of TRL's and ours side by side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="on a CPU")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--small", action="store_true", help="a small shape; always so on a CPU")
    parser.add_argument("--train-in", help=argparse.SUPPRESS)
    return parser.parse_args()


def _sizes(options: argparse.Namespace) -> Sizes:
    if options.small:
        return replace(SMALL, pairs=6)
    from tests.families import VIDEO_LLAVA_7B

    return Sizes(shape=replace(VIDEO_LLAVA_7B, layers=options.layers), pairs=PAIRS)


def _gpu_bytes() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def _weights(shape: Shape) -> int:
    layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate
    return shape.layers * layer + 2 * shape.vocabulary * shape.hidden


def _layers(
    gpu_bytes: int, state_bytes: int, tokens: int, *, fits: Callable[[Shape], bool] = lambda shape: True
) -> int:
    """How many of the 7B shape's layers the device holds, a twelfth of its memory left free."""
    from tests.families import VIDEO_LLAVA_7B

    for layers in range(VIDEO_LLAVA_7B.layers, 0, -1):
        shape = replace(VIDEO_LLAVA_7B, layers=layers)
        needed = _weights(shape) * state_bytes + tokens * layers * ACTIVATION_BYTES + 3e9  # towers, workspace
        if needed < gpu_bytes * 11 / 12 and fits(shape):
            return layers
    raise SystemExit("rehearsal: not one layer fits; choose another device, or --small")


def _places(options: argparse.Namespace, shape: Shape) -> tuple[Path, Path] | None:
    """Where the run and the cache have room; None: nowhere."""
    scratch, weights = options.scratch or Path(tempfile.gettempdir()), _weights(shape)
    free = shutil.disk_usage(scratch).free
    if free > weights * (RUN_BYTES + CACHE_BYTES):
        return scratch, scratch
    if free > weights * RUN_BYTES and MEMORY_DISK.is_dir():
        return (scratch, MEMORY_DISK) if shutil.disk_usage(MEMORY_DISK).free > weights * CACHE_BYTES else None
    return None


def _has(module: str) -> bool:
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
    checkpoints = int(room > _weights(sizes.shape) * (RUN_BYTES + CACHE_BYTES + 2 * CHECKPOINT_BYTES))
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

    if gpu and not _has("deepspeed"):
        print("rehearsal: deepspeed is not installed; ZeRO stage 0", flush=True)
    settings = {
        "learning_rate": 5e-7,
        "seed_epochs": 1,
        "batch_pairs": BATCH_PAIRS if gpu else 2,
        "micro_batch_tokens": options.micro_batch_tokens,
        "gradient_checkpointing": options.checkpointing,
        "zero_stage": 2 if gpu and _has("deepspeed") else 0,
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
    from isr_dpo import layout, manifest, preflight
    from isr_dpo.data.frames import FrameWriter, encode
    from isr_dpo.manifest import Origin, Output
    from isr_dpo.records import to_jsonl
    from tests.bench.dpo_setup import clip, read_pairs, write

    write(folder / "start", sizes, device=device, dtype="bfloat16")
    manifest.alias(layout.policy(uri, 0), preflight.start_manifest(recipe))
    pairs, shards = read_pairs(folder / "start"), folder / "shards"
    shards.mkdir()
    writer = FrameWriter(shards, number=0)
    for pair in pairs:
        writer.add(pair.video, encode(clip(pair.video, sizes), sha256="0" * 64))
    writer.finish()

    def begin(where: str, kind: str, inputs: dict[str, str]) -> Output:
        out = manifest.begin(where, Origin(kind, "prepare", inputs, "", ""))
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
    if _has("mlflow"):
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
        f"{device}, torch {torch.__version__}: {_weights(sizes.shape) / 1e9:.3f} B weights, {sizes.pairs} pairs\n"
        + "seconds: "
        + ", ".join(f"{name} {value:.1f}" for name, value in shown.items())
        + f"\nrehearsal pairs_per_second={middle['pairs_per_second']:.3f} mfu={middle['mfu']:.3f} "
        f"floor={middle['floor_ratio']:.2f} peak_gb={peak_bytes() / 1e9:.2f} "
        f"checkpoint_seconds={seconds.get('save', float('nan')):.1f} export_seconds={seconds['export']:.1f} "
        f"update_kept={metrics['update_kept']:.3f}",
        flush=True,
    )


def beside(sizes: Sizes, options: argparse.Namespace, *, layers: int | None) -> None:
    """TRL's step and ours, one side after the other."""
    layers = options.trl_layers or layers or sizes.shape.layers
    sizes = replace(sizes, shape=replace(sizes.shape, layers=layers), pairs=2)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        dpo_step.draw(Path(folder), sizes)
        sides = dpo_step.measure(
            Path(folder),
            repeats=options.repeats,
            micro_batch_pairs=1,
            threads=options.threads,
            together=False,
        )
    print(dpo_step.report(sides, sizes, micro_batch_pairs=1, gpu=sides["trl"].facts["gpu"]))


if __name__ == "__main__":
    main()
