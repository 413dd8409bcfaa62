"""FLOPs of the benchmark's model: what part the tower and the head have, and the ratio of the two ways to train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from isr_dpo.dpo.floor import Lengths, Shape, attention, linear, pair_flops
from tests.bench.dpo_setup import Sizes


class Shares(NamedTuple):
    """Of an ordinary forward pass of prompt and response, logits at every position."""

    tower: float
    head: float


def shape(sizes: Sizes) -> Shape:
    """The language model's layers: no embeddings, no head."""
    weights = sizes.layers * (4 * sizes.hidden**2 + 3 * sizes.hidden * sizes.intermediate)
    return Shape(weights=weights, trained=weights, layers=sizes.layers, width=sizes.hidden)


def vision(sizes: Sizes) -> float:
    """Forward FLOPs of tower and projector over one clip."""
    width, patches = sizes.tower_hidden, (sizes.pixels // sizes.patch) ** 2
    tokens = patches + 1
    layer = 2 * tokens * 12 * width**2 + 4 * width * tokens**2  # 4 d^2 attention, 8 d^2 MLP; each patch sees all
    frame = 2 * patches * 3 * sizes.patch**2 * width + sizes.tower_layers * layer
    projector = 2 * tokens * (width * sizes.hidden + sizes.hidden**2)
    return sizes.frames * (frame + projector)


def shares(sizes: Sizes, pairs: Sequence[Lengths]) -> Shares:
    """Of the pairs' sequences."""
    model = shape(sizes)
    tokens = [pair.prompt + response for pair in pairs for response in (pair.chosen, pair.rejected)]
    layers = sum(linear(model, n) + attention(model, n, n) for n in tokens)
    head = sum(2 * n * sizes.hidden * sizes.vocabulary for n in tokens)
    tower = len(tokens) * vision(sizes)
    return Shares(tower=tower / (layers + head + tower), head=head / (layers + head + tower))


def ideal_ratio(sizes: Sizes, pairs: Sequence[Lengths]) -> float:
    """FLOPs of a conventional trainer over ours, one epoch: 5 F_cat + 4 F_vision over 4 F_sh (isr_dpo.dpo.floor)."""
    flops = [pair_flops(shape(sizes), pair, vision=vision(sizes)) for pair in pairs]
    return sum(pair.conventional for pair in flops) / sum(pair.shared for pair in flops)
