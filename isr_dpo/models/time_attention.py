"""LanguageBind's video tower: CLIP's, with attention over time before each layer, which transformers' has not; and the
states of either.

Every token of a frame, the class token too, first sees itself in the other frames of its clip, all of them at once;
then the layer goes on as CLIP's [C]. The number of frames is the tower's: each has an embedding of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer


class TimeAttentionLayer(CLIPEncoderLayer):  # type: ignore[misc]
    """CLIP's layer after an attention over `num_frames` frames. The weights' names are the original's [C]."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.temporal_embedding = nn.Parameter(width**-0.5 * torch.randn(1, config.num_frames, width))
        self.temporal_attn = CLIPAttention(config)
        self.temporal_layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """[b T, n, d] of T frames a clip, one clip after the other -> the same."""
        states: Tensor = super().forward(self._over_time(hidden_states), attention_mask, **kwargs)
        return states

    def _over_time(self, states: Tensor) -> Tensor:
        frames, (_, tokens, width) = self.temporal_embedding.shape[1], states.shape
        clips = states.view(-1, frames, tokens, width).transpose(1, 2).reshape(-1, frames, width)  # [b n, T, d]
        if frames > 1:
            clips = clips + self.temporal_embedding
        seen, _ = self.temporal_attn(self.temporal_layer_norm1(clips))
        mixed: Tensor = (clips + seen).view(-1, tokens, frames, width).transpose(1, 2)
        return mixed.reshape(states.shape)


class TimeAttentionTower(CLIPVisionModel):  # type: ignore[misc]
    """`config`: a CLIP vision tower's, with `num_frames`."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.encoder.layers = nn.ModuleList(TimeAttentionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """`last_hidden_state` [b T, n, d] of pixels [b T, 3, H, W]."""
        states = self.pre_layrnorm(self.embeddings(pixel_values))
        for layer in self.encoder.layers:
            states = layer(states, None)
        return BaseModelOutputWithPooling(last_hidden_state=states)


def tower_states(tower: CLIPVisionModel, pixels: Tensor, layers: Sequence[int]) -> Tensor:
    """States [frames, n, d len(layers)] of pixels [frames, 3, H, W], side by side: 0 is what enters the first layer of
    CLIP's tower or ours, 1 what that gives, -1 what the last gives. No others are kept in memory, as they would be by
    transformers before 5.23."""
    modules = [tower.pre_layrnorm, *tower.encoder.layers]
    seen: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        seen[module] = output

    handles = [modules[layer].register_forward_hook(note) for layer in layers]
    try:
        tower(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([seen[modules[layer]] for layer in layers], dim=-1)
