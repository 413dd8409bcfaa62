"""Video-LLaVA: the paper's own family (LLaVA-Hound and ISR-DPO checkpoints, once converted).

Video tokens: one for each patch and, in transformers, the class token of each frame. Positions are plain 1-D.
Projected features are constants in DPO, because tower and projector are frozen [C].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import VideoLlavaForConditionalGeneration, VideoLlavaProcessor

if TYPE_CHECKING:
    from collections.abc import Callable

ARCHITECTURE = "VideoLlavaForConditionalGeneration"
FRAME_OPTIONS = {"do_resize": False, "do_center_crop": False, "do_sample_frames": False}
"""Frames come sampled and resized from the frame store; only rescaling and normalisation are left to the processor."""


def load(folder: Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor in `folder`."""
    model = VideoLlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return model, load_processor(folder)


def load_processor(folder: Path) -> Any:
    return VideoLlavaProcessor.from_pretrained(folder, local_files_only=True)


def frames(folder: Path) -> int:
    """Frames a clip that the policy was made for (`num_frames` of its video processor; 8 where it says nothing [C])."""
    return int(getattr(load_processor(folder).video_processor, "num_frames", None) or 8)


def resizer(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The processor's own resize and crop, uint8 [F, H, W, 3] -> uint8 [F, h, w, 3]: what the frame store keeps."""
    video_processor = load_processor(folder).video_processor

    def resize(frames: np.ndarray) -> np.ndarray:
        batch = video_processor(
            videos=[frames.copy()],  # torch wants a writable array
            do_sample_frames=False,
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
        )
        resized: np.ndarray = batch["pixel_values_videos"][0].permute(0, 2, 3, 1).to(torch.uint8).numpy()
        return np.ascontiguousarray(resized)

    return resize


def pixels(batch: Any) -> dict[str, torch.Tensor]:
    """The model's video inputs from a processor's batch: pixel_values_videos [B, F, 3, H, W]."""
    values = batch["pixel_values_videos"]
    stacked = values if isinstance(values, torch.Tensor) else torch.stack([torch.as_tensor(v) for v in values])
    return {"pixel_values_videos": stacked}


def trains(name: str) -> bool:
    """Whether the parameter belongs to the language model."""
    return name.startswith(("model.language_model.", "lm_head."))
