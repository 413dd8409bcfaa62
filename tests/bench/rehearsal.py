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
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.bench import dpo_step
from tests.bench.dpo_setup import SMALL, Sizes
from tests.bench.rehearsal_round import CACHE_BYTES, RUN_BYTES, has, train, weights_of
from tests.family_parts import Shape

PAIRS = 24
STATE_BYTES = 18
"""Of ours a trained weight: bf16, fp32 master and gradient, Adam's two moments."""
TRL_STATE_BYTES = 26
"""Of TRL's: fp32 weight, gradient, two moments and resident reference, bf16 copies of both under autocast."""
ACTIVATION_BYTES = 4.6e6 / 32
"""A token and layer at width 4096, without checkpointing."""
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
    if not has("trl"):
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


def _layers(
    gpu_bytes: int, state_bytes: int, tokens: int, *, fits: Callable[[Shape], bool] = lambda shape: True
) -> int:
    """How many of the 7B shape's layers the device holds, a twelfth of its memory left free."""
    from tests.families import VIDEO_LLAVA_7B

    for layers in range(VIDEO_LLAVA_7B.layers, 0, -1):
        shape = replace(VIDEO_LLAVA_7B, layers=layers)
        needed = weights_of(shape) * state_bytes + tokens * layers * ACTIVATION_BYTES + 3e9  # towers, workspace
        if needed < gpu_bytes * 11 / 12 and fits(shape):
            return layers
    raise SystemExit("rehearsal: not one layer fits; choose another device, or --small")


def _places(options: argparse.Namespace, shape: Shape) -> tuple[Path, Path] | None:
    """Where the run and the cache have room; None: nowhere."""
    scratch, weights = options.scratch or Path(tempfile.gettempdir()), weights_of(shape)
    free = shutil.disk_usage(scratch).free
    if free > weights * (RUN_BYTES + CACHE_BYTES):
        return scratch, scratch
    if free > weights * RUN_BYTES and MEMORY_DISK.is_dir():
        return (scratch, MEMORY_DISK) if shutil.disk_usage(MEMORY_DISK).free > weights * CACHE_BYTES else None
    return None


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
