"""Frames for a model that is served elsewhere, whose server resizes them for it."""

from __future__ import annotations

import numpy as np

SHORT_SIDE_PIXELS = 336
"""Of frames sent to a served model, where they are larger [O]: the width of the published frames."""
SHRUNK = f"shrink/{SHORT_SIDE_PIXELS}"
"""Part of the frames' cache key."""


def shrink(frames: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] with the shorter side at most `SHORT_SIDE_PIXELS`, the aspect kept, nothing cropped."""
    from PIL import Image

    height, width = frames.shape[1:3]
    scale = SHORT_SIDE_PIXELS / min(height, width)
    if scale >= 1:
        return frames
    size = (round(width * scale), round(height * scale))
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames])
