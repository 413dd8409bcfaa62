"""A set that is graded with captions has one a video, or says which row lacks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import config
from isr_dpo.data.sources import read_sources
from isr_dpo.errors import DataError


def row(number: int, video: str, caption: str | None = None) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<video>\nwhat ?"}, {"from": "gpt", "value": "a dog"}]
    tree = {"id": number, "video": video, "conversations": turns}
    return tree if caption is None else tree | {"caption": caption}


def data(folder: Path, rows: list[dict[str, Any]]) -> config.Data:
    path = folder / "msvd.qa.jsonl"
    path.write_text("".join(json.dumps(tree) + "\n" for tree in rows))
    return config.Data(sets={"msvd": str(path)})


def test_a_row_without_caption_takes_that_of_its_video_and_keeps_its_own(tmp_path: Path) -> None:
    rows = [row(0, "a.mp4"), row(1, "a.mp4", "a cat"), row(2, "b.mp4", "a dog"), row(3, "b.mp4", "two dogs")]
    sources = read_sources(data(tmp_path, rows), captioned=["msvd"])
    assert [(r.id, r.caption) for r in sources.sets["msvd"]] == [
        ("0", "a cat"),
        ("1", "a cat"),
        ("2", "a dog"),
        ("3", "two dogs"),
    ]


@pytest.mark.parametrize("empty", [None, ""])
def test_a_row_about_a_video_without_any_caption_is_named_by_file_and_line(tmp_path: Path, empty: str | None) -> None:
    rows = [row(0, "a.mp4", "a cat"), row(1, "b.mp4", empty)]
    with pytest.raises(DataError, match=r"msvd.qa.jsonl:2: row '1' has no caption.*'b.mp4'.*official"):
        read_sources(data(tmp_path, rows), captioned=["msvd"])


def test_an_official_set_needs_no_captions(tmp_path: Path) -> None:
    sources = read_sources(data(tmp_path, [row(0, "a.mp4")]))
    assert sources.sets["msvd"][0].caption is None
