"""What of a recipe's videos is there, before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isr_dpo.cli import main


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    videos = tmp_path / "videos"
    (videos / "a").mkdir(parents=True)
    for name in ("b.tar", "c.mp4"):
        (videos / name).write_bytes(b"")
    turns = [{"from": "human", "value": "<video>\nwhat ?"}, {"from": "gpt", "value": "it"}]
    train = [{"id": str(i), "video": video, "prompt": "?"} for i, video in enumerate(["a", "b", "b", "gone"])]
    sets = {
        name: write(
            tmp_path / f"{name}.qa.jsonl",
            [{"id": str(i), "video": v, "caption": "c", "conversations": turns} for i, v in enumerate(clips)],
        )
        for name, clips in {"dev": ["test/c.avi"], "msvd": ["c", "test/b.avi", "lost"]}.items()
    }
    tree = {
        "name": "x",
        "model": {"start": "builtin:world", "registered_name": "x"},
        "data": {"train": write(tmp_path / "train.jsonl", train), "sets": sets, "videos": str(videos)},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tree))
    return path


def test_videos_are_counted_by_file_and_kind_and_leaks_are_said(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(recipe), "--list", str(tmp_path / "list.jsonl")]) == 3
    captured = capsys.readouterr()
    assert "data.train: 4 rows, 3 videos: 1 folder of frames, 1 missing, 1 tar of frames" in captured.out
    assert "data.sets.dev: 1 rows, 1 videos: 1 video file" in captured.out
    assert "data.sets.msvd: 3 rows, 3 videos: 1 missing, 1 tar of frames, 1 video file" in captured.out
    assert "note: data.train and data.sets.msvd share 1 clips" in captured.out
    assert "note: data.sets.dev and data.sets.msvd share 1 clips" in captured.out
    assert "2 of 7 videos are missing, above data.max_unreadable_fraction 0.01" in captured.err
    listed = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    assert [row["video"] for row in listed] == ["gone", "lost"]
    assert listed[0]["looked_for"] == str(tmp_path / "videos" / "gone")


def test_a_share_that_the_recipe_allows_is_no_failure(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = json.loads(recipe.read_text())
    tree["data"]["max_unreadable_fraction"] = 0.5
    recipe.write_text(json.dumps(tree))
    assert main(["data", "check", str(recipe)]) == 0
    assert "2 of 7 videos are missing\n" in capsys.readouterr().out
