"""CLIP's vision tower, with and without attention over time, said once more in plain tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


class Statement:
    """A tower by its weights' names; LanguageBind's where it is `over_time`, with the activation of those."""

    def __init__(self, weights: Mapping[str, Tensor], *, heads: int, depth: int, over_time: bool) -> None:
        self._weights, self._heads, self._depth, self._over_time = weights, heads, depth, over_time

    def states(self, pixels: Tensor) -> list[Tensor]:
        """After 0, 1 ... `depth` layers, [T, n, d], of one clip's pixels [T, 3, H, W]."""
        kernel = self._weights["embeddings.patch_embedding.weight"]
        patches = F.unfold(pixels, kernel.shape[-1], stride=kernel.shape[-1]).mT @ kernel.flatten(1).T
        first = self._weights["embeddings.class_embedding"].expand(len(pixels), 1, -1)
        embedded = torch.cat([first, patches], 1) + self._weights["embeddings.position_embedding.weight"]
        found = [self._norm("pre_layrnorm", embedded)]
        for number in range(self._depth):
            found.append(self._layer(f"encoder.layers.{number}", found[-1]))
        return found

    def _layer(self, name: str, x: Tensor) -> Tensor:
        if self._over_time:
            tokens = x.transpose(0, 1) + self._weights[f"{name}.temporal_embedding"]  # [n, T, d]
            tokens = tokens + self._attention(
                f"{name}.temporal_attn", self._norm(f"{name}.temporal_layer_norm1", tokens)
            )
            x = tokens.transpose(0, 1)
        x = x + self._attention(f"{name}.self_attn", self._norm(f"{name}.layer_norm1", x))
        inner = self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.layer_norm2", x))
        active = F.gelu(inner) if self._over_time else inner * torch.sigmoid(1.702 * inner)
        return x + self._linear(f"{name}.mlp.fc2", active)

    def _attention(self, name: str, x: Tensor) -> Tensor:
        """Each of [..., m, d] looks at all m."""
        queries, keys, values = (self._linear(f"{name}.{part}_proj", x) for part in "qkv")
        size, outs = x.shape[-1] // self._heads, []
        for head in range(self._heads):
            own = slice(head * size, (head + 1) * size)
            outs.append((queries[..., own] @ keys[..., own].mT / size**0.5).softmax(-1) @ values[..., own])
        return self._linear(f"{name}.out_proj", torch.cat(outs, -1))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
