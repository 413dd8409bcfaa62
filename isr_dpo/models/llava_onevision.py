"""LLaVA-OneVision.

Video tokens: 196 a frame (27 x 27 patches, shrunk to 14 x 14 after the projector) and one newline token a video.
Positions: plain, one dimension.
Template: ChatML as Qwen2 writes it, `<video>` and a newline before the question.
Features: the tower's states, all patches; the projector, the shrinking and the newline follow.
Trains: the language model; the projector where the recipe says so; tower and newline never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from isr_dpo.models import common

ARCHITECTURE = "LlavaOnevisionForConditionalGeneration"
LANGUAGE = ("model.language_model.", "lm_head.")
PROJECTOR = ("model.multi_modal_projector.",)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message['role'] ~ ' ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ '<video>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{{ '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
media_ids, prompt_ids, times = common.media_ids, common.prompt_ids, common.no_times


def load(folder: Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor in `folder`."""
    return common.load_with(LlavaOnevisionForConditionalGeneration, folder, dtype=dtype), load_processor(folder)


def load_processor(folder: Path) -> Any:
    return LlavaOnevisionProcessor.from_pretrained(folder, local_files_only=True)


def frames(folder: Path) -> int:
    """Frames a clip that the policy was made for."""
    return common.frames_of(load_processor(folder))


def resizer(folder: Path) -> common.Resize:
    """The processor's own resize: what the frame store keeps."""
    return common.resizer_of(load_processor(folder))


def encode(processor: Any, texts: Sequence[str], videos: Sequence[np.ndarray]) -> common.Encoded:
    """Ids of each text with its video, and `pixel_values_videos` [1, F, 3, H, W]."""
    return common.encode_rows(processor, texts, videos)


def tower(model: Any, video: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`features` [F, N, d]: the tower's states of one video, N patches a frame."""
    (states,) = common.entering([model.model.multi_modal_projector], model, video).states
    return {"features": states}


def project(model: Any, towers: Sequence[Mapping[str, Tensor]]) -> BaseModelOutputWithPooling:
    """`pooler_output` [1, L, D]: the L tokens of all videos, a newline after each video's."""
    projected = model.model.multi_modal_projector(common.entered(model, towers))  # [frames of all videos, N, D]
    pooled = model.model.apply_pooling(projected)  # [frames of all videos, n, D]
    newline = model.model.image_newline[None].to(pooled)  # [1, D]
    counts = [len(tower["features"]) for tower in towers]
    rows = [torch.cat([part.flatten(0, 1), newline]) for part in pooled.split(counts)]
    return BaseModelOutputWithPooling(pooler_output=torch.cat(rows)[None])


def positions(model: Any, ids: Tensor, video: Mapping[str, Tensor]) -> Tensor:
    """[1, T]."""
    return common.plain_positions(ids)


def inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Nothing beside ids and pixels."""
    return {}
