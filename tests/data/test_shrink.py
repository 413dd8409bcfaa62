import numpy as np
import pytest

from isr_dpo.data.shrink import SHORT_SIDE_PIXELS, shrink


@pytest.mark.parametrize(
    ("before", "after"),
    [((720, 1280), (336, 597)), ((1280, 720), (597, 336)), ((336, 500), (336, 500)), ((128, 128), (128, 128))],
)
def test_the_shorter_side_is_bounded_and_the_aspect_kept(before: tuple[int, int], after: tuple[int, int]) -> None:
    made = shrink(np.zeros((2, *before, 3), dtype=np.uint8))
    assert made.shape == (2, *after, 3)
    assert made.dtype == np.uint8
    assert min(made.shape[1:3]) <= SHORT_SIDE_PIXELS


def test_nothing_is_cropped() -> None:
    frame = np.zeros((1, 672, 1344, 3), dtype=np.uint8)
    frame[:, :, :8] = frame[:, :, -8:] = 255
    made = shrink(frame)
    assert (made[0, :, :3] > 200).all()
    assert (made[0, :, -3:] > 200).all()
    assert (made[0, :, 20:-20] == 0).all()
