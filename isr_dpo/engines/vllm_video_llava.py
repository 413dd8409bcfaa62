"""Video-LLaVA for vLLM, which has no such model: the paper's own family (LLaVA-Hound and ISR-DPO checkpoints).

Written against vLLM's interfaces for models from outside. It takes one video a prompt and no pictures, so the image
tower's weights, where there are any, are left unread. Features as in `isr_dpo.models.video_llava`: states of the
configured layers, side by side where there are several, the class token of each frame kept or dropped as the
configuration says; the projector makes one token of each. A tower with attention over time is the very same module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchFeature, VideoLlavaConfig, VideoLlavaProcessor
from transformers.activations import ACT2FN
from vllm.config import VllmConfig
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalDataDict
from vllm.model_executor.models.clip import CLIPVisionModel
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems, VideoProcessorItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)
from vllm.sequence import IntermediateTensors

from isr_dpo.models.time_attention import TimeAttentionTower, tower_states
from isr_dpo.models.video_llava import has_class_token, time_frames

NAMES = WeightsMapper(
    orig_to_new_regex={
        re.compile(r"^(?:model\.)?image_tower\..*"): None,
        re.compile(r"^(?:model\.)?video_tower\.(?:vision_model\.)?"): "video_tower.vision_model.",
        re.compile(r"^model\.multi_modal_projector\."): "multi_modal_projector.",
        re.compile(r"^model\.language_model\."): "language_model.model.",
        re.compile(r"^lm_head\."): "language_model.lm_head.",
    }
)
"""Weights' names, in published checkpoints and in what transformers 5 writes, to those of the modules here."""


def feature_layers(config: Any) -> list[int]:
    """The tower's states that are the features, counted from its embeddings (0) up."""
    chosen = config.vision_feature_layer
    depth = config.vision_config.num_hidden_layers
    return [layer if layer >= 0 else depth + 1 + layer for layer in ([chosen] if isinstance(chosen, int) else chosen)]


def tokens_a_frame(config: Any) -> int:
    """Patches and, where it counts, the class token."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2 + has_class_token(config))


class VideoLlavaProcessingInfo(BaseProcessingInfo):
    """What vLLM may ask of configuration and processor."""

    def get_hf_config(self) -> VideoLlavaConfig:
        return self.ctx.get_hf_config(VideoLlavaConfig)

    def get_hf_processor(self, **kwargs: object) -> VideoLlavaProcessor:
        return self.ctx.get_hf_processor(VideoLlavaProcessor, **kwargs)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"video": 1}


class VideoLlavaDummyInputsBuilder(BaseDummyInputsBuilder[VideoLlavaProcessingInfo]):
    """The longest input, with which vLLM measures memory: a video that fills the context, or has all the frames that
    attention over time takes."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return str(self.info.get_hf_processor().video_token * mm_counts.get("video", 0))

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, MultiModalDummyOptions]
    ) -> MultiModalDataDict:
        config = self.info.get_hf_config()
        side = config.vision_config.image_size
        frames = time_frames(config) or max(seq_len // tokens_a_frame(config), 1)
        videos = self._get_dummy_videos(
            width=side,
            height=side,
            num_frames=frames,
            num_videos=mm_counts.get("video", 0),
            overrides=mm_options.get("video"),
        )
        return {"video": videos}


class VideoLlavaMultiModalProcessor(BaseMultiModalProcessor[VideoLlavaProcessingInfo]):
    """Pixels by the model's own processor; one video token of the prompt becomes as many as its video has."""

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"pixel_values_videos": MultiModalFieldConfig.batched("video")}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        config = self.info.get_hf_config()
        wanted = time_frames(config)

        def tokens(number: int) -> list[int]:
            frames = mm_items.get_items("video", VideoProcessorItems).get_num_frames(number)
            if wanted not in (None, frames):
                raise ValueError(f"a video of {frames} frames; this model's attention over time takes {wanted}")
            return [config.video_token_index] * (frames * tokens_a_frame(config))

        return [PromptReplacement(modality="video", target=[config.video_token_index], replacement=tokens)]


class Projector(nn.Module):
    """Two linear layers: features [N, d] to tokens [N, D]."""

    def __init__(self, config: VideoLlavaConfig) -> None:
        super().__init__()
        width, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        entering = config.vision_config.hidden_size * len(feature_layers(config))
        self.linear_1 = nn.Linear(entering, width, bias=bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return projected


class TimeAttention(nn.Module):
    """The tower with attention over time, called and its weights named as vLLM's own."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.vision_model = TimeAttentionTower(config)

    def forward(self, frames: Tensor, select_layers: list[int]) -> Tensor:
        """States [frames, N, d] of pixels [frames of all videos, 3, H, W]."""
        return tower_states(self.vision_model, frames, select_layers)


@MULTIMODAL_REGISTRY.register_processor(
    VideoLlavaMultiModalProcessor, info=VideoLlavaProcessingInfo, dummy_inputs=VideoLlavaDummyInputsBuilder
)
class VideoLlavaForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP):
    """Video tower, projector, and vLLM's own class for the language model that the configuration names."""

    hf_to_vllm_mapper = NAMES

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality == "video":
            return "<video>"
        raise ValueError(f"{modality}: this model takes videos alone")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.layers = feature_layers(config)
        self.language_model: Any
        marking: Any = self  # the type checker does not see vLLM's base classes
        with marking._mark_tower_model(vllm_config, "video"):
            self.video_tower = self._tower(vllm_config, prefix)
            self.multi_modal_projector = Projector(config)
        with marking._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.model.make_empty_intermediate_tensors

    def _tower(self, vllm_config: VllmConfig, prefix: str) -> nn.Module:
        if time_frames(self.config) is not None:
            return TimeAttention(self.config.vision_config)
        clip: nn.Module = CLIPVisionModel(
            self.config.vision_config,
            quant_config=vllm_config.quant_config,
            num_hidden_layers_override=max(self.layers),
            require_post_norm=False,
            prefix=maybe_prefix(prefix, "video_tower"),
        )
        return clip

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """A tensor [F N, D] for each video of `pixel_values_videos`, [F, 3, H, W] each."""
        videos: Any = kwargs.get("pixel_values_videos")
        if videos is None:
            return []
        frames = torch.cat(list(videos))  # [frames of all videos, 3, H, W]
        features = self.video_tower(frames, select_layers=self.layers)  # [frames, class token and patches, d]
        if not has_class_token(self.config):
            features = features[:, 1:]
        tokens = self.multi_modal_projector(features)  # [frames, N, D]
        return [video.flatten(0, 1) for video in tokens.split([len(video) for video in videos])]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | IntermediateTensors:
        """Last states of the tokens in hand."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[tokens, vocabulary]."""
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The names of what was loaded."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded
