"""Decoding: the right frames of every kind of file, a reason for every bad one."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from clips import HEIGHT, WIDTH, damage, numbers_of, rotate, write_clip, write_two_streams
from hypothesis import given
from hypothesis import strategies as st

from isr_dpo.data.video import Unreadable, decode, sample_indices

REAL = Path(__file__).resolve().parents[3] / "shared" / "videos"
OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"}


def real(name: str) -> Path:
    if not (REAL / name).is_file():
        pytest.skip(f"the sample clips are not here ({REAL})")
    return REAL / name


@given(count=st.integers(1, 10**6), frames=st.integers(1, 64))
def test_sampling_is_uniform_from_the_first_frame_to_the_last(count: int, frames: int) -> None:
    indices = sample_indices(count, frames)
    assert len(indices) == frames
    assert indices[0] == 0
    assert frames == 1 or indices[-1] == count - 1
    steps = np.diff(indices)
    assert frames < 2 or steps.max() - steps.min() <= 1  # as even as whole numbers can be
    exact = [i * (count - 1) / max(frames - 1, 1) for i in range(frames)]
    assert all(
        -1 - 1e-6 < index - place < 1e-6 for index, place in zip(indices, exact, strict=True)
    )  # fractions dropped


def test_sampling_drops_fractions_as_the_public_code_does() -> None:
    assert sample_indices(16, 8) == (0, 2, 4, 6, 8, 10, 12, 15)
    assert sample_indices(3, 8) == (0, 0, 0, 0, 1, 1, 1, 2)
    assert sample_indices(1, 4) == (0, 0, 0, 0)


@pytest.mark.parametrize(("count", "frames"), [(0, 8), (5, 0)])
def test_sampling_nothing_is_refused(count: int, frames: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sample_indices(count, frames)


def test_frames_are_rgb_bytes_with_their_indices(tmp_path: Path) -> None:
    decoded = decode(write_clip(tmp_path / "clip.mp4", 40), frames=8)
    assert decoded.frames.shape == (8, HEIGHT, WIDTH, 3)
    assert decoded.frames.dtype == np.uint8
    assert decoded.clip_frames == 40
    assert numbers_of(decoded.frames) == list(decoded.indices) == [0, 5, 11, 16, 22, 27, 33, 39]


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        red = np.full((64, 64, 3), (250, 0, 0), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode(None))
    assert np.allclose(decode(path, frames=1).frames.reshape(-1, 3).mean(0), (250, 0, 0), atol=12)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("closed.mp4", {}),
        ("open-gop.mp4", {"options": OPEN_GOP}),
        ("open-gop.mkv", {"options": OPEN_GOP}),
        ("one-gop.mp4", {"gop": 250}),
        ("h264.flv", {"options": {"bf": "3"}}),
        ("h264-b-frames.avi", {"options": {"bf": "2"}}),
        ("hevc.mp4", {"codec": "libx265"}),
        ("hevc.mkv", {"codec": "libx265"}),
        ("mpeg4-b-frames.mp4", {"codec": "mpeg4", "options": {"bf": "2"}}),
        ("mpeg4-b-frames.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("vp8.webm", {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("av1.mp4", {"codec": "libsvtav1", "options": {"preset": "12"}}),
        ("av1.mkv", {"codec": "libsvtav1", "options": {"preset": "12"}}),
        ("h264-10-bit.mp4", {"pix_fmt": "yuv420p10le"}),
        ("hevc-10-bit.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le"}),
        ("av1-10-bit.mkv", {"codec": "libsvtav1", "pix_fmt": "yuv420p10le", "options": {"preset": "12"}}),
    ],
)
def test_the_sampled_frames_are_the_right_ones(tmp_path: Path, name: str, kind: dict) -> None:
    decoded = decode(write_clip(tmp_path / name, 40, **kind), frames=8)
    assert numbers_of(decoded.frames) == [0, 5, 11, 16, 22, 27, 33, 39]


def test_writing_a_clip_leaves_the_tests_their_priority(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    write_clip(tmp_path / "clip.mp4", 2, codec="libsvtav1")
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_variable_frame_rate_is_sampled_by_frame(tmp_path: Path, codec: str) -> None:
    times = [0, 1, 2, 3, 20, 21, 22, 50, 51, 90, 91, 92]
    decoded = decode(write_clip(tmp_path / "clip.mp4", 12, codec=codec, times=times), frames=4)
    assert decoded.clip_frames == 12
    assert numbers_of(decoded.frames) == [0, 3, 7, 11]


def test_frames_hidden_by_an_edit_list_are_not_sampled(tmp_path: Path) -> None:
    decoded = decode(write_clip(tmp_path / "cut.mp4", 40, start=15), frames=4)
    assert decoded.clip_frames == 25
    assert numbers_of(decoded.frames) == [15, 23, 31, 39]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_short_clip_repeats_its_frames(tmp_path: Path, frames: int) -> None:
    decoded = decode(write_clip(tmp_path / "clip.mp4", frames), frames=8)
    assert decoded.clip_frames == frames
    assert numbers_of(decoded.frames) == list(sample_indices(frames, 8))


def test_a_title_that_is_no_utf8_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE-TO-REPLACE"
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"TITLE-TO-REPLACE", b"\xb1\xf7" * 8))
    assert decode(path, frames=1).clip_frames == 1


def test_rotation_is_applied(tmp_path: Path) -> None:
    upright = decode(write_clip(tmp_path / "clip.mp4", 4, scale=4), frames=2).frames
    turned = decode(rotate(tmp_path / "clip.mp4"), frames=2).frames
    assert turned.shape == (2, 4 * WIDTH, 4 * HEIGHT, 3)
    expected = np.rot90(upright, -1, axes=(1, 2))
    assert np.abs(turned.astype(int) - expected).mean() < 3


def test_of_several_streams_the_default_is_taken(tmp_path: Path) -> None:
    decoded = decode(write_two_streams(tmp_path / "two.mp4"), frames=3)
    assert decoded.frames.shape[1:3] == (4 * HEIGHT, 4 * WIDTH)
    assert numbers_of(decoded.frames) == [100, 105, 111]


def test_memory_holds_the_wanted_frames_alone(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.avi", 200, scale=4, options={"bf": "2", "preset": "ultrafast"})
    decode(path, frames=2)
    tracemalloc.start()
    frames = decode(path, frames=2).frames
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * frames.nbytes


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "webm"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_file_cut_off_anywhere_is_noticed(tmp_path: Path, suffix: str, share: float) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", 40, codec="libvpx-vp9" if suffix == "webm" else "libx264")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(Unreadable, match=r"cut off: the file has \d+ bytes of the \d+ it announces"):
        decode(path, frames=8)


def test_overwritten_video_data_is_noticed(tmp_path: Path) -> None:
    path = damage(write_clip(tmp_path / "clip.mp4", 40, scale=4))
    with pytest.raises(Unreadable, match="damaged"):
        decode(path, frames=8)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("width", [16, 32, 46, 48, 96, 144, 160])
def test_no_width_leaves_padding_or_skews_the_picture(tmp_path: Path, width: int, turned: bool) -> None:
    """decord pads some widths."""
    path = tmp_path / "clip.mp4"
    bits = np.random.default_rng(0).integers(0, 2, (12, width // 2, 1), np.uint8)
    picture = bits.repeat(8, 0).repeat(2, 1) * np.full(3, 200, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = width, 96, "yuv444p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    expected = np.rot90(picture, -1) if turned else picture
    frames = decode(rotate(path) if turned else path, frames=3).frames
    assert frames.shape == (3, *expected.shape)
    assert np.abs(frames - expected.astype(int)).mean() < 8


def test_a_transport_stream_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="convert it to mp4"):
        decode(write_clip(tmp_path / "clip.ts", 20), frames=4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"this is no video\n" * 99, "not a readable video"), (b"\0" * 5000, "not a readable video")],
)
def test_what_is_no_video_says_so(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=reason):
        decode(path, frames=8)


def test_a_missing_file_and_a_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        decode(tmp_path / "absent.mp4", frames=8)
    with pytest.raises(Unreadable, match="holds no frame"):
        decode(tmp_path, frames=8)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(Unreadable, match="has no video stream"):
        decode(path, frames=8)


def test_a_stream_without_frames_says_so(tmp_path: Path) -> None:
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(Unreadable, match=r"no video (frame|stream)|not a readable video"):
        decode(path, frames=8)


def test_damage_anywhere_is_noticed_in_every_attempt(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "clip.mp4", 60, scale=4).read_bytes()
    rng = np.random.default_rng(0)
    start, end = content.index(b"mdat") + 2000, content.index(b"moov") - 200
    for i, place in enumerate(np.linspace(start, end, 6, dtype=int)):
        path = tmp_path / f"copy-{i}.mp4"
        path.write_bytes(content[:place] + rng.bytes(150) + content[place + 150 :])
        outcomes = set()
        for _ in range(5):
            with pytest.raises(Unreadable) as raised:
                decode(path, frames=4)
            outcomes.add(str(raised.value))
        assert outcomes == {"damaged: not every frame can be decoded"}


def test_ffmpeg_says_nothing_on_the_terminal(tmp_path: Path) -> None:
    path = damage(write_clip(tmp_path / "clip.mp4", 40, scale=4))
    code = (
        "import sys; from isr_dpo.data.video import *\n"
        "try: decode(sys.argv[1], frames=8)\n"
        "except Unreadable: print('noticed')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("noticed\n", "")


@pytest.mark.parametrize(
    ("name", "size", "clip_frames"),
    [
        ("nasa_13013.mp4", (270, 480), 390),
        ("h265_video.mp4", (128, 128), 10),
        ("h264_10bits.mp4", (200, 200), 30),
        ("av1_video.mkv", (360, 640), 125),
        ("video_0.mov", (320, 568), 3),
        ("video_90.mov", (568, 320), 3),
    ],
)
def test_real_clips_decode(name: str, size: tuple[int, int], clip_frames: int) -> None:
    decoded = decode(real(name), frames=8)
    assert decoded.frames.shape == (8, *size, 3)
    assert decoded.clip_frames == clip_frames
    assert all(frame.std() > 5 for frame in decoded.frames)  # none is blank


def test_a_real_damaged_clip_is_noticed_every_time() -> None:
    path = real("corrupted.mp4")
    for _ in range(10):
        with pytest.raises(Unreadable, match="damaged: not every frame can be decoded"):
            decode(path, frames=8)


def test_a_real_clip_is_sampled_where_every_frame_decoded_in_order_says(tmp_path: Path) -> None:
    path = real("nasa_13013.mp4")
    decoded = decode(path, frames=8)
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        every = [frame for i, frame in enumerate(container.decode(stream)) if i in decoded.indices]
    for ours, theirs in zip(decoded.frames, every, strict=True):
        assert np.abs(ours.astype(int) - theirs.to_ndarray(format="rgb24")).mean() < 4
