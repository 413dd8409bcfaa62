import base64
import io
import random

import numpy as np
import pytest
from PIL import Image
from synthetic_run import judged_row

from isr_dpo.records import Judged
from isr_dpo.report.samples import COUNT, Word, choose, differences, sample

ROWS = [judged_row(number, 1, "a disc", "context") for number in range(40)]


def share(row: Judged) -> float:
    return sum(p / (p + q) for p, q in row.probabilities) / len(row.probabilities)


def test_a_dozen_rows_hold_every_reason_and_mostly_preferences() -> None:
    chosen = choose(ROWS)
    assert len(chosen) == COUNT == len({row.id for row in chosen})
    assert [row.outcome for row in chosen] == ["preferred"] * 8 + ["empty", "identical", "tie", "unparsed"]


def test_preferences_go_from_the_surest_choice_to_the_closest_call() -> None:
    sureness = [abs(share(row) - 0.5) for row in choose(ROWS) if row.outcome == "preferred"]
    assert sureness == sorted(sureness, reverse=True)
    assert sureness[0] - sureness[-1] > 0.2


def test_preferences_show_different_videos_where_there_are_enough() -> None:
    videos = [row.video for row in choose(ROWS) if row.outcome == "preferred"]
    assert len(set(videos)) == len(videos)


def test_the_choice_does_not_depend_on_the_order_of_rows() -> None:
    mixed = random.Random(0).sample(ROWS, len(ROWS))
    assert choose(mixed) == choose(ROWS)


def test_a_short_round_is_shown_whole() -> None:
    assert {row.id for row in choose(ROWS[:5])} == {row.id for row in ROWS[:5]}
    assert choose([]) == []


def test_dropped_rows_fill_up_where_few_are_preferred() -> None:
    dropped = [row for row in ROWS if row.outcome != "preferred"]
    preferred = [row for row in ROWS if row.outcome == "preferred"][:1]
    chosen = choose([*dropped, *preferred])
    assert len(chosen) == min(COUNT, len(dropped) + 1)


def test_probabilities_of_both_orders_are_normalised_and_averaged() -> None:
    row = ROWS[0].model_copy(update={"probabilities": ((0.6, 0.2), (0.1, 0.3))})
    shown = sample(row, now={}, before={}, frames=None)
    assert [order.share for order in shown.orders] == pytest.approx([0.75, 0.25])
    assert shown.share == pytest.approx(0.5)


def test_a_verdict_without_label_mass_has_no_share() -> None:
    row = ROWS[0].model_copy(update={"probabilities": ((0.0, 0.0), (0.0, 0.0))})
    assert sample(row, now={}, before={}, frames=None).share is None


def test_differences_mark_what_refinement_added_and_removed() -> None:
    before, after = differences("red circle blue square", "red circle green square moving")
    assert before == [Word("red circle", ""), Word("blue", "removed"), Word("square", "")]
    assert after == [Word("red circle", ""), Word("green", "added"), Word("square", ""), Word("moving", "added")]


def test_tiny_frames_are_shown_pixel_for_pixel() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 24, 3), dtype=np.uint8)
    shown = sample(ROWS[0], now={}, before={}, frames=frames)
    assert shown.tiny
    images = [np.asarray(Image.open(io.BytesIO(_content(uri, "image/png")))) for uri in shown.frames]
    np.testing.assert_array_equal(np.stack(images), frames)


def test_large_frames_become_thumbnails_of_at_most_eight_frames_both_ends_included() -> None:
    frames = np.zeros((20, 480, 640, 3), np.uint8)
    frames[0], frames[-1] = 250, 120
    shown = sample(ROWS[0], now={}, before={}, frames=frames)
    assert not shown.tiny
    images = [Image.open(io.BytesIO(_content(uri, "image/webp"))).convert("RGB") for uri in shown.frames]
    assert [image.size for image in images] == [(224, 168)] * 8
    assert np.asarray(images[0]).mean() == pytest.approx(250, abs=4)
    assert np.asarray(images[-1]).mean() == pytest.approx(120, abs=4)


def _content(uri: str, kind: str) -> bytes:
    head, _, data = uri.partition(";base64,")
    assert head == f"data:{kind}"
    return base64.b64decode(data)
