"""Frames as small data URIs, each video's once, within a bound that keeps the page a few megabytes."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from isr_dpo.report.reading import KeptRun

MAX_FRAMES = 8
TINY_PIXELS = 96
"""Frames up to this side are shown pixel by pixel, larger ones as thumbnails."""
THUMBNAIL_PIXELS = 160
_TINY_COLOURS = 48
"""Of a tiny frame: a third of the bytes of all its colours, none off by more than the eye can tell."""
BUDGET_BYTES = 3_000_000
"""Of all data URIs of a page: about a hundred videos as thumbnails, four hundred of the demo world's."""


@dataclass(frozen=True)
class Strip:
    """A video's frames in order, as data URIs."""

    uris: tuple[str, ...]
    tiny: bool


class Pictures:
    """The strips of a page, by a key that equal strips share. Videos that come after the budget is spent have none."""

    def __init__(self, *, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = budget_bytes
        self._used = 0
        self._keys: dict[tuple[str, str], str | None] = {}
        self._strips: dict[str, Strip] = {}
        self.left_out = 0
        """Videos whose frames are at hand and would not fit."""

    @property
    def strips(self) -> Mapping[str, Strip]:
        return self._strips

    def show(self, run: KeptRun, videos: Iterable[str], *, share: float = 1.0) -> None:
        """Takes in the frames of `videos`, in this order, as long as there is room in a share of the budget."""
        new = [video for video in dict.fromkeys(videos) if (run.uri, video) not in self._keys]
        store = run.frames(new)
        at_hand = set(store.videos()) if store is not None else set()
        room = share * self._budget
        for video in new:
            frames = run.damage.around(partial(store.read, video)) if store is not None and video in at_hand else None
            before = self._used
            self._keys[run.uri, video] = None if frames is None else self._kept(frames, room)
            room -= self._used - before

    def key(self, run: KeptRun, video: str) -> str | None:
        """Of the video's strip; None where its frames are not at hand or had no room."""
        return self._keys.get((run.uri, video))

    def of(self, run: KeptRun, video: str) -> Strip | None:
        key = self.key(run, video)
        return None if key is None else self._strips[key]

    def _kept(self, frames: np.ndarray, room: float) -> str | None:
        made = strip(frames)
        key = hashlib.sha256("".join(made.uris).encode()).hexdigest()[:12]
        if key not in self._strips:
            size = sum(map(len, made.uris))
            if size > room:
                self.left_out += 1
                return None
            self._used += size
            self._strips[key] = made
        return key


def strip(frames: np.ndarray) -> Strip:
    """At most eight of a video's frames, uint8 [F, H, W, 3], both ends included."""
    if len(frames) > MAX_FRAMES:
        frames = frames.take(np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(int), axis=0)
    return Strip(tuple(map(_data_uri, frames)), tiny=max(frames.shape[1:3]) <= TINY_PIXELS)


def _data_uri(frame: np.ndarray) -> str:
    image, buffer = Image.fromarray(frame), io.BytesIO()
    if max(image.size) <= TINY_PIXELS:
        small = image.quantize(_TINY_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        image.save(buffer, "WEBP", quality=60)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
