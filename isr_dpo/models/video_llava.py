"""Video-LLaVA: the paper's own family (LLaVA-Hound and ISR-DPO checkpoints, once converted).

Video tokens: one for each patch and, in transformers, the class token of each frame: 8 x 257 = 2056 at 224 px.
Positions: plain, one dimension.
Template: Vicuna v1, `<video>` and a newline before the question [C].
Features: the tower's states of one layer; the projector makes the video tokens of them.
Trains: the language model; the projector where the recipe says so; the towers never [C].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from isr_dpo.models import common

ARCHITECTURE = "VideoLlavaForConditionalGeneration"
LANGUAGE = ("model.language_model.", "lm_head.")
PROJECTOR = ("model.multi_modal_projector.",)
CHAT_TEMPLATE = common.VICUNA_TEMPLATE
media_ids, prompt_ids, times = common.media_ids, common.prompt_ids, common.no_times


def load(folder: Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor in `folder`."""
    return common.load_with(VideoLlavaForConditionalGeneration, folder, dtype=dtype), load_processor(folder)


def load_processor(folder: Path) -> Any:
    return VideoLlavaProcessor.from_pretrained(folder, local_files_only=True)


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
    """`features` [F, N, d]: the tower's states of one video, N tokens a frame, class token included."""
    (states,) = common.entering([model.model.multi_modal_projector], model, video).states
    return {"features": states}


def project(model: Any, towers: Sequence[Mapping[str, Tensor]]) -> BaseModelOutputWithPooling:
    """`pooler_output` [frames of all videos, N, D]."""
    return BaseModelOutputWithPooling(pooler_output=model.model.multi_modal_projector(common.entered(model, towers)))


def positions(model: Any, ids: Tensor, video: Mapping[str, Tensor]) -> Tensor:
    """[1, T]."""
    return common.plain_positions(ids)


def inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Nothing beside ids and pixels."""
    return {}
