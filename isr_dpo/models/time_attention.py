"""LanguageBind's video tower: CLIP's, with attention over time before each layer, which transformers' has not.

Every token of a frame, the class token too, first sees itself in the other frames of its clip, all of them at once;
then the layer goes on as CLIP's [C]. The number of frames is the tower's: each has an embedding of its own.
"""

from __future__ import annotations

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
        """`hidden_states` of pixels [b T, 3, H, W]: what enters the first layer, then what each gives, [b T, n, d]."""
        states = self.pre_layrnorm(self.embeddings(pixel_values))
        every = [states]
        for layer in self.encoder.layers:
            every.append(layer(every[-1], None))
        return BaseModelOutputWithPooling(last_hidden_state=every[-1], hidden_states=tuple(every))
