"""Tiny policies as vLLM takes them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from isr_dpo import config
from tests import families
from tests.family_parts import qwen_patch

MODEL = config.Model(start="tiny", registered_name="tiny", device="cpu")
SHAPE = replace(families.TINY, hidden=128, frames=24, context=1024)
"""vLLM's attention on a CPU wants heads of 32 dimensions or more."""
SHAPES = {
    "video_llava": SHAPE,
    "llava_next_video": replace(SHAPE, pixels=224, frames=8),  # vLLM divides by a pooled side that is 0 below this
    "llava_onevision": replace(SHAPE, pixels=112),
    "qwen2_5_vl": SHAPE,
    "qwen3_vl": SHAPE,
}
"""Each family's video alone is longer than 128 tokens, several blocks of vLLM's cache."""
QWEN_FRAMES, QWEN_GRID = 16, (5, 8)
"""A clip that is longer in steps of time than wide, where text after it could be misplaced; rows and columns of
tokens."""
UNPUBLISHED = re.compile(r"^vision_tower\.(?!vision_model\.)")


def build(folder: Path, family: str) -> Path:
    """A random policy, its weights named as in the family's published checkpoints.

    transformers 5 gives a LLaVA's vision tower other names when it saves a model that it did not load from such a
    checkpoint; one that it did load keeps them through all rounds.
    """
    families.build(folder, family, shape=SHAPES[family])
    file = folder / "model.safetensors"
    weights = {UNPUBLISHED.sub("vision_tower.vision_model.", name): weight for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def clip(family: str, key: str) -> np.ndarray:
    """Frames of a made-up clip for such a policy: uint8 [F, H, W, 3]."""
    if not family.startswith("qwen"):
        return families.clip(family, key, shape=SHAPES[family])
    rows, columns = (2 * qwen_patch(family) * side for side in QWEN_GRID)
    draw = np.random.default_rng(int.from_bytes(key.encode()[-4:], "big"))
    return draw.integers(0, 256, (QWEN_FRAMES, rows, columns, 3), dtype=np.uint8)
