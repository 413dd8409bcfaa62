"""What the families share: video tokens in a row, frames in and out of a processor, features at the projector's door.

A family file names its classes and prefixes and says what is its own; the rest is here. Its functions:

    load(folder, *, dtype) -> (model, processor)      load_processor(folder)      frames(folder)      resizer(folder)
    encode(processor, texts, videos) -> Encoded       one video a text
    prompt_ids(processor, text) -> ids                one token for the video: for engines with a processor of their own
    times(frames) -> dict | None                      what such a processor is told of a clip's so many frames
    tower(model, video) -> dict                       frozen: what enters the projector, for one video
    project(model, towers) -> output                  differentiable: what `get_video_features` gives for those videos
    positions(model, ids, video) -> [A, T]            A = 1, or 3 with M-RoPE
    inputs(model, ids) -> dict                        what a forward pass needs beside ids and the video's tensors
    media_ids(model) -> set                           token ids that stand for pixels and may be in no response

`feed` gives projected features to a forward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Resize = Callable[[np.ndarray], np.ndarray]
"""uint8 [F, H, W, 3] -> uint8 [F, h, w, 3]."""

NOT_PIXELS = ("video_grid_thw", "second_per_grid_ts")
"""Video inputs that keep their dtype; grids say how patches lie, and times how far apart they are."""

DEFAULT_FRAMES = 8
"""Frames a clip where a processor names no number [C: LLaVA-Hound]."""

FRAME_OPTIONS = {"do_resize": False, "do_center_crop": False, "do_sample_frames": False}
"""Frames come sampled and resized from the frame store; only rescaling and normalisation are left to the processor."""

VICUNA_TEMPLATE = (
    "{{ 'A chat between a curious user and an artificial intelligence assistant. '"
    " ~ 'The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' }}"
    "{% for message in messages %}"
    "{{ ' ' ~ message['role'].upper() ~ ': ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ '<video>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
"""Vicuna v1, with the video before the question [C: LLaVA-Hound]."""


@dataclass(frozen=True)
class Encoded:
    """`ids`: prompt token ids a row, its video tokens expanded, without padding. `videos`: the model's video inputs of
    each row; those of several videos are concatenated along dimension 0, whatever the key and the family."""

    ids: list[list[int]]
    videos: list[dict[str, Tensor]]


class Entering(NamedTuple):
    """One tensor for each module asked about, and the model's features."""

    states: list[Tensor]
    features: Any


def batch_videos(videos: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The model's inputs for several videos, in the order of the rows that they belong to."""
    return {name: torch.cat([video[name] for video in videos]) for name in videos[0]}


def place(model: Any, video: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`video` on the model's device, pixels and features in its dtype; grids and times stay as they are."""
    return {name: t.to(model.device, dtype=None if name in NOT_PIXELS else model.dtype) for name, t in video.items()}


def load_with(model_class: Any, folder: Path, *, dtype: torch.dtype, refused: str | None = None, **options: Any) -> Any:
    """The model in `folder`: safetensors, no network; `options` are `from_pretrained`'s. Raises ValueError: tensors are
    missing there, which transformers would draw at random; or there are some for which the model has no place, and
    whose names contain `refused`, which it would leave out."""
    model, found = model_class.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, {missing[0]} first")
    homeless = sorted(name for name in found["unexpected_keys"] if refused is not None and refused in name)
    if homeless:
        raise ValueError(f"config.json has no place for {len(homeless)} tensors, {homeless[0]} first")
    return model


def encode_rows(
    processor: Any,
    texts: Sequence[str],
    videos: Sequence[np.ndarray],
    *,
    keys: Sequence[str] = ("pixel_values_videos",),
    **options: Any,
) -> Encoded:
    """Runs the processor on each text with its video, uint8 [F, H, W, 3]; keeps `keys` of its video inputs."""
    ids, kept = [], []
    for text, video in zip(texts, videos, strict=True):
        batch = processor(text=[text], videos=[video], **FRAME_OPTIONS, **options, return_tensors="pt")
        ids.append(batch["input_ids"][0].tolist())
        kept.append({key: batch[key] for key in keys})
    return Encoded(ids=ids, videos=kept)


def prompt_ids(processor: Any, text: str) -> list[int]:
    """Ids of a chat text with one token for its video."""
    ids: list[int] = processor.tokenizer(text)["input_ids"]
    return ids


def no_times(frames: int) -> None:
    """Of a family that places frames by their number alone."""


def frames_of(processor: Any) -> int:
    """Frames a clip that the policy was made for: `num_frames` of its video processor."""
    return int(getattr(processor.video_processor, "num_frames", None) or DEFAULT_FRAMES)


def resizer_of(processor: Any) -> Resize:
    """The processor's own resize and crop: what the frame store keeps."""

    def resize(frames: np.ndarray) -> np.ndarray:
        batch = processor.video_processor(
            videos=[frames.copy()],  # torch wants a writable array
            do_sample_frames=False,
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
        )
        resized: np.ndarray = batch["pixel_values_videos"][0].permute(0, 2, 3, 1).to(torch.uint8).numpy()
        return np.ascontiguousarray(resized)

    return resize


def video_features(model: Any, video: Mapping[str, Tensor]) -> Any:
    """The model's own features of one or more videos: tower and projector."""
    pixels = place(model, video)["pixel_values_videos"]
    grid = {name: video[name].to(model.device) for name in ("video_grid_thw",) if name in video}
    return model.model.get_video_features(pixels, **grid, return_dict=True)


@torch.no_grad()
def entering(modules: Sequence[nn.Module], model: Any, video: Mapping[str, Tensor]) -> Entering:
    """Computes the features of `video` and notes what enters each of `modules` (a projector) on the way."""
    seen: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[module] = args[0].detach()

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        features = video_features(model, video)
    finally:
        for handle in handles:
            handle.remove()
    return Entering([seen[module] for module in modules], features)


def entered(model: Any, towers: Sequence[Mapping[str, Tensor]], name: str = "features") -> Tensor:
    """`name` of several videos as one tensor, concatenated along dimension 0."""
    return place(model, {name: torch.cat([tower[name] for tower in towers])})[name]


def plain_positions(ids: Tensor) -> Tensor:
    """Positions [1, T] of ids [T] in one dimension."""
    return torch.arange(len(ids), device=ids.device)[None]


def media_ids(model: Any) -> set[int]:
    """Ids of the image and video tokens."""
    return {model.config.image_token_id, model.config.video_token_id}


def takes_features(model: Any) -> bool:
    """Whether its forward pass takes `mm_encoder_outputs`."""
    return "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters


def feed(model: Any, ids: Tensor, features: Any) -> dict[str, Any]:
    """Keyword inputs of a forward pass over ids [B, T] with `features`, from `project`, in place of pixels.

    transformers before `mm_encoder_outputs` (5.17 is such a one) takes embeddings instead, and Qwen3-VL's deepstack
    features at the door of its language model. Gives the same logits.

    Raises:
        ValueError: another number of video tokens than of features.
    """
    if takes_features(model):
        return {"input_ids": ids, "mm_encoder_outputs": {"video": features}}
    embedded = model.get_input_embeddings()(ids)  # [B, T, D]
    is_video = ids == model.config.video_token_id
    values = _rows(features.pooler_output).to(embedded)
    if len(values) != int(is_video.sum()):
        raise ValueError(f"{int(is_video.sum())} video tokens in the ids, {len(values)} video features")
    deep = getattr(features, "deepstack_features", None)
    if deep is not None:
        extra = {"visual_pos_masks": is_video, "deepstack_visual_embeds": [_rows(level) for level in deep]}
        _add_once(model.get_decoder(), extra)
    return {"inputs_embeds": embedded.masked_scatter(is_video[..., None], values)}


def _rows(features: Tensor | Sequence[Tensor]) -> Tensor:
    """[..., D] of one tensor or of one a video -> [video tokens, D]."""
    if isinstance(features, Tensor):
        return features.flatten(0, -2)
    return torch.cat([part.flatten(0, -2) for part in features])


def _add_once(module: nn.Module, extra: Mapping[str, Any]) -> None:
    """Adds keyword arguments to the module's next call."""

    def add(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        handle.remove()
        return args, {**kwargs, **extra}

    handle = module.register_forward_pre_hook(add, with_kwargs=True)
