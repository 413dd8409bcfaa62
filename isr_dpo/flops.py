"""FLOPs of a language model, of a pair and of a clip, and what a device can do: arithmetic alone, without torch.

Forward FLOPs of t tokens through N weights, and of causal attention of q queries that end at position `end`:

    F_lin(t) = 2 N t        A(q, end) = 4 d L (q (end - q) + q (q + 1) / 2)

N are the language model's weights without embeddings, which are looked up, and without the output head, which only
response tokens need (0.2 % of a pair at 7B). The backward pass costs two forward passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

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


def named_peak(name: str) -> float | None:
    """The table's peak for a device's name, such as `NVIDIA A100-SXM4-80GB`; None for an unknown device and for a part
    of one (MIG)."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    if "mig" in words:
        return None
    return next((flops for row, flops in BF16_PEAKS if set(row.lower().split()) <= words), None)


def _size(parameter: Any) -> int:
    """Elements of the whole parameter, of which ZeRO-3 leaves a rank only its share."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
