"""Scenes as frames: one coloured object that does something, on a patterned ground, beside a landmark.

Everything sits on a two by two grid of quadrants, which are the patches of the tiny model's 32 x 32 view; the object
dwells at their centres.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from isr_dpo.data.world.scene import Scene, partner

SIZE_PX = 128
FRAMES = 16
FPS = 8
Image = npt.NDArray[np.uint8]  # [height, width, 3], or [frame, height, width, 3]
Mask = npt.NDArray[np.float32]  # [height, width], coverage 0 to 1

_OBJECT = {
    "red": (214, 40, 40),
    "blue": (40, 70, 220),
    "green": (20, 150, 50),
    "yellow": (250, 220, 30),
    "pink": (255, 130, 190),
    "purple": (150, 40, 190),
}
_GROUND = {  # ground, its pattern's shade, landmark
    "meadow": ((160, 205, 140), (115, 165, 95), (35, 40, 30)),
    "sea": ((125, 190, 225), (80, 145, 190), (20, 35, 60)),
    "desert": ((225, 195, 145), (190, 150, 100), (60, 40, 25)),
    "cave": ((45, 45, 80), (75, 80, 125), (235, 235, 215)),
    "glacier": ((246, 248, 252), (203, 210, 224), (50, 55, 65)),
    "city": ((140, 140, 140), (105, 105, 105), (15, 15, 15)),
}
_RADIUS = 0.17  # of the object, as a share of the frame


def render(scene: Scene, indices: npt.ArrayLike | None = None) -> Image:
    """Frames `indices` (default: all FRAMES) of the scene's clip: uint8 [frame, SIZE_PX, SIZE_PX, 3]."""
    steps = np.arange(FRAMES) if indices is None else np.asarray(indices)
    rng = np.random.default_rng(scene.texture)
    gain = np.float32(rng.uniform(0.94, 1.06))
    grain = rng.normal(0, 4, (SIZE_PX // 8, SIZE_PX // 8, 1)).astype(np.float32).repeat(8, 0).repeat(8, 1)
    still = np.clip(_backdrop(scene) * gain + grain, 0, 255).astype(np.uint8)
    frames = np.repeat(still[None], len(steps), axis=0)
    for frame, step in zip(frames, steps, strict=True):
        _paint_object(frame, scene, int(step), gain)
    return np.asarray(frames, np.uint8)


def place_at(scene: Scene, step: int) -> tuple[float, float, float]:
    """Centre (x, y) and radius of the object at frame `step`, as shares of the frame; radius 0 while it is hidden."""
    phase = step / FRAMES
    swing = (1 - np.cos(2 * np.pi * phase)) / 2  # 0 at the start, 1 half-way, back to 0
    here, there = _centre(scene.start), _centre(partner(scene.start, scene.facts["action"]))
    radius = _RADIUS
    if scene.facts["action"] == "blinks":
        radius = _RADIUS if int(phase * 4) % 2 == 0 else 0.0
    if scene.facts["action"] == "pulses":
        radius = _RADIUS * (1 - 0.6 * swing)
    return here[0] + (there[0] - here[0]) * swing, here[1] + (there[1] - here[1]) * swing, radius


def _centre(quadrant: int) -> tuple[float, float]:
    return 0.25 + 0.5 * (quadrant % 2), 0.25 + 0.5 * (quadrant // 2)


def _paint_object(frame: Image, scene: Scene, step: int, gain: np.float32) -> None:
    x, y, radius = place_at(scene, step)
    if radius == 0:
        return
    half = SIZE_PX // 4
    outline, body = _sprite(scene.facts["shape"], round(radius, 3))
    row, column = round(y * SIZE_PX) - half, round(x * SIZE_PX) - half
    window = frame[row : row + 2 * half, column : column + 2 * half]
    colour = np.minimum(np.asarray(_OBJECT[scene.facts["colour"]], np.float32) * gain, 255)
    painted = window + (20 - window) * outline[..., None]
    window[:] = painted + (colour - painted) * body[..., None]


@cache
def _sprite(shape: str, radius: float) -> tuple[Mask, Mask]:
    """Coverage of the outlined and of the plain shape in a square of half the frame."""
    grid = np.linspace(-0.25, 0.25, SIZE_PX // 2 * 4, endpoint=False, dtype=np.float32)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    rim = 0.014
    outer, inner = _inside(shape, x, y, radius + rim), _inside(shape, x, y, radius)
    if shape == "ring":
        outer, inner = outer & (np.hypot(x, y) > radius * 0.5 - rim), inner & (np.hypot(x, y) > radius * 0.5)
    return _shrink(outer), _shrink(inner)


def _inside(shape: str, x: Mask, y: Mask, r: float) -> npt.NDArray[np.bool_]:
    ax, ay = np.abs(x), np.abs(y)
    inside = {
        "circle": np.hypot(x, y) < r,
        "ring": np.hypot(x, y) < r,
        "square": np.maximum(ax, ay) < r * 0.9,
        "diamond": (ax * 1.5 + ay) < r * 1.1,
        "triangle": (y < r * 0.8) & (ay * 0 + 2 * ax < y + r),
        "cross": (np.maximum(ax, ay) < r) & (np.minimum(ax, ay) < r * 0.33),
    }
    return np.asarray(inside[shape])


def _shrink(mask: npt.NDArray[np.bool_]) -> Mask:
    side = mask.shape[0] // 4
    return np.asarray(mask.reshape(side, 4, side, 4).mean((1, 3)), np.float32)


def _backdrop(scene: Scene) -> npt.NDArray[np.float32]:
    ground, shade, ink = (np.asarray(colour, np.float32) for colour in _GROUND[scene.facts["place"]])
    frame = ground + (shade - ground) * _pattern(scene.facts["pattern"])[..., None]
    half = SIZE_PX // 2
    row, column = scene.corner // 2 * half, scene.corner % 2 * half
    window = frame[row : row + half, column : column + half]
    window += (ink - window) * _landmark(scene.facts["landmark"])[..., None]
    return np.asarray(frame, np.float32)


@cache
def _pattern(pattern: str) -> Mask:
    grid = (np.arange(SIZE_PX) + 0.5) / SIZE_PX * 8  # eight periods a frame
    y, x = np.meshgrid(grid % 1, grid % 1, indexing="ij")
    drawn = {
        "plain": np.zeros_like(x),
        "striped": y < 0.5,
        "barred": x < 0.5,
        "dotted": np.hypot(x - 0.5, y - 0.5) < 0.3,
        "checked": (np.arange(SIZE_PX)[:, None] * 4 // SIZE_PX + np.arange(SIZE_PX)[None] * 4 // SIZE_PX) % 2,
    }
    return np.asarray(drawn[pattern], np.float32)


@cache
def _landmark(landmark: str) -> Mask:
    """The silhouette in a square of half the frame; drawn in a space of -1 to 1."""
    grid = np.linspace(-1, 1, SIZE_PX // 2 * 4, endpoint=False, dtype=np.float32)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    ax = np.abs(x)
    drawn = {
        "tree": (np.hypot(x, y + 0.2) < 0.5) | ((ax < 0.12) & (y > 0) & (y < 0.8)),
        "house": ((ax < 0.5) & (y > 0) & (y < 0.7)) | ((y > -0.6) & (y <= 0) & (ax < y + 0.75)),
        "flag": ((x > -0.5) & (x < -0.32) & (np.abs(y) < 0.75)) | ((x > -0.5) & (x < 0.6) & (y > -0.75) & (y < -0.1)),
        "boat": ((y > 0.3) & (y < 0.7) & (ax < 1.2 - y))
        | ((x > -0.05) & (y > -0.75) & (y < 0.2) & (x < (y + 0.75) * 0.7)),
        "tower": (ax < 0.2) & (np.abs(y) < 0.8) | ((ax < 0.38) & (y > -0.8) & (y < -0.5)),
        "gate": (np.hypot(x, np.minimum(y, 0)) < 0.65) & (np.hypot(x, np.minimum(y, 0)) > 0.33) & (y < 0.7),
    }
    return _shrink(np.asarray(drawn[landmark]))
