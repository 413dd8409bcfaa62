"""A clip that comes as frames already taken: a folder of images, or a tar of them. The same rule samples them as a
video's frames [C]: published clips are two frames a second of the video, of which a model sees eight."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from isr_dpo.data.clips import IMAGES, frame_files, is_frame
from isr_dpo.data.video import Decoded, Unreadable, sample_indices

MAX_PIXELS = 64_000_000
"""Of one frame; a small file may unpack to more memory than there is."""


def decode_stills(path: Path, *, frames: int) -> Decoded:
    """`frames` of the images in the folder or tar `path`, in name order; only these are read.

    Raises:
        Unreadable: no image, a damaged one, frames of different sizes, a damaged tar or one of several clips.
    """
    if path.is_dir():
        try:
            files = frame_files(path)
        except OSError as error:
            raise Unreadable(f"cannot be opened: {error.strerror}") from error
        return _sample([file.name for file in files], lambda i: files[i].read_bytes(), frames)
    try:
        with tarfile.open(path, "r:") as tar:
            members = sorted((m for m in tar if m.isfile() and is_frame(m.name)), key=lambda member: member.name)
            if len({str(PurePosixPath(member.name).parent) for member in members}) > 1:
                raise Unreadable("a tar of several clips' frames")
            return _sample([PurePosixPath(m.name).name for m in members], lambda i: _content(tar, members[i]), frames)
    except tarfile.TarError as error:
        raise Unreadable("not a readable tar of frames") from error
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror or 'damaged'}") from error


def _sample(names: Sequence[str], read: Callable[[int], bytes], frames: int) -> Decoded:
    if not names:
        raise Unreadable(f"holds no frame (a file that ends in {', '.join(IMAGES)})")
    indices = sample_indices(len(names), frames)
    kept = {i: _pixels(names[i], read, i) for i in dict.fromkeys(indices)}
    sizes = {kept[i].shape for i in kept}
    if len(sizes) > 1:
        raise Unreadable(f"frames of different sizes: {', '.join(sorted(f'{w} x {h}' for h, w, _ in sizes))}")
    return Decoded(np.stack([kept[i] for i in indices]), indices, len(names))


def _pixels(name: str, read: Callable[[int], bytes], index: int) -> np.ndarray:
    """uint8 [H, W, 3]."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read(index)), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unreadable(f"frame {name} has {image.width} x {image.height} pixels")
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise Unreadable(f"frame {name} has too many pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:  # PIL raises all of these
        raise Unreadable(f"frame {name} is damaged, or no image") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None  # it is a file
    return stream.read()
