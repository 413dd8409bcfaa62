"""Policies with random weights, one of each model family: tiny ones for tests, larger Video-LLaVAs for benchmarks.

`build` writes a policy folder; `parts` gives what `build` saves, for a model that is made on a device and never saved.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from isr_dpo.models import FAMILIES as MODULES
from tests.family_parts import BENCH as BENCH
from tests.family_parts import MAKERS, Parts, Shape, qwen_patch

FAMILIES = tuple(MODULES.values())
"""video_llava, llava_next_video, llava_onevision, qwen2_5_vl, qwen3_vl."""
FORMS = ("video_llava_patches", "video_llava_over_time")
"""Of Video-LLaVA, as its original checkpoints are once converted: no class token, no image tower; in the second one the
video tower has attention over time. They stand for a family wherever one is built."""

TINY = Shape()
VIDEO_LLAVA_7B = Shape(
    hidden=4096,
    intermediate=11008,
    layers=32,
    heads=32,
    kv_heads=32,
    vocabulary=32064,
    context=4096,
    frames=8,
    pixels=224,
    vision_hidden=1024,
    vision_intermediate=4096,
    vision_layers=24,
    vision_heads=16,
)
"""The published Video-LLaVA-7B: Vicuna-7B and CLIP-L/14 towers."""


def build(folder: Path, family: str, *, seed: int = 0, shape: Shape = TINY, **sizes: int) -> Path:
    """Writes a random policy of a family or form to `folder`; `sizes` replace fields of `shape`."""
    config, model_class, processor = parts(family, replace(shape, **sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        liven(model)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def liven(model: torch.nn.Module) -> None:
    """Moves biases and norms off their zeros and ones, so that a test notices one that is left out."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)


def clip(family: str, key: str, *, shape: Shape = TINY) -> np.ndarray:
    """Frames of a made-up clip as the frame store keeps them for such a policy: uint8 [F, H, W, 3]."""
    height = width = shape.pixels
    if family.startswith("qwen"):
        side = qwen_patch(family) * 2
        height, width = side * 3, side * 4  # several windows, and neither square nor a multiple of the window
    seed = int.from_bytes(key.encode()[-4:], "big")
    return np.random.default_rng(seed).integers(0, 256, (shape.frames, height, width, 3), dtype=np.uint8)


def parts(family: str, shape: Shape = TINY) -> Parts:
    """Configuration, model class and processor of a family or form of the given shape."""
    return MAKERS[family](shape)
