"""What becomes of a source: configuration, processor and the list of tensors of `VideoLlavaForConditionalGeneration`,
compared with what its class itself expects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from isr_dpo.errors import ModelError
from isr_dpo.models.convert import names
from isr_dpo.models.convert.shards import BYTES, Entry
from isr_dpo.models.convert.source import CONFIG, Source
from isr_dpo.models.convert.tokenizer import MEDIA, Vocabulary
from isr_dpo.models.convert.towers import has_image_tower

if TYPE_CHECKING:
    from transformers import GenerationConfig, VideoLlavaConfig, VideoLlavaProcessor

TEXT = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_bias", "mlp_bias", "head_dim"),
    "initializer_range",
)
"""Llama's own fields, taken as they are."""
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Written(NamedTuple):
    """A shard to write, and the file whose tensors it takes."""

    name: str
    source: Path
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Target:
    """All that is written but provenance. `pairs`: source -> target; `left_out`: source -> why."""

    config: VideoLlavaConfig
    processor: VideoLlavaProcessor
    generation: GenerationConfig
    pairs: Mapping[str, str]
    left_out: Mapping[str, str]
    shards: tuple[Written, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for shard in self.shards for entry in shard.entries)


def target(source: Source, vision: Mapping[str, Any], vocabulary: Vocabulary, *, keep_class_token: bool) -> Target:
    """The target of a source; the class token of each frame is among its video tokens or not.

    Raises:
        ModelError: settings of which there is no model; a tensor that nobody knows, one that is missing, one of another
            shape than the class has.
    """
    from huggingface_hub.errors import StrictDataclassError

    for name in names.WITH_VOCABULARY:
        rows = source.shape(name, 2)[0]
        if rows != vocabulary.size:
            raise ModelError(
                f"{source.folder}: {name} has {rows} rows, config.json and the tokenizer have {vocabulary.size} tokens"
            )
    left_out = {name: why for name in source.tensors if (why := names.left_out(name)) is not None}
    pairs = {name: names.target_of(name) for name in source.tensors if name not in left_out}
    for name, found in pairs.items():
        if found is None:
            raise ModelError(_unknown(source, name))
    known = {name: found for name, found in pairs.items() if found is not None}
    written = _written(source, known)
    try:
        config = _config(source, vision, vocabulary, keep=keep_class_token)
        expected = _expected(config)
    except (ValueError, TypeError, KeyError, ArithmeticError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{source.folder}/{CONFIG}: transformers makes no model of it: {reason}") from error
    _check(source, known, written, expected)
    processor = _processor(source, config, vocabulary, keep=keep_class_token)
    return Target(config, processor, _generation(vocabulary), known, left_out, written)


def _written(source: Source, pairs: Mapping[str, str]) -> tuple[Written, ...]:
    """A shard for each of the source's that has anything for the target."""
    held = [[_entry(source, name, pairs[name]) for name in shard.tensors if name in pairs] for shard in source.shards]
    full = [(shard.path, tuple(entries)) for shard, entries in zip(source.shards, held, strict=True) if entries]
    if len(full) == 1:
        return (Written("model.safetensors", *full[0]),)
    width = len(full)
    return tuple(
        Written(f"model-{number:05d}-of-{width:05d}.safetensors", *part) for number, part in enumerate(full, start=1)
    )


def _entry(source: Source, name: str, target_name: str) -> Entry:
    dtype, shape = source.tensors[name]
    more = len(MEDIA) if name in names.WITH_VOCABULARY else 0  # no text has them, no answer may: zeros
    shape = (shape[0] + more, *shape[1:]) if more else shape
    return Entry(name, target_name, dtype, shape, more, math.prod(shape) * BYTES[dtype])


def _expected(config: VideoLlavaConfig) -> dict[str, tuple[int, ...]]:
    """Saved name -> shape of each parameter of the class, which is built without memory."""
    import torch

    from isr_dpo.models.video_llava import VideoLlavaForConditionalGeneration

    with torch.device("meta"):
        model = VideoLlavaForConditionalGeneration(config)
    return {names.saved(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _check(
    source: Source, pairs: Mapping[str, str], written: tuple[Written, ...], expected: Mapping[str, tuple[int, ...]]
) -> None:
    found = {entry.target: entry for shard in written for entry in shard.entries}
    for name, target_name in pairs.items():
        if target_name not in expected:
            raise ModelError(_unknown(source, name))
    if lost := [name for name in expected if name not in found]:
        raise ModelError(
            f"{source.folder}: {len(lost)} tensors are missing, for {lost[0]} first: not a whole checkpoint"
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ModelError(
                f"{source.folder}: {found[name].source} makes {list(found[name].shape)}, "
                f"by config.json it is {list(shape)}"
            )


def _unknown(source: Source, name: str) -> str:
    return (
        f"{source.folder}: the tensor {name} is unknown: the model that it belongs to is not one that is converted; "
        "nothing is left out without a reason"
    )


def _config(source: Source, vision: Mapping[str, Any], vocabulary: Vocabulary, *, keep: bool) -> VideoLlavaConfig:
    from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig

    layer, layers = source.config["mm_vision_select_layer"], vision["num_hidden_layers"]
    if not -layers - 1 <= layer <= layers:
        raise ValueError(f"mm_vision_select_layer {layer}: its tower has {layers} layers")
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    ids = {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos, "pad_token_id": vocabulary.unk}
    text = LlamaConfig(
        vocab_size=vocabulary.size + len(MEDIA),
        rope_parameters=_rope(source),
        tie_word_embeddings=False,
        **ids,
        **{name: source.config[name] for name in TEXT if source.config.get(name) is not None},
    )
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=text,
        image_token_index=vocabulary.size,
        video_token_index=vocabulary.size + 1,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if source.config["mm_vision_select_feature"] == "patch" else "full",
        image_seq_length=patches,
        video_seq_length=frames(vision) * (patches + keep),
        tie_word_embeddings=False,
        dtype=_DTYPES.get(source.tensors[names.EMBEDDING].dtype, "float32"),
        **({} if keep else {"video_class_token": False}),
        **({} if has_image_tower(source) else {"image_tower": False}),
    )
    config.architectures = ["VideoLlavaForConditionalGeneration"]
    return config


def _rope(source: Source) -> dict[str, Any]:
    """Rotary settings as transformers 5 writes them, from those of before."""
    scaling = dict(source.config.get("rope_scaling") or {})
    kind = scaling.pop("type", None) or scaling.pop("rope_type", "default")
    return {"rope_type": kind, "rope_theta": float(source.config.get("rope_theta", 10000.0)), **scaling}


def frames(vision: Mapping[str, Any]) -> int:
    """Frames a clip: those of the tower's attention over time, else LLaVA-Hound's number [C]."""
    from isr_dpo.models.common import DEFAULT_FRAMES

    return int(vision.get("num_frames", DEFAULT_FRAMES))


def _processor(source: Source, config: Any, vocabulary: Vocabulary, *, keep: bool) -> VideoLlavaProcessor:
    """Short side and centre crop to the tower's size, CLIP's mean and deviation; videos bilinear [C]."""
    from transformers import VideoLlavaProcessor
    from transformers.image_utils import PILImageResampling
    from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor
    from transformers.models.video_llava.video_processing_video_llava import VideoLlavaVideoProcessor

    from isr_dpo.models.common import VICUNA_TEMPLATE

    vision = config.vision_config
    side = vision.image_size
    view = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**view),
        video_processor=VideoLlavaVideoProcessor(
            **view,
            resample=PILImageResampling.BILINEAR,
            do_sample_frames=False,
            num_frames=frames(vision.to_dict()),
        ),
        tokenizer=vocabulary.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(keep),
        chat_template=VICUNA_TEMPLATE,
    )


def _generation(vocabulary: Vocabulary) -> GenerationConfig:
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=vocabulary.bos, eos_token_id=vocabulary.eos, pad_token_id=vocabulary.unk, do_sample=False
    )
