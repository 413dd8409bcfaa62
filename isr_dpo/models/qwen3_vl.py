"""Qwen3-VL.

Video tokens: one for 2 frames of 32 x 32 pixels, at a size that depends on the clip; before the tokens of each 2 frames
their time is written out, "<1.2 seconds>", at Qwen2.5-VL's fixed `FRAMES_PER_SECOND` [O].
Positions: M-RoPE, three rows; the times being text, each 2 frames are placed as a picture of their own.
Template: ChatML, the video before the question.
Features: the tower's last states and those of the deepstack layers; a merger for each makes video tokens of them, the
deepstack ones added to the language model's first layers.
Trains: the language model; the mergers (the family's projector) where the recipe says so; the tower never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from isr_dpo.models import common, qwen2_5_vl

ARCHITECTURE = "Qwen3VLForConditionalGeneration"
LANGUAGE = ("model.language_model.", "lm_head.")
PROJECTOR = ("model.visual.merger.", "model.visual.deepstack_merger_list.")
CHAT_TEMPLATE = qwen2_5_vl.TURNS
media_ids, positions, inputs, times = common.media_ids, qwen2_5_vl.positions, qwen2_5_vl.inputs, qwen2_5_vl.times


def load(folder: Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor in `folder`."""
    return common.load_with(Qwen3VLForConditionalGeneration, folder, dtype=dtype), load_processor(folder)


def load_processor(folder: Path) -> Any:
    return Qwen3VLProcessor.from_pretrained(folder, local_files_only=True)


def frames(folder: Path) -> int:
    """Frames a clip that the policy was made for."""
    return common.frames_of(load_processor(folder))


def resizer(folder: Path) -> common.Resize:
    """The processor's own resize, to a size that fits its patches: what the frame store keeps."""
    return qwen2_5_vl.grid_resizer(load_processor(folder))


def encode(processor: Any, texts: Sequence[str], videos: Sequence[np.ndarray]) -> common.Encoded:
    """Ids of each text with its video; `pixel_values_videos` [patches, values] and `video_grid_thw` [1, 3].

    The template's vision tokens give way to those around each 2 frames, as in the processor that the family was
    published with and in vLLM; transformers since 5.12 or so keeps both pairs.
    """
    return qwen2_5_vl.encode_grids(processor, [_bare(processor, text) for text in texts], videos)


def prompt_ids(processor: Any, text: str) -> list[int]:
    """Ids of a chat text with the video's token in place of its vision tokens, as in `encode`."""
    return common.prompt_ids(processor, _bare(processor, text))


def tower(model: Any, video: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`features` and `deepstack_0`, `deepstack_1` ..., each [patches, d], of one video, and `video_grid_thw`."""
    visual = model.model.visual
    last, *deep = common.entering([visual.merger, *visual.deepstack_merger_list], model, video).states
    levels = {f"deepstack_{level}": states for level, states in enumerate(deep)}
    return {"features": last, **levels, "video_grid_thw": video["video_grid_thw"]}


def project(model: Any, towers: Sequence[Mapping[str, Tensor]]) -> BaseModelOutputWithDeepstackFeatures:
    """`pooler_output`: a tensor [tokens, D] for each video; `deepstack_features`: the same for each level."""
    visual, counts = model.model.visual, qwen2_5_vl.token_counts(model, towers)
    return BaseModelOutputWithDeepstackFeatures(
        pooler_output=visual.merger(common.entered(model, towers)).split(counts),
        deepstack_features=[
            merger(common.entered(model, towers, f"deepstack_{level}")).split(counts)
            for level, merger in enumerate(visual.deepstack_merger_list)
        ],
    )


def _bare(processor: Any, text: str) -> str:
    whole: str = processor.vision_start_token + processor.video_token + processor.vision_end_token
    return text.replace(whole, processor.video_token)
