"""Clips in memory, as the model sees them: what the starting checkpoint is trained on and measured with.

They are rendered from scenes without the detour through a video file; random shrinking filters and contrast stand in
for what encoding and resizing do, so that the model meets nothing new when it sees real files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

from isr_dpo.data.world.model import FRAMES_SEEN, MEAN, STD, VIEW_PX
from isr_dpo.data.world.pixels import FRAMES, render
from isr_dpo.data.world.scene import Scene

SEEN = np.linspace(0, FRAMES - 1, FRAMES_SEEN).round().astype(int)
"""The frames that uniform sampling with both ends picks."""


@dataclass(frozen=True)
class Clips:
    """`views`: uint8 [clip, frame, channel, VIEW_PX, VIEW_PX]."""

    scenes: list[Scene]
    views: torch.Tensor

    def pixels(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalised views of clips `rows`: float32 [row, frame, channel, height, width]."""
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        return (self.views[rows].float() / 255 - mean) / std


def film(scenes: list[Scene], *, seed: int) -> Clips:
    """The scenes as `Clips`; `seed` draws each clip's shrinking filter and contrast."""
    rng = np.random.default_rng([seed, 7])
    views = torch.empty(len(scenes), FRAMES_SEEN, 3, VIEW_PX, VIEW_PX, dtype=torch.uint8)
    for i, scene in enumerate(scenes):
        views[i] = _shrink(render(scene, SEEN), rng)
    return Clips(scenes, views)


def _shrink(frames: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """uint8 [frame, height, width, 3] -> uint8 [frame, 3, VIEW_PX, VIEW_PX]."""
    rows = _filter(("area", "bilinear", "bicubic")[rng.integers(3)], frames.shape[1])  # [VIEW_PX, height]
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    small = rows @ pixels @ rows.T
    tint = torch.from_numpy(rng.normal(0, 2, (3, 1, 1))).float()
    small = (small - 128) * float(rng.uniform(0.93, 1.07)) + 128 + tint
    return small.clamp(0, 255).round().to(torch.uint8)


@cache
def _filter(mode: str, size: int) -> torch.Tensor:
    """A separable shrinking filter as a matrix [VIEW_PX, size]: what torch makes of the unit matrix's rows."""
    smooth = {} if mode == "area" else {"antialias": True}
    return F.interpolate(torch.eye(size)[None, None], (VIEW_PX, size), mode=mode, **smooth)[0, 0]
