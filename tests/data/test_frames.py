"""The frame store gives back what was put in, bit for bit, and equal frames make equal files."""

from __future__ import annotations

import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from isr_dpo.data.frames import FrameStore, FrameWriter, encode
from isr_dpo.digests import hash_file
from isr_dpo.errors import CorruptOutput, DataError


def noise(seed: int, shape: tuple[int, int, int, int] = (4, 30, 50, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(folder: Path, number: int, videos: dict[str, np.ndarray], aside: dict[str, str] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    writer = FrameWriter(folder, number=number)
    for video, frames in videos.items():
        writer.add(video, encode(frames, sha256="a" * 64))
    for video, reason in (aside or {}).items():
        writer.set_aside(video, reason)
    writer.finish()


def test_frames_come_back_bit_for_bit_from_any_shard(tmp_path: Path) -> None:
    videos = {f"v{i}": noise(i, (1 + i, 20 + i, 31 + i, 3)) for i in range(4)}
    write(tmp_path, 0, {name: videos[name] for name in ("v0", "v1")})
    write(tmp_path, 1, {name: videos[name] for name in ("v2", "v3")})
    store = FrameStore(tmp_path)
    assert store.videos() == sorted(videos)
    for name in reversed(videos):  # in no particular order
        got = store.read(name)
        assert got.dtype == np.uint8
        assert np.array_equal(got, videos[name])


def test_equal_frames_make_equal_files(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        write(tmp_path / folder, 0, {"a": noise(0), "b": noise(1)}, {"c": "broken"})
    for name in ("frames-00000.tar", "index-00000.jsonl"):
        assert hash_file(tmp_path / "one" / name) == hash_file(tmp_path / "other" / name)


def test_a_repeated_frame_is_stored_once(tmp_path: Path) -> None:
    frames = noise(0)[[0, 0, 0, 1]]
    write(tmp_path, 0, {"still": frames})
    with tarfile.open(tmp_path / "frames-00000.tar") as shard:
        assert len(shard.getnames()) == 2
    assert np.array_equal(FrameStore(tmp_path).read("still"), frames)


def test_a_shard_is_an_ordinary_tar_of_webp_images(tmp_path: Path) -> None:
    from PIL import Image

    frames = noise(3)
    write(tmp_path, 0, {"../../etc/passwd": frames})
    with tarfile.open(tmp_path / "frames-00000.tar") as shard:
        assert shard.getnames() == [f"00000/{i:03d}.webp" for i in range(4)]  # nothing of a row's text
        stream = shard.extractfile("00000/002.webp")
        assert stream is not None
        image = Image.open(stream)
        assert image.format == "WEBP"
        assert np.array_equal(np.asarray(image), frames[2])


def test_the_index_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, 0, {"a": noise(0)}, {"z": "empty file", "b": "cut off"})
    store = FrameStore(tmp_path)
    row = store.describe("a")
    assert (row.height, row.width, len(row.spans), row.sha256) == (30, 50, 4, "a" * 64)
    assert store.videos() == ["a"]
    assert store.unreadable() == {"b": "cut off", "z": "empty file"}


def test_an_unknown_video_is_named(tmp_path: Path) -> None:
    write(tmp_path, 0, {"a": noise(0)}, {"b": "cut off"})
    with pytest.raises(DataError, match=r"'nowhere.mp4' is not in the frame store"):
        FrameStore(tmp_path).read("nowhere.mp4")
    with pytest.raises(DataError, match=r"'b' was set aside: cut off"):
        FrameStore(tmp_path).read("b")


def test_a_shard_that_is_missing_or_overwritten_is_named(tmp_path: Path) -> None:
    write(tmp_path, 0, {"a": noise(0)})
    store = FrameStore(tmp_path)
    shard = tmp_path / "frames-00000.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(CorruptOutput, match=r"frames-00000.tar: frames of 'a'"):
        store.read("a")
    shard.unlink()
    with pytest.raises(CorruptOutput, match=r"frames-00000.tar: frames of 'a'"):
        store.read("a")


def test_several_threads_read_at_once(tmp_path: Path) -> None:
    videos = {f"v{i}": noise(i) for i in range(8)}
    write(tmp_path, 0, videos)
    store = FrameStore(tmp_path)
    names = list(videos) * 5
    with ThreadPoolExecutor(4) as pool:
        for name, frames in zip(names, pool.map(store.read, names), strict=True):
            assert np.array_equal(frames, videos[name])
