import base64
import io
from pathlib import Path

import numpy as np
import pytest
import synthetic_run
from PIL import Image
from synthetic_run import recipe

from isr_dpo.report.pictures import Pictures, strip
from isr_dpo.report.reading import KeptRun


def images(uris: tuple[str, ...], kind: str) -> list[np.ndarray]:
    heads = {uri.partition(";base64,")[0] for uri in uris}
    assert heads == {f"data:{kind}"}
    contents = [base64.b64decode(uri.partition(";base64,")[2]) for uri in uris]
    return [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]


def test_tiny_frames_keep_their_size_and_their_colours() -> None:
    frames = np.zeros((5, 32, 24, 3), np.uint8)
    frames[:, 4:20, 3:9] = (200, 40, 10)
    made = strip(frames)
    assert made.tiny
    np.testing.assert_allclose(np.stack(images(made.uris, "image/png")), frames, atol=2)


def test_large_frames_become_thumbnails_of_at_most_eight_frames_both_ends_included() -> None:
    frames = np.zeros((20, 480, 640, 3), np.uint8)
    frames[0], frames[-1] = 250, 120
    made = strip(frames)
    assert not made.tiny
    seen = images(made.uris, "image/webp")
    assert [image.shape for image in seen] == [(120, 160, 3)] * 8
    assert seen[0].mean() == pytest.approx(250, abs=4)
    assert seen[-1].mean() == pytest.approx(120, abs=4)


@pytest.fixture
def run(tmp_path: Path) -> KeptRun:
    synthetic_run.write_frames(str(tmp_path))
    return KeptRun(str(tmp_path), recipe(), "smoke")


def test_a_video_s_frames_stand_once_whatever_run_they_are_from(run: KeptRun) -> None:
    pictures = Pictures()
    pictures.show(run, ["clip-000", "clip-000", "nowhere"])
    other = KeptRun(run.uri + "/", run.recipe, "other")
    pictures.show(other, ["clip-000"])
    assert pictures.key(run, "clip-000") == pictures.key(other, "clip-000") is not None
    assert len(pictures.strips) == 1
    assert pictures.key(run, "nowhere") is None


def test_frames_that_find_no_room_are_counted(run: KeptRun) -> None:
    pictures = Pictures(budget_bytes=4000)
    pictures.show(run, [f"clip-{n:03d}" for n in range(10)])
    size = sum(len(uri) for one in pictures.strips.values() for uri in one.uris)
    assert 0 < size <= 4000
    assert pictures.left_out == 10 - len(pictures.strips) > 0
    assert pictures.of(run, "clip-000") is not None
    assert pictures.of(run, "clip-009") is None


def test_runs_share_the_room(run: KeptRun, tmp_path: Path) -> None:
    other = tmp_path / "other"
    synthetic_run.write_frames(str(other), videos=4, side=40)
    pictures = Pictures(budget_bytes=8000)
    second = KeptRun(str(other), run.recipe, "other")
    for each in (run, second):
        pictures.show(each, [f"clip-{n:03d}" for n in range(10)], share=1 / 2)
    assert pictures.key(second, "clip-000") is not None
    assert sum(len(uri) for one in pictures.strips.values() for uri in one.uris) <= 8000


def test_frames_that_are_damaged_are_named(run: KeptRun) -> None:
    shard = next(Path(run.uri, "frames").glob("frames-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    pictures = Pictures()
    pictures.show(run, ["clip-000"])
    assert pictures.key(run, "clip-000") is None
    assert "frames-00000.tar" in run.damage.messages[0]
