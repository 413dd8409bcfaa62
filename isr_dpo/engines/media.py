"""Frames as parts of a chat message.

`images`: a PNG a frame, without loss, which every server with a vision model takes. `video`: one H.264 clip, for
servers that know the part `video_url` (vLLM, SGLang), whose model then sees a video and not so many images.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

FRAMES_PER_SECOND = 2
"""Of a clip: the rate at which the video families of this package place stored frames too."""


def images(frames: np.ndarray) -> list[dict[str, Any]]:
    """A part a frame of uint8 [F, H, W, 3]."""
    return [{"type": "image_url", "image_url": {"url": _url("image/png", _png(frame))}} for frame in frames]


def video(frames: np.ndarray) -> list[dict[str, Any]]:
    """One part of uint8 [F, H, W, 3]."""
    return [{"type": "video_url", "video_url": {"url": _url("video/mp4", _mp4(frames))}}]


PARTS: Mapping[str, Callable[[np.ndarray], list[dict[str, Any]]]] = {"images": images, "video": video}
"""By the recipe's engine.video_as."""


def _url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _png(frame: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _mp4(frames: np.ndarray) -> bytes:
    import av

    odd = [(0, 0), *((0, side % 2) for side in frames.shape[1:3]), (0, 0)]
    frames = np.pad(frames, odd, mode="edge")  # H.264 keeps colours for 2 x 2 pixels
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"preset": "veryfast", "crf": "10", "threads": "1"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()
