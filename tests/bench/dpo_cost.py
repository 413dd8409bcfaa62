"""FLOPs of the benchmark's model: what part the tower and the head have, and the ratio of the two ways to train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from isr_dpo.dpo.floor import Lengths, Shape, attention, linear, pair_flops
from tests import family_parts as families


class Shares(NamedTuple):
    """Of an ordinary forward pass of prompt and response, logits at every position."""

    tower: float
    head: float


def language(shape: families.Shape) -> Shape:
    """The language model's layers: no embeddings, no head."""
    assert shape.heads == shape.kv_heads
    weights = shape.layers * (4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate)
    return Shape(weights=weights, trained=weights, layers=shape.layers, width=shape.hidden)


def vision(shape: families.Shape) -> float:
    """Forward FLOPs of tower and projector over one clip."""
    width, patches = shape.vision_hidden, (shape.pixels // shape.patch) ** 2
    tokens = patches + 1
    linear_weights = 4 * width**2 + 2 * width * shape.vision_intermediate
    layer = 2 * tokens * linear_weights + 4 * width * tokens**2  # every patch sees every other
    frame = 2 * patches * 3 * shape.patch**2 * width + shape.vision_layers * layer
    projector = 2 * tokens * (width * shape.hidden + shape.hidden**2)
    return shape.frames * (frame + projector)


def shares(shape: families.Shape, pairs: Sequence[Lengths]) -> Shares:
    """Of the pairs' sequences."""
    model = language(shape)
    tokens = [pair.prompt + response for pair in pairs for response in (pair.chosen, pair.rejected)]
    layers = sum(linear(model, n) + attention(model, n, n) for n in tokens)
    head = sum(2 * n * shape.hidden * shape.vocabulary for n in tokens)
    tower = len(tokens) * vision(shape)
    return Shares(tower=tower / (layers + head + tower), head=head / (layers + head + tower))


def ideal_ratio(shape: families.Shape, pairs: Sequence[Lengths]) -> float:
    """FLOPs of a conventional trainer over ours, one epoch: 5 F_cat + 4 F_vision over 4 F_sh (isr_dpo.dpo.floor)."""
    flops = [pair_flops(language(shape), pair, vision=vision(shape)) for pair in pairs]
    return sum(pair.conventional for pair in flops) / sum(pair.shared for pair in flops)
