"""Tiny policies as vLLM takes them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from tests import families

SHAPE = replace(families.TINY, hidden=128, frames=24, context=1024)
"""vLLM's attention on a CPU wants heads of 32 dimensions or more."""
SHAPES = {"video_llava": SHAPE, "llava_onevision": replace(SHAPE, pixels=112), "qwen2_5_vl": SHAPE}
"""Each family's video alone is longer than a block of vLLM's cache, which has 128 tokens on a CPU."""
QWEN_CLIP = (8, 5 * 28, 8 * 28, 3)
"""Wider, in tokens, than it is long in steps of time. Where a clip is longer than that, transformers 5 and vLLM give
the text after it different positions: from the frame's larger side on, or after the highest position."""
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
    if family != "qwen2_5_vl":
        return families.clip(family, key, shape=SHAPES[family])
    return np.random.default_rng(int.from_bytes(key.encode()[-4:], "big")).integers(0, 256, QWEN_CLIP, dtype=np.uint8)
