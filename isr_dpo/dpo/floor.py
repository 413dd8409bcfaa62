"""The least work that a pair needs, and how near a measurement comes to it.

FLOPs are `flops`'; those that are spent twice (gradient checkpointing) count once, and those that the trainer saves in
its last layer, where prompt tokens need only keys and values, count as done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from isr_dpo.flops import Lengths as Lengths
from isr_dpo.flops import PairFlops as PairFlops
from isr_dpo.flops import Shape as Shape
from isr_dpo.flops import attention as attention
from isr_dpo.flops import conventional_forward as conventional_forward
from isr_dpo.flops import linear as linear
from isr_dpo.flops import named_peak as named_peak
from isr_dpo.flops import pair_flops as pair_flops
from isr_dpo.flops import shared_forward as shared_forward
from isr_dpo.flops import training_flops as training_flops

_MEASURING_SECONDS = 0.3


class Peak(NamedTuple):
    """FLOP/s of one device, and where the figure is from."""

    flops: float
    source: str


class Speed(NamedTuple):
    """Names are those of the log and the metrics."""

    pairs_per_second: float
    tokens_per_second: float
    """Of rows `[prompt | chosen | rejected]`."""
    mfu: float
    """FLOPs of the trained tokens over what the devices could have done; recomputation does not count."""
    floor_ratio: float
    """"x of the floor": seconds over the least possible; without a reference pass 1 / mfu."""


def speed(
    shape: Shape,
    trained: Sequence[Lengths],
    seconds: float,
    *,
    peak: Peak,
    ranks: int,
    reference: Sequence[Lengths] = (),
) -> Speed:
    """How fast `trained` went through all `ranks` together in `seconds`.

    Args:
        trained: the pairs of an optimiser step, or of a round, once for each epoch.
        peak: of one rank's device.
        reference: pairs whose reference log-probs were computed within these seconds too.
    """
    flops = training_flops(shape, trained)
    possible = seconds * peak.flops * ranks
    return Speed(
        pairs_per_second=len(trained) / seconds,
        tokens_per_second=sum(pair.tokens for pair in trained) / seconds,
        mfu=flops / possible,
        floor_ratio=possible / (flops + sum(shared_forward(shape, pair) for pair in reference)),
    )


def peak(device: torch.device, dtype: torch.dtype, *, override_tflops: float | None = None) -> Peak:
    """What one device can do in `dtype`: `override_tflops` (train.peak_tflops), else the table's figure where a GPU
    computes in 16 bits, else what a matrix product reaches here and now (on a CPU with this process's threads)."""
    if override_tflops is not None:
        return Peak(override_tflops * 1e12, "train.peak_tflops")
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        known = named_peak(name)
        if known is not None:
            return Peak(known, f"data sheet of {name}, dense bf16")
    kind = str(dtype).removeprefix("torch.")
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return Peak(_measured(device, dtype), f"measured: {kind} matrix product on this {device.type}{threads}")


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several square matrix products; they leave the global random state alone."""
    side = 1024 if device.type == "cpu" else 8192
    draw = torch.Generator(device).manual_seed(0)
    left = torch.randn((side, side), generator=draw, device=device).to(dtype)
    fastest, runs, end = float("inf"), 0, time.perf_counter() + _MEASURING_SECONDS
    while runs < 3 or time.perf_counter() < end:
        _await(device)
        began = time.perf_counter()
        left @ left
        _await(device)
        fastest, runs = min(fastest, time.perf_counter() - began), runs + 1
    return 2.0 * side**3 / fastest


def _await(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
