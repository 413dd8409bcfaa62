"""A checkpoint that is being stored while the trainer goes on and removes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from isr_dpo.dpo import checkpoint
from isr_dpo.dpo.backend import State


def complete(folder: Path, step: int) -> Path:
    made = folder / f"step-{step:06d}"
    (made / "shards").mkdir(parents=True)
    (made / "state.json").write_text(str(step))
    (made / "shards" / "0").write_text("moments")
    return made


def test_what_is_being_stored_stays_whole_when_the_trainer_removes_it(tmp_path: Path) -> None:
    made = complete(tmp_path, 2)
    with checkpoint.held(made) as files:
        assert files is not None
        checkpoint.remove(made)
        assert not made.exists()
        assert checkpoint.found(tmp_path) == []
        held = {path.relative_to(files).as_posix(): path.read_text() for path in files.rglob("*") if path.is_file()}
        assert held == {"state.json": "2", "shards/0": "moments"}
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_gone_is_none(tmp_path: Path) -> None:
    with checkpoint.held(tmp_path / "step-000002") as files:
        assert files is None


def test_one_that_goes_while_it_is_taken_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, link = complete(tmp_path, 2), checkpoint.os.link

    def late(source: str, target: str, **options: object) -> None:
        link(source, target)
        if made.exists():
            checkpoint.remove(made)

    monkeypatch.setattr(checkpoint.os, "link", late)
    with checkpoint.held(made) as files:
        assert files is None


def test_what_a_killed_attempt_held_is_let_go(tmp_path: Path) -> None:
    shutil.copytree(complete(tmp_path, 1), tmp_path / "held")
    with checkpoint.held(complete(tmp_path, 2)) as files:
        assert files is not None
        assert (files / "state.json").read_text() == "2"
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-000001", "step-000002"]


class OneWeight:
    """A backend, as `save` sees it."""

    rank = 0

    def states(self) -> Iterator[tuple[str, State]]:
        yield "weight", State(*(torch.ones(2) for _ in State._fields))


def test_what_a_killed_attempt_left_on_the_disk_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    complete(tmp_path, 1).rename(tmp_path / "step-000001.unfinished")
    for step in (2, 3, 4):
        checkpoint.save(tmp_path, OneWeight(), [{"step": step}])  # type: ignore[arg-type, list-item]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]


def test_one_is_removed_whatever_stands_under_the_other_name(tmp_path: Path) -> None:
    shutil.copytree(complete(tmp_path, 1), tmp_path / "step-000001.unfinished")
    checkpoint.remove(tmp_path / "step-000001")
    assert list(tmp_path.iterdir()) == []
