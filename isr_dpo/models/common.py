"""What the families share: video tokens in a row, frames in and out of a processor, features at the projector's door.

A family file names its classes and prefixes and says what is its own; the rest is here. Its functions:

    load(folder, *, dtype) -> (model, processor)      load_processor(folder)      frames(folder)      resizer(folder)
    encode(processor, texts, videos) -> Encoded       one video a text
    tower(model, video) -> dict                       frozen: what enters the projector, for one video
    project(model, towers) -> output                  differentiable: what `get_video_features` gives for those videos
    positions(model, ids, video) -> [A, T]            A = 1, or 3 with M-RoPE
    inputs(model, ids) -> dict                        what a forward pass needs beside ids and the video's tensors
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Resize = Callable[[np.ndarray], np.ndarray]
"""uint8 [F, H, W, 3] -> uint8 [F, h, w, 3]."""

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


def batch_videos(videos: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The model's inputs for several videos, in the order of the rows that they belong to."""
    return {name: torch.cat([video[name] for video in videos]) for name in videos[0]}


def place(model: Any, video: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`video` on the model's device, pixels and features in its dtype; grids and times stay as they are."""
    exact = ("video_grid_thw", "second_per_grid_ts")
    return {name: t.to(model.device, dtype=None if name in exact else model.dtype) for name, t in video.items()}


def load_with(model_class: Any, folder: Path, *, dtype: torch.dtype) -> Any:
    """The model in `folder`: safetensors, no network."""
    return model_class.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)


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


@torch.no_grad()
def entering(modules: Sequence[nn.Module], model: Any, video: Mapping[str, Tensor]) -> list[Tensor]:
    """What the model feeds each of `modules` (a projector) when it computes the features of `video`."""
    seen: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[module] = args[0]

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        model.get_video_features(**place(model, video))
    finally:
        for handle in handles:
            handle.remove()
    return [seen[module].detach() for module in modules]


def entered(model: Any, towers: Sequence[Mapping[str, Tensor]], name: str = "features") -> Tensor:
    """`name` of several videos as one tensor, concatenated along dimension 0."""
    return place(model, {name: torch.cat([tower[name] for tower in towers])})[name]


def plain_positions(ids: Tensor) -> Tensor:
    """Positions [1, T] of ids [T] in one dimension."""
    return torch.arange(len(ids), device=ids.device)[None]
