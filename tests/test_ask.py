"""One question about one file."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from isr_dpo.ask import Answerer
from isr_dpo.errors import DataError
from tests.data.clips import draw, write_clip
from tests.tiny import make_policy


def test_a_question_that_cannot_be_asked_is_refused_with_its_reason(tmp_path: Path) -> None:
    answerer = Answerer(make_policy(tmp_path / "policy"))
    clip = write_clip(tmp_path / "clip.mp4")
    assert isinstance(answerer.ask(clip, "what ?", max_new_tokens=2), str)
    with pytest.raises(DataError, match="the prompt does not fit the model's context"):
        answerer.ask(clip, "what " * 600)
    with pytest.raises(DataError, match="the question is empty"):
        answerer.ask(clip, " ")


def test_a_folder_of_frames_can_be_asked_about(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(draw(number)).save(folder / f"c01_{number:04d}.jpeg")
    assert isinstance(Answerer(make_policy(tmp_path / "policy")).ask(folder, "what ?", max_new_tokens=2), str)
