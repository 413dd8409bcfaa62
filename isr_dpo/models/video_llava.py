"""Video-LLaVA: the paper's own family (LLaVA-Hound and ISR-DPO checkpoints, once converted).

Three properties in a policy's config.json, absent where transformers' class is meant as it is:

    video_class_token: false           each frame's class token is dropped before the projector [C: LLaVA-Hound]
    vision_config.add_time_attn: true  LanguageBind's video tower, for clips of `vision_config.num_frames` frames
    image_tower: false                 no tower for images, which no engine runs

Video tokens: one for each patch and, in transformers, the class token of each frame: 8 x 257 = 2056 at 224 px; 2048
without it. The processor counts them by itself (`num_additional_image_tokens`), so both must say the same.
Positions: plain, one dimension.
Template: Vicuna v1, `<video>` and a newline before the question [C].
Features: the tower's states of one layer, or of several side by side; the projector makes the video tokens of them.
Trains: the language model; the projector where the recipe says so; the towers never [C].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import VideoLlavaConfig, VideoLlavaProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.video_llava import modeling_video_llava

from isr_dpo.errors import ModelError, RecipeError
from isr_dpo.models import common
from isr_dpo.models.time_attention import TimeAttentionTower, tower_states

ARCHITECTURE = "VideoLlavaForConditionalGeneration"
LANGUAGE = ("model.language_model.", "lm_head.")
PROJECTOR = ("model.multi_modal_projector.",)
CHAT_TEMPLATE = common.VICUNA_TEMPLATE
PUBLISHED_NAMES = {
    r"^language_model\.model\.": "model.language_model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(video_tower|image_tower|multi_modal_projector)\.": r"model.\1.",
}
"""Weights' names in files -> in the model. transformers keeps such a table for its own classes, and saves by it too;
classes derived from them bring one."""
media_ids, prompt_ids, times = common.media_ids, common.prompt_ids, common.no_times


def has_class_token(config: VideoLlavaConfig) -> bool:
    """Whether the class token of each frame is a video token."""
    return bool(getattr(config, "video_class_token", True))


def time_frames(config: VideoLlavaConfig) -> int | None:
    """The number of frames that the tower's attention over time takes; None: it sees each frame by itself."""
    vision = config.vision_config
    return int(vision.num_frames) if getattr(vision, "add_time_attn", False) else None


class VideoLlavaModel(modeling_video_llava.VideoLlavaModel):  # type: ignore[misc]
    """transformers' model with the three properties."""

    def __init__(self, config: VideoLlavaConfig) -> None:
        super().__init__(config)
        if time_frames(config) is not None:
            self.video_tower = TimeAttentionTower(config.vision_config)
        if not getattr(config, "image_tower", True):
            self.image_tower = None

    def get_video_features(
        self, pixel_values_videos: Tensor, vision_feature_layer: int | list[int] | None = None, **_: Any
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` [frames of all videos, N, D] of pixels [B, F, 3, H, W]."""
        check_frames(pixel_values_videos.shape[1], time_frames(self.config))
        chosen = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        layers = [chosen] if isinstance(chosen, int) else chosen
        features = tower_states(self.video_tower, pixel_values_videos.flatten(0, 1), layers)
        if not has_class_token(self.config):
            features = features[:, 1:]  # [frames, N, d] of [frames, class token and patches, d]
        return BaseModelOutputWithPooling(pooler_output=self.multi_modal_projector(features))


class VideoLlavaForConditionalGeneration(modeling_video_llava.VideoLlavaForConditionalGeneration):  # type: ignore[misc]
    """transformers' class around our `VideoLlavaModel`; it has its name, which `save_pretrained` writes."""

    def __init__(self, config: VideoLlavaConfig) -> None:
        transformers.PreTrainedModel.__init__(self, config)
        self.model = VideoLlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


def load(folder: Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor in `folder`. Raises ModelError as `load_processor` does."""
    processor = load_processor(folder)
    model = common.load_with(
        VideoLlavaForConditionalGeneration,
        folder,
        dtype=dtype,
        refused=".temporal_",  # a tower with attention over time, in a config that does not say so
        key_mapping=PUBLISHED_NAMES,
    )
    return model, processor


def load_processor(folder: Path) -> Any:
    """Raises ModelError: processor and model disagree about the class token, or about the tower's frames."""
    processor = VideoLlavaProcessor.from_pretrained(folder, local_files_only=True)
    config = VideoLlavaConfig.from_pretrained(folder, local_files_only=True)
    added, kept = processor.num_additional_image_tokens, has_class_token(config)
    if added != int(kept):
        raise ModelError(
            f"{folder}: processor and model disagree about the class token: num_additional_image_tokens is {added}, "
            f"which goes with video_class_token: {str(bool(added)).lower()}; config.json has {str(kept).lower()}"
        )
    processor.time_frames = time_frames(config)  # for `encode`; it is not saved with the processor
    taken = common.frames_of(processor)
    if processor.time_frames not in (None, taken):
        raise ModelError(
            f"{folder}: the processor takes {taken} frames a clip (num_frames), the tower's attention over time "
            f"{processor.time_frames} (vision_config.num_frames in config.json)"
        )
    return processor


def frames(folder: Path) -> int:
    """Frames a clip that the policy was made for."""
    return common.frames_of(load_processor(folder))


def resizer(folder: Path) -> common.Resize:
    """The processor's own resize and crop: what the frame store keeps. The resize raises RecipeError as `encode`."""
    processor = load_processor(folder)
    resize = common.resizer_of(processor)

    def checked(frames: np.ndarray) -> np.ndarray:
        check_frames(len(frames), processor.time_frames)
        return resize(frames)

    return checked


def encode(processor: Any, texts: Sequence[str], videos: Sequence[np.ndarray]) -> common.Encoded:
    """Ids of each text with its video, and `pixel_values_videos` [1, F, 3, H, W]. Raises RecipeError: not as many
    frames as the tower's attention over time takes."""
    for video in videos:
        check_frames(len(video), getattr(processor, "time_frames", None))
    return common.encode_rows(processor, texts, videos)


def check_frames(frames: int, wanted: int | None) -> None:
    """Raises RecipeError: not as many as the tower's attention over time takes (None: it takes any number)."""
    if wanted not in (None, frames):
        raise RecipeError(f"data.frames: {frames} frames a clip; this model's attention over time takes {wanted}")


def tower(model: Any, video: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`features` [F, N, d]: the tower's states of one video, N tokens a frame, with the class token where it counts."""
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
