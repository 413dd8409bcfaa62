"""A container's announced size gives a cut file away, and an intact file never."""

from __future__ import annotations

from pathlib import Path

import pytest
from clips import write_clip

from isr_dpo.data.container import announced_size


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "webm"])
def test_an_intact_file_announces_its_own_size(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", 5, codec="libvpx-vp9" if suffix == "webm" else "libx264")
    assert announced_size(path) == path.stat().st_size


def test_junk_behind_the_last_box_is_not_taken_for_a_box(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 5)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\x7f\xff\xff\xffjunk" * 9)
    assert announced_size(path) == size


def test_a_64_bit_box_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes((8).to_bytes(4, "big") + b"ftyp" + (1).to_bytes(4, "big") + b"mdat" + (1 << 33).to_bytes(8, "big"))
    assert announced_size(path) == 8 + (1 << 33)


def test_a_live_matroska_of_unknown_size_announces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    path.write_bytes(b"\x1aE\xdf\xa3\x80" + b"\x18\x53\x80\x67" + b"\x01" + b"\xff" * 7 + b"clusters")
    assert announced_size(path) is None


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"RIFF", b"\x1aE\xdf\xa3", b"\x1aE\xdf\xa3\x00", b"plain text, no video"]
)
def test_other_files_announce_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert announced_size(path) is None
