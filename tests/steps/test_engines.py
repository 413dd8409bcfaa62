"""Several workers that end their parts at the same moment, and what they note of themselves in the output."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import outputs
from isr_dpo.manifest import Origin
from isr_dpo.outputs import Output
from isr_dpo.records import Row
from isr_dpo.steps.engine import ENGINE, Engines, closed
from isr_dpo.stores.local import LocalStore
from tests.loop import recipe_for

PUT_SECONDS = 0.1
ORIGIN = Origin("responses", "generate", {}, "r" * 64, "q" * 64)


class Mark(Row):
    id: str


class Like:
    """An engine that says of itself whether it makes the same bytes again."""

    def __init__(self, *, deterministic: bool) -> None:
        self.deterministic = deterministic


class InStep:
    """A worker that ends each part with the other: the sure one while the other still stores its note."""

    def __init__(self, engine: Like, together: threading.Barrier) -> None:
        self._engine, self._together = engine, together

    def do(self, job: Any, progress: Any = None) -> Any:
        made = job(self._engine, progress)
        self._together.wait(timeout=30)
        time.sleep(PUT_SECONDS / 2 if self._engine.deterministic else 0)
        return made


class Pair(Engines):
    def __call__(self) -> Sequence[Any]:
        if not self._opened:
            together = threading.Barrier(2)
            self._opened = [InStep(Like(deterministic=sure), together) for sure in (False, True)]
        return self._opened


def marked(items: Sequence[Mark], engine: Any, /, *, progress: Any) -> Sequence[Mark]:
    return items


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    put = LocalStore.put

    def slowly(self: LocalStore, path: Path, uri: str, *, if_absent: bool = False) -> None:
        time.sleep(PUT_SECONDS)
        put(self, path, uri, if_absent=if_absent)

    monkeypatch.setattr(LocalStore, "put", slowly)


@pytest.mark.usefixtures("slow_disk")
def test_workers_that_end_a_part_at_once_note_the_least_sure_of_them(model: Path, world: Path, tmp_path: Path) -> None:
    recipe = recipe_for(model, world, "unused", engine={"rows_per_part": 1})
    out = outputs.begin(str(tmp_path / "out"), ORIGIN)
    assert isinstance(out, Output)
    items = [Mark(id=str(number)) for number in range(2)]
    with Pair(recipe, {}, str(tmp_path)) as engines:
        assert engines.work(items, out, row_type=Mark, stage=marked, progress=lambda _: None) == items
    assert ENGINE in out.done
    made = closed(out, {}, rows=len(items)).manifest
    assert not made.deterministic
