"""How long a 7B takes: `python -m tests.bench.convert [--kind bin] [--folder DIR]`.

Writes a checkpoint in the original layout with random numbers, of the published sizes (Vicuna-7B, two ViT-L/14 towers,
attention over time, fp16, shards of 5 GB), converts it with `isr-dpo models convert` in a process of its own, prints
its time and peak memory as one line, and deletes both. Twice the weights' size must be free: 32 GB.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from isr_dpo.models.folder import check
from tests.models.convert.original_layout import Original, train_tokenizer

FULL = Original(
    vocabulary=32000,
    hidden=4096,
    intermediate=11008,
    layers=32,
    heads=32,
    kv_heads=32,
    vision_hidden=1024,
    vision_intermediate=4096,
    vision_layers=24,
    vision_heads=16,
    pixels=224,
    time=True,
    dtype=torch.float16,
)
"""LLaVA-Hound's sizes [C]."""
SHARD_BYTES = 5_000_000_000
NAMES = {"bin": ("pytorch_model", "bin"), "safetensors": ("model", "safetensors")}


@dataclass(frozen=True)
class Cost:
    """Of one process. `resident_gb` counts the pages of mapped files, `own_gb` does not."""

    seconds: float
    resident_gb: float
    own_gb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=NAMES, default="safetensors")
    parser.add_argument("--folder", type=Path, help="where 32 GB are free (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        source, policy = Path(scratch) / "source", Path(scratch) / "policy"
        write(source, FULL, options.kind)
        size = sum(path.stat().st_size for path in source.iterdir()) / 1e9
        cost = measured([sys.executable, "-m", "isr_dpo.cli", "models", "convert", str(source), str(policy)])
        check(policy)
    print(
        f"convert {options.kind}, {size:.1f} GB: {cost.seconds:.0f} s, peak {cost.resident_gb:.1f} GB resident, "
        f"{cost.own_gb:.1f} GB of it its own and the rest mapped files"
    )


def write(folder: Path, original: Original, kind: str, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a checkpoint with random numbers, a shard in memory at a time."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(original.config()))
    train_tokenizer(folder, size=original.vocabulary, sentences=sentences(original.vocabulary))
    parts = list(_parts(original, shard_bytes))
    stem, ending = NAMES[kind]
    places = {}
    for number, names in enumerate(parts, start=1):
        file = f"{stem}-{number:05d}-of-{len(parts):05d}.{ending}"
        part = {name: _random(original, name) for name in names}
        if kind == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def sentences(vocabulary: int) -> list[str]:
    """Of made-up words, enough for SentencePiece to find so many pieces."""
    draw = random.Random(0)
    syllables = [first + second for first in "bcdfghjklmnprstvwz" for second in ("a", "e", "i", "o", "u", "ai", "on")]
    words = ["".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(3 * vocabulary)]
    return [" ".join(words[start : start + 20]) for start in range(0, len(words), 20)]


def measured(command: list[str]) -> Cost:
    """Runs a command to its end. Raises CalledProcessError.

    Its memory is looked at while it runs: the peak that the system tells at its end is that of this process where this
    is the larger, since that counts what was there before the command began.
    """
    started, resident, own = time.monotonic(), 0.0, 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        seen = _memory_gb(process.pid)
        resident, own = max(resident, seen.get("VmHWM", 0.0)), max(own, seen.get("RssAnon", 0.0))
        time.sleep(0.1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(time.monotonic() - started, resident, own)


def _memory_gb(pid: int) -> dict[str, float]:
    """The peak of what is resident since the command began, and what is no file's now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = (line.split() for line in lines if line.startswith(("VmHWM:", "RssAnon:")))
    return {name.rstrip(":"): int(size) * 1024 / 1e9 for name, size, _ in found}


def _parts(original: Original, shard_bytes: int) -> Iterator[list[str]]:
    names, held = list[str](), 0
    for name, shape in original.shapes().items():
        size = torch.Size(shape).numel() * 2
        if names and held + size > shard_bytes:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _random(original: Original, name: str) -> torch.Tensor:
    shape = original.shapes()[name]
    if name.endswith("position_ids"):
        return torch.arange(shape[1])[None]
    return torch.empty(shape, dtype=original.dtype).uniform_(-0.05, 0.05)


if __name__ == "__main__":
    main()
