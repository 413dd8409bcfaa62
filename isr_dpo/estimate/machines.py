"""Where the steps run, as far as an estimate needs it: GPUs of a step's pod, and what such a GPU can do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from isr_dpo.errors import RecipeError
from isr_dpo.flops import named_peak

GPU_STEPS = ("generate", "retrospect", "judge", "prefer", "train", "answer")
"""Steps that run the policy."""

_MEMORIES: tuple[tuple[str, float, float], ...] = (
    ("B200", 180, 8.0),
    ("GH200", 96, 4.0),
    ("H200", 141, 4.8),
    ("H100 PCIe", 80, 2.0),
    ("H100 NVL", 94, 3.9),
    ("H100", 80, 3.35),
    ("H800", 80, 3.35),
    ("A100 40GB", 40, 1.555),
    ("A100", 80, 2.04),
    ("A800", 80, 2.04),
    ("L40S", 48, 0.864),
    ("L40", 48, 0.864),
    ("L4", 24, 0.3),
    ("A40", 48, 0.696),
    ("A30", 24, 0.933),
    ("A10", 24, 0.6),
    ("RTX A6000", 48, 0.768),
    ("RTX 4090", 24, 1.008),
)
"""GB of memory and TB/s, from NVIDIA's data sheets; read as `flops.BF16_PEAKS` is."""


class Device(NamedTuple):
    """What one GPU can do, or a machine without one."""

    name: str
    flops: float
    """FLOP/s in bf16."""
    bytes_a_second: float
    memory: float | None
    """Bytes; None: a machine without a GPU, whose memory is not looked at."""


CPU = Device("CPU", 0.1e12, 20e9, None)
"""Some cores of a server [A]. A tiny model is ruled by other things than these: only a finished run tells its time."""


@dataclass(frozen=True)
class Place:
    """A step's pod: `count` GPUs of `kind`; train has `nodes` of them."""

    kind: str
    count: int
    nodes: int = 1

    @property
    def device(self) -> Device:
        """Raises RecipeError: an unknown kind."""
        return device(self.kind)


@dataclass(frozen=True)
class Placement:
    """Places by step; a step that is not named has `default`. Without anything said: 8 x A100-80G, as in the paper."""

    name: str = "8 x A100-80G"
    steps: Mapping[str, Place] = field(default_factory=dict)
    default: Place | None = Place("A100-80G", 8)

    def place(self, step: str) -> Place | None:
        """None: no GPU."""
        return self.steps.get(step, self.default)


def device(kind: str) -> Device:
    """The device of a kind such as `A100-80G`, `nvidia-h100-80gb` or `NVIDIA-A100-SXM4-40GB`. Raises RecipeError."""
    name = re.sub(r"(?i)\b(\d+)g\b", r"\1GB", kind)
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    peak = named_peak(name)
    found = next((row for row in _MEMORIES if set(row[0].lower().split()) <= words), None)
    if peak is None or found is None:
        known = ", ".join(row[0] for row in _MEMORIES)
        raise RecipeError(f"GPU kind {kind!r} is unknown; known: {known}, with or without NVIDIA's additions")
    return Device(kind, peak, found[2] * 1e12, found[1] * 1e9)


def read_placement(path: Path) -> Placement:
    """The placement in a YAML file, of which `steps.<step>.gpu.{kind,count}` and `steps.<step>.nodes` are read.

    Raises:
        RecipeError: no such file, not YAML, or a count or kind that cannot be.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    steps = tree.get("steps") if isinstance(tree, dict) else None
    if not isinstance(steps, dict):
        raise RecipeError(f"{path}: a placement has a mapping `steps`, with gpu: {{kind, count}} for each step")
    found = {str(name): _place(settings, f"{path}: steps.{name}") for name, settings in steps.items()}
    return Placement(path.stem, {name: place for name, place in found.items() if place is not None}, default=None)


def _place(settings: Any, where: str) -> Place | None:
    gpu = settings.get("gpu") if isinstance(settings, dict) else None
    if not gpu:
        return None
    if not isinstance(gpu, dict):
        raise RecipeError(f"{where}.gpu = {gpu!r}: written as {{kind: A100-80G, count: 8}}")
    place = Place(
        str(gpu.get("kind")), _count(gpu.get("count", 1), f"{where}.gpu.count"), _count(settings.get("nodes", 1), where)
    )
    try:
        device(place.kind)
    except RecipeError as error:
        raise RecipeError(f"{where}.gpu.kind: {error}") from error
    return place if place.count else None


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RecipeError(f"{where} = {value!r}: a whole number from 0 on")
    return value
