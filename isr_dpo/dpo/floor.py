"""The least work that a pair needs, and how near a measurement comes to it.

Forward FLOPs of t tokens through N weights, and of causal attention of q queries that end at position `end`:

    F_lin(t) = 2 N t        A(q, end) = 4 d L (q (end - q) + q (q + 1) / 2)

N are the language model's weights without embeddings, which are looked up, and without the output head, which only
response tokens need (0.2 % of a pair at 7B). The backward pass costs two forward passes. FLOPs that are spent twice
(gradient checkpointing) count once, and those that the trainer saves in its last layer, where prompt tokens need only
keys and values, count as done.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

BF16_PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A40", 149.7e12),
    ("A30", 165e12),
    ("A10", 125e12),
    ("RTX A6000", 154.8e12),
    ("RTX 4090", 165.2e12),
)
"""FLOP/s of dense bf16 matrix products with fp32 sums, from NVIDIA's data sheets (half of their figures "with
sparsity"). A device has a row's peak where its name holds all words of the row; the first such row counts."""

_MEASURING_SECONDS = 0.3


class Shape(NamedTuple):
    """The language model as the formulas see it."""

    weights: int
    """N."""
    trained: int
    """Of N, those that have a gradient: all but where LoRA trains."""
    layers: int
    """L."""
    width: int
    """d: heads x dimension of a head, which grouped keys and values leave as it is."""

    @classmethod
    def of(cls, model: Any) -> Shape:
        """The shape of a transformers model's language model, frozen or not as it stands."""
        config = model.config.get_text_config()
        decoder = model.get_decoder()
        looked_up = {id(parameter) for parameter in decoder.get_input_embeddings().parameters()}
        weights = [p for p in decoder.parameters() if id(p) not in looked_up]
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            weights=sum(map(_size, weights)),
            trained=sum(_size(p) for p in weights if p.requires_grad),
            layers=config.num_hidden_layers,
            width=config.num_attention_heads * head,
        )


class Lengths(NamedTuple):
    """Tokens of a pair: the prompt with its video, and the responses."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def tokens(self) -> int:
        """Of the row `[prompt | chosen | rejected]`."""
        return self.prompt + self.chosen + self.rejected


class PairFlops(NamedTuple):
    """FLOPs of one pair in a round."""

    shared: float
    conventional: float


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


def linear(shape: Shape, tokens: int) -> float:
    """F_lin: forward FLOPs of `tokens` through the weights."""
    return 2.0 * shape.weights * tokens


def attention(shape: Shape, queries: int, end: int) -> float:
    """A: forward FLOPs of causal attention for the last `queries` positions of `end`."""
    return 4.0 * shape.width * shape.layers * (queries * (end - queries) + queries * (queries + 1) / 2)


def shared_forward(shape: Shape, pair: Lengths) -> float:
    """F_sh: one row `[prompt | chosen | rejected]`, the rejected tokens blind to the chosen ones."""
    first, second = pair.prompt + pair.chosen, pair.prompt + pair.rejected
    return linear(shape, pair.tokens) + attention(shape, first, first) + attention(shape, pair.rejected, second)


def conventional_forward(shape: Shape, pair: Lengths) -> float:
    """F_cat: two rows, each with the prompt, without padding."""
    rows = (pair.prompt + pair.chosen, pair.prompt + pair.rejected)
    return sum(linear(shape, row) + attention(shape, row, row) for row in rows)


def pair_flops(shape: Shape, pair: Lengths, *, epochs: int = 1, vision: float = 0.0) -> PairFlops:
    """A round of full-parameter training: (3 E + 1) F_sh with the reference computed once, against E (5 F_cat + 4
    `vision`) with it in every step, gradient checkpointing, and the tower (`vision` FLOPs a clip) run four times."""
    return PairFlops(
        shared=(3 * epochs + 1) * shared_forward(shape, pair),
        conventional=epochs * (5 * conventional_forward(shape, pair) + 4 * vision),
    )


def training_flops(shape: Shape, pairs: Iterable[Lengths]) -> float:
    """Forward and backward pass over `pairs`: 3 F_sh, less the gradients that frozen weights do not need."""
    frozen = shape.weights - shape.trained
    return sum(3 * shared_forward(shape, pair) - 2.0 * frozen * pair.tokens for pair in pairs)


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


def named_peak(name: str) -> float | None:
    """The table's peak for a device's name, such as `NVIDIA A100-SXM4-80GB`; None for an unknown device and for a part
    of one (MIG)."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    if "mig" in words:
        return None
    return next((flops for row, flops in BF16_PEAKS if set(row.lower().split()) <= words), None)


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


def _size(parameter: torch.nn.Parameter) -> int:
    """Elements of the whole parameter, of which ZeRO-3 leaves a rank only its share."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
