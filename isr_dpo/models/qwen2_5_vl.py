"""Qwen2.5-VL, and what Qwen3-VL shares with it.

Video tokens: one for 2 frames of 28 x 28 pixels, at a size that depends on the clip; `video_grid_thw` is their layout.
Positions: M-RoPE, three rows (time, height, width). The frames of a clip are spread evenly over it whatever its length,
and the store keeps no times, so one rate holds for every clip: `FRAMES_PER_SECOND` [O]. It is the rate that these
families sample at by default, and that ShareGPTVideo's frames have [C]; one step of the grid is one second then. Text
after the video, and what follows the prompt, stands one after the highest position before it, as the family was
published and as vLLM has it; transformers 5 puts it after the frame's larger side, among a long clip's own positions.
Template: ChatML with a system turn, the video before the question.
Features: the tower's states, put from its windows back into the grid's order; the merger makes video tokens of them.
Trains: the language model; the merger (the family's projector) where the recipe says so; the tower never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from isr_dpo.errors import RecipeError
from isr_dpo.models import common

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
LANGUAGE = ("model.language_model.", "lm_head.")
PROJECTOR = ("model.visual.merger.",)
TURNS = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT_TEMPLATE = "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}" + TURNS
FRAMES_PER_SECOND = 2.0
media_ids, prompt_ids = common.media_ids, common.prompt_ids


def load(folder: Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor in `folder`."""
    return common.load_with(Qwen2_5_VLForConditionalGeneration, folder, dtype=dtype), load_processor(folder)


def load_processor(folder: Path) -> Any:
    return Qwen2_5_VLProcessor.from_pretrained(folder, local_files_only=True)


def frames(folder: Path) -> int:
    """Frames a clip that the policy was made for."""
    return common.frames_of(load_processor(folder))


def resizer(folder: Path) -> common.Resize:
    """The processor's own resize, to a size that fits its patches: what the frame store keeps."""
    return grid_resizer(load_processor(folder))


def encode(processor: Any, texts: Sequence[str], videos: Sequence[np.ndarray]) -> common.Encoded:
    """Ids of each text with its video; `pixel_values_videos` [patches, values], `video_grid_thw` [1, 3] and
    `second_per_grid_ts` [1]. Raises RecipeError as the resize does."""
    encoded = encode_grids(processor, texts, videos)
    step = torch.tensor([processor.video_processor.temporal_patch_size / FRAMES_PER_SECOND])
    return common.Encoded(encoded.ids, [{**video, "second_per_grid_ts": step} for video in encoded.videos])


def tower(model: Any, video: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`features` [patches, d] of one video, in the grid's order, `video_grid_thw` and `second_per_grid_ts`."""
    merger = model.model.visual.merger
    handle = merger.register_forward_hook(_number)  # numbers in place of tokens: the model puts them in grid order
    try:
        entering = common.entering([merger], model, video)
    finally:
        handle.remove()
    (states,), (order,) = entering.states, entering.features.pooler_output
    windows = states.view(len(order), -1, states.shape[-1])  # [tokens, patches of one, d], in the windows' order
    grids = {name: video[name] for name in common.NOT_PIXELS}
    return {"features": windows[order[:, 0]].flatten(0, 1), **grids}


def project(model: Any, towers: Sequence[Mapping[str, Tensor]]) -> BaseModelOutputWithPooling:
    """`pooler_output`: a tensor [tokens, D] for each video."""
    merged = model.model.visual.merger(common.entered(model, towers))
    return BaseModelOutputWithPooling(pooler_output=merged.split(token_counts(model, towers)))


def positions(model: Any, ids: Tensor, video: Mapping[str, Tensor]) -> Tensor:
    """[3, T]."""
    grids = {name: video[name].to(ids.device) for name in common.NOT_PIXELS if name in video}
    rows, _ = model.model.get_rope_index(ids[None], **inputs(model, ids[None]), **grids)  # [3, 1, T]
    found: Tensor = rows[:, 0]
    after = int((ids == model.config.video_token_id).nonzero().amax()) + 1 if grids else len(ids)
    text = torch.arange(len(ids) - after, device=ids.device)
    found[:, after:] = found[:, :after].amax() + 1 + text
    return found


def inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """`mm_token_type_ids` [B, T]: 2 at video tokens, 0 elsewhere."""
    return {"mm_token_type_ids": (ids == model.config.video_token_id).int() * 2}


def grid_resizer(processor: Any) -> common.Resize:
    """Resizes by the processor and lays its patches out as frames again.

    The resize raises RecipeError: a number of frames that the patches' depth does not divide (the processor would
    repeat the last one).
    """
    video_processor = processor.video_processor
    depth, side, merge = video_processor.temporal_patch_size, video_processor.patch_size, video_processor.merge_size

    def resize(frames: np.ndarray) -> np.ndarray:
        _check_frames(processor, frames)
        batch = video_processor(
            videos=[frames.copy()],  # torch wants a writable array
            do_sample_frames=False,
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
        )
        times, rows, columns = batch["video_grid_thw"][0].tolist()
        patches = batch["pixel_values_videos"].reshape(
            times, rows // merge, columns // merge, merge, merge, 3, depth, side, side
        )
        ordered = patches.permute(0, 6, 1, 3, 7, 2, 4, 8, 5)  # time, depth, rows of pixels (3), columns (3), colour
        resized = ordered.reshape(times * depth, rows * side, columns * side, 3)
        return np.ascontiguousarray(resized.to(torch.uint8).numpy())

    return resize


def encode_grids(processor: Any, texts: Sequence[str], videos: Sequence[np.ndarray]) -> common.Encoded:
    """As `encode`, without times between grid steps; the processor learns the rate of the frames."""
    for video in videos:
        _check_frames(processor, video)
    rows = []
    for text, video in zip(texts, videos, strict=True):
        keys = ("pixel_values_videos", "video_grid_thw")
        rows.append(common.encode_rows(processor, [text], [video], keys=keys, video_metadata=[times(len(video))]))
    return common.Encoded([row.ids[0] for row in rows], [row.videos[0] for row in rows])


def times(frames: int) -> dict[str, Any]:
    """What the processor is told of a clip's frames."""
    return {
        "fps": FRAMES_PER_SECOND,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "duration": frames / FRAMES_PER_SECOND,
    }


def token_counts(model: Any, towers: Sequence[Mapping[str, Tensor]]) -> list[int]:
    """Video tokens of each video."""
    patches_a_token = model.config.vision_config.spatial_merge_size**2
    return [int(tower["video_grid_thw"].prod()) // patches_a_token for tower in towers]


def _number(_: torch.nn.Module, args: Any, output: Tensor) -> Tensor:
    """[tokens, 1]: 0, 1, 2 ..."""
    return torch.arange(len(output), device=output.device)[:, None]


def _check_frames(processor: Any, frames: np.ndarray) -> None:
    depth = processor.video_processor.temporal_patch_size
    if len(frames) % depth:
        raise RecipeError(f"data.frames: {len(frames)} frames a clip; this model takes them in multiples of {depth}")
