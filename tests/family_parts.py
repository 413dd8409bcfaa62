"""Configurations and processors of random policies, one function a family; `tests.families` is the way in."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

WORDS = (
    "a the what which is are colour object answer better choice context red green blue circle square left right "
    "video shows describe it in of and to seconds system You helpful assistant user USER ASSISTANT A chat between "
    "curious artificial intelligence The gives detailed polite answers questions s"
)
SPECIAL = {
    "llama": ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>"),
    "chatml": ("<pad>", "<|im_start|>", "<|im_end|>", "<unk>", "<image>", "<video>"),
    "qwen": (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"),
        *("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    ),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of the clips it sees; pixels are those of a frame's height (and width, but for Qwen)."""

    hidden: int = 32
    intermediate: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 200
    context: int = 512
    frames: int = 4
    pixels: int = 56
    patch: int = 14
    vision_hidden: int = 32
    vision_intermediate: int = 48
    vision_layers: int = 3
    vision_heads: int = 4


BENCH = Shape(
    hidden=512,
    intermediate=1376,
    layers=8,
    heads=8,
    kv_heads=8,
    vocabulary=8000,
    context=4096,
    frames=8,
    pixels=224,
    vision_hidden=64,
    vision_intermediate=128,
    vision_layers=2,
)
"""2056 video tokens and a small tower: what a step costs is the language model's work."""


class Parts(NamedTuple):
    """What a policy is made of."""

    config: Any
    model_class: Any
    processor: Any


def _video_llava(shape: Shape, *, converted: bool = False, over_time: bool = False) -> Parts:
    """`converted`: as a policy of the original layout is, without class token and image tower; `over_time`: with
    attention over time, and the activation of LanguageBind's towers."""
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration, VideoLlavaProcessor
    from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor
    from transformers.models.video_llava.video_processing_video_llava import VideoLlavaVideoProcessor

    from isr_dpo.models import video_llava

    tokenizer, text, vision = _tokenizer("llama", shape), _llama(shape), _clip_tower(shape)
    if over_time:
        vision.update({"add_time_attn": True, "num_frames": shape.frames, "hidden_act": "gelu"})
    side = shape.pixels // shape.patch
    config = VideoLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        video_token_index=5,
        vision_feature_layer=-2,
        image_seq_length=side**2,
        video_seq_length=shape.frames * (side**2 + (not converted)),
        **({"video_class_token": False, "image_tower": False} if converted else {}),
    )
    model_class = video_llava.VideoLlavaForConditionalGeneration if converted else VideoLlavaForConditionalGeneration
    view = _view(shape)
    processor = VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**view),
        video_processor=VideoLlavaVideoProcessor(**view, num_frames=shape.frames),
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=int(not converted),
        chat_template=_template("video_llava"),
    )
    return Parts(config, model_class, processor)


def _llava_next_video(shape: Shape) -> Parts:
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor
    from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor
    from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor

    pinpoints = [[shape.pixels, 2 * shape.pixels], [2 * shape.pixels, shape.pixels]]
    config = LlavaNextVideoConfig(
        vision_config=_clip_tower(shape),
        text_config=_llama(shape),
        image_token_index=4,
        video_token_index=5,
        image_grid_pinpoints=pinpoints,
    )
    view = _view(shape)
    processor = LlavaNextVideoProcessor(
        image_processor=LlavaNextImageProcessor(**view, image_grid_pinpoints=pinpoints),
        video_processor=LlavaNextVideoVideoProcessor(**view, num_frames=shape.frames),
        tokenizer=_tokenizer("llama", shape),
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("llava_next_video"),
    )
    return Parts(config, LlavaNextVideoForConditionalGeneration, processor)


def _llava_onevision(shape: Shape) -> Parts:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
    from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

    pinpoints = [[shape.pixels, shape.pixels], [shape.pixels, 2 * shape.pixels]]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_tower(shape), vision_use_head=False),
        text_config=Qwen2Config(**_text(shape), **_ids("chatml")),
        image_token_index=4,
        video_token_index=5,
        image_grid_pinpoints=pinpoints,
    )
    size = {"height": shape.pixels, "width": shape.pixels}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        video_processor=LlavaOnevisionVideoProcessor(size=size, num_frames=shape.frames),
        tokenizer=_tokenizer("chatml", shape),
        num_image_tokens=(shape.pixels // shape.patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_template("llava_onevision"),
    )
    return Parts(config, LlavaOnevisionForConditionalGeneration, processor)


def _qwen2_5_vl(shape: Shape) -> Parts:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    patch = qwen_patch("qwen2_5_vl")
    vision = {
        **_qwen_tower(shape, patch),
        "window_size": 4 * patch,  # 2 x 2 tokens
        "fullatt_block_indexes": [shape.vision_layers - 1],
        "tokens_per_second": 2,
    }
    text = _text(shape) | {"rope_parameters": _mrope(shape)} | _ids("qwen")
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **_qwen_ids())
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=patch, size=_qwen_pixels(patch)),
        video_processor=Qwen2VLVideoProcessor(patch_size=patch, size=_qwen_pixels(patch), num_frames=shape.frames),
        tokenizer=_tokenizer("qwen", shape),
        chat_template=_template("qwen2_5_vl"),
    )
    return Parts(config, Qwen2_5_VLForConditionalGeneration, processor)


def _qwen3_vl(shape: Shape) -> Parts:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    patch = qwen_patch("qwen3_vl")
    vision = {
        **_qwen_tower(shape, patch),
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": list(range(min(2, shape.vision_layers - 1))),
    }
    text = _text(shape) | {"rope_parameters": _mrope(shape) | {"mrope_interleaved": True}} | _ids("qwen")
    config = Qwen3VLConfig(
        vision_config=vision, text_config={**text, "head_dim": shape.hidden // shape.heads}, **_qwen_ids()
    )
    size = _qwen_pixels(patch)
    volume = {name: edge * shape.frames for name, edge in size.items()}  # Qwen3-VL limits a clip, not a frame
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=patch, size=size),
        video_processor=Qwen3VLVideoProcessor(patch_size=patch, size=volume, num_frames=shape.frames, fps=None),
        tokenizer=_tokenizer("qwen", shape),
        chat_template=_template("qwen3_vl"),
    )
    return Parts(config, Qwen3VLForConditionalGeneration, processor)


MAKERS: dict[str, Callable[[Shape], Parts]] = {
    "video_llava": _video_llava,
    "video_llava_patches": functools.partial(_video_llava, converted=True),
    "video_llava_over_time": functools.partial(_video_llava, converted=True, over_time=True),
    "llava_next_video": _llava_next_video,
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}


def _text(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context,
        "initializer_range": shape.hidden**-0.5,  # larger than usual where small: the logits are far from uniform
    }


def _ids(style: str) -> dict[str, int]:
    special = SPECIAL[style]
    start = "<s>" if style == "llama" else "<|im_start|>"
    end = "</s>" if style == "llama" else "<|im_end|>"
    return {"pad_token_id": 0, "bos_token_id": special.index(start), "eos_token_id": special.index(end)}


def _llama(shape: Shape) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**_text(shape), **_ids("llama"))


def _tower(shape: Shape) -> dict[str, int]:
    return {
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "image_size": shape.pixels,
        "patch_size": shape.patch,
    }


def _clip_tower(shape: Shape) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**_tower(shape), projection_dim=shape.vision_hidden)


def _view(shape: Shape) -> dict[str, Any]:
    return {
        "size": {"shortest_edge": shape.pixels},
        "crop_size": {"height": shape.pixels, "width": shape.pixels},
    }


def qwen_patch(family: str) -> int:
    return 14 if family == "qwen2_5_vl" else 16


def _qwen_pixels(patch: int) -> dict[str, int]:
    """Between 1 and 16 tokens a frame."""
    return {"shortest_edge": (2 * patch) ** 2, "longest_edge": 16 * (2 * patch) ** 2}


def _qwen_tower(shape: Shape, patch: int) -> dict[str, Any]:
    return {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden,
        "patch_size": patch,
        "initializer_range": shape.vision_hidden**-0.5,
    }


def _mrope(shape: Shape) -> dict[str, Any]:
    half = shape.hidden // shape.heads // 2
    side = half * 3 // 8
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [half - 2 * side, side, side]}


def _qwen_ids() -> dict[str, int]:
    names = ("image", "video", "vision_start", "vision_end")
    return {f"{name}_token_id": 4 + number for number, name in enumerate(names)}


def _template(family: str) -> str:
    template: str = importlib.import_module(f"isr_dpo.models.{family}").CHAT_TEMPLATE
    return template


def _tokenizer(style: str, shape: Shape) -> Any:
    """Words, digits and punctuation up to the vocabulary's size; LLaMA's kind begins each text with `<s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL[style]
    known = list(dict.fromkeys([*special, *WORDS.split(), *"0123456789.,:?<>'"]))
    words = [*known, *(f"w{number}" for number in range(shape.vocabulary - len(known)))]
    if len(words) > shape.vocabulary:
        raise ValueError(f"a vocabulary of {shape.vocabulary}; at least {len(known)} words are needed")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    if style == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": special[0], "eos_token": special[2], "unk_token": "<unk>"}
    if style == "llama":
        names["bos_token"] = special[1]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **names,
        additional_special_tokens=[token for token in special if token not in names.values()],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=shape.context,
    )
