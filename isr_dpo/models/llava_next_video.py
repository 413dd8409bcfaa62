"""LLaVA-NeXT-Video, its `-DPO` checkpoints included.

Video tokens: each frame's patches (no class token) averaged 2 x 2 before the projector: 8 x 144 = 1152 at 336 px.
Positions: plain, one dimension.
Template: Vicuna v1, `<video>` and a newline before the question.
Features: the pooled states of the tower; the projector makes the video tokens of them.
Trains: the language model; the projector where the recipe says so; tower and pooling never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from isr_dpo.models import common

ARCHITECTURE = "LlavaNextVideoForConditionalGeneration"
LANGUAGE = ("model.language_model.", "lm_head.")
PROJECTOR = ("model.multi_modal_projector.",)
CHAT_TEMPLATE = common.VICUNA_TEMPLATE
media_ids, prompt_ids, times = common.media_ids, common.prompt_ids, common.no_times


def load(folder: Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor in `folder`."""
    return common.load_with(LlavaNextVideoForConditionalGeneration, folder, dtype=dtype), load_processor(folder)


def load_processor(folder: Path) -> Any:
    return LlavaNextVideoProcessor.from_pretrained(folder, local_files_only=True)


def frames(folder: Path) -> int:
    """Frames a clip that the policy was made for."""
    return common.frames_of(load_processor(folder))


def resizer(folder: Path) -> common.Resize:
    """The processor's own resize and crop: what the frame store keeps."""
    return common.resizer_of(load_processor(folder))


def encode(processor: Any, texts: Sequence[str], videos: Sequence[np.ndarray]) -> common.Encoded:
    """Ids of each text with its video, and `pixel_values_videos` [1, F, 3, H, W]."""
    return common.encode_rows(processor, texts, videos)


def tower(model: Any, video: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`features` [F, N, d]: the pooled states of one video, N tokens a frame."""
    (states,) = common.entering([model.model.multi_modal_projector], model, video).states
    return {"features": states}


def project(model: Any, towers: Sequence[Mapping[str, Tensor]]) -> BaseModelOutputWithPooling:
    """`pooler_output`: a tensor [F N, D] for each video."""
    projected = model.model.multi_modal_projector(common.entered(model, towers))  # [frames of all videos, N, D]
    counts = [len(tower["features"]) for tower in towers]
    return BaseModelOutputWithPooling(pooler_output=[part[None].flatten(1, 2) for part in projected.split(counts)])


def positions(model: Any, ids: Tensor, video: Mapping[str, Tensor]) -> Tensor:
    """[1, T]."""
    return common.plain_positions(ids)


def inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Nothing beside ids and pixels."""
    return {}
