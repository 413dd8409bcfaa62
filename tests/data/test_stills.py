"""Frames that come as images are sampled as a video's are, and what is wrong with them is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clips import numbers_of
from stills import clip_frames, frame, write_clip_tar, write_folder, write_tar

from isr_dpo.data.decoder import Decoder
from isr_dpo.data.stills import MAX_PIXELS
from isr_dpo.data.video import Unreadable, decode


def test_a_folder_of_frames_is_sampled_by_the_rule_for_videos(tmp_path: Path) -> None:
    decoded = decode(write_folder(tmp_path / "clip", 21), frames=8)
    assert decoded.indices == tuple(int(i) for i in np.linspace(0, 20, 8, dtype=int))
    assert numbers_of(decoded.frames) == list(decoded.indices)
    assert decoded.clip_frames == 21


def test_a_tar_gives_the_same_frames_as_the_folder(tmp_path: Path) -> None:
    folder, tar = write_folder(tmp_path / "clip", 10), write_clip_tar(tmp_path / "clip.tar", 10)
    one, other = decode(folder, frames=4), decode(tar, frames=4)
    assert np.array_equal(one.frames, other.frames)
    assert one[1:] == other[1:]


def test_the_order_is_that_of_names_not_of_the_tar(tmp_path: Path) -> None:
    members = dict(reversed(clip_frames(5).items()))
    assert numbers_of(decode(write_tar(tmp_path / "c.tar", members), frames=5).frames) == [0, 1, 2, 3, 4]


def test_a_short_clip_repeats_frames_and_other_files_count_for_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", 2)
    for name in ("Thumbs.db", "._c01_0001.jpeg"):
        (folder / name).write_bytes(b"x")
    decoded = decode(folder, frames=4)
    assert numbers_of(decoded.frames) == [0, 0, 0, 1]
    assert decoded.clip_frames == 2


def test_the_decoding_process_takes_folders_and_tars(tmp_path: Path) -> None:
    decoder = Decoder()
    try:
        assert decoder.decode(write_folder(tmp_path / "clip", 3), frames=3).clip_frames == 3
        assert decoder.decode(write_clip_tar(tmp_path / "clip.tar", 3), frames=3).clip_frames == 3
        (tmp_path / "none").mkdir()
        with pytest.raises(Unreadable, match="holds no frame"):
            decoder.decode(tmp_path / "none", frames=3)
    finally:
        decoder.close()


def broken_folder(folder: Path, name: str, content: bytes) -> Path:
    (write_folder(folder, 3) / name).write_bytes(content)
    return folder


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = clip_frames(1)["c01_0001.jpeg"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.tar").write_bytes(b"no tar" * 500)
    (tmp_path / "cut.tar").write_bytes(write_clip_tar(tmp_path / "whole.tar", 3).read_bytes()[:1200])
    both = {f"{clip}/{name}": data for clip in "ab" for name, data in clip_frames(2).items()}
    cases = {
        tmp_path / "empty": r"holds no frame \(a file that ends in .jpeg, .jpg",
        write_tar(tmp_path / "empty.tar", {"readme.txt": b"x"}): "holds no frame",
        broken_folder(tmp_path / "cut", "c01_0002.jpeg", whole[: len(whole) // 2]): "frame c01_0002.jpeg is damaged",
        broken_folder(tmp_path / "text", "c01_0003.jpeg", b"<html>"): "frame c01_0003.jpeg is damaged, or no image",
        broken_folder(tmp_path / "zero", "c01_0001.jpeg", b""): "frame c01_0001.jpeg is damaged, or no image",
        broken_folder(tmp_path / "size", "c01_0002.jpeg", frame(1, scale=2)): "different sizes: 128 x 96, 64 x 48",
        tmp_path / "junk.tar": "not a readable tar of frames",
        tmp_path / "cut.tar": "damaged|not a readable tar",
        write_tar(tmp_path / "two.tar", both): "a tar of several clips' frames",
        tmp_path / "absent.tar": "cannot be opened: No such file",
    }
    for path, reason in cases.items():
        with pytest.raises(Unreadable, match=reason):
            decode(path, frames=3)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PIXELS > 7680 * 4320
    monkeypatch.setattr("isr_dpo.data.stills.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(Unreadable, match=r"frame c01_0001\.jpeg has 64 x 48 pixels"):
        decode(write_folder(tmp_path / "clip", 1), frames=1)


def test_a_frame_that_is_not_sampled_may_be_damaged(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "clip", "c01_0002.jpeg", b"")
    assert numbers_of(decode(folder, frames=2).frames) == [0, 2]
