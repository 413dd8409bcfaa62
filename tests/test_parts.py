"""Parts: kept, handed out, done again when a worker dies; never lost, never doubled."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from isr_dpo.engines import Sample, pool
from isr_dpo.engines.pool import Worker
from isr_dpo.errors import ModelError, OutsideError, WorkerDied
from isr_dpo.manifest import Origin
from isr_dpo.outputs import Output, begin
from isr_dpo.parts import Share, work_in_parts
from isr_dpo.records import Context
from tests.engines import mortal
from tests.engines.mortal import MortalEngine

VIDEOS = [f"v{number:02d}" for number in range(11)]
Progress = Callable[[int], None]


def output(folder: Path) -> Output:
    made = begin(str(folder / "out"), Origin("contexts", "retrospect", {}, "", ""))
    assert isinstance(made, Output)
    return made


def describe(videos: Sequence[str], worker: Any, progress: Progress) -> list[Context]:
    progress(len(videos))
    return [Context(video=video, context=f"of {video}") for video in videos]


def run(folder: Path, work: Any = describe, *, workers: Sequence[Any] = (None,), **options: Any) -> list[str]:
    def asked_for() -> Sequence[Any]:
        assert workers
        return workers

    settings: dict[str, Any] = {"rows_per_part": 2, "row_type": Context, "workers": asked_for, "work": work}
    rows = work_in_parts(VIDEOS, output(folder), **(settings | options))
    return [row.video for row in rows]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out").glob("part-*")}


def test_rows_come_in_order_whatever_the_order_of_the_parts(tmp_path: Path) -> None:
    def odd(videos: Sequence[str], worker: float, progress: Progress) -> list[Context]:
        time.sleep(worker)
        return describe(videos, worker, progress)

    assert run(tmp_path / "several", odd, workers=(0.03, 0.0, 0.01)) == VIDEOS
    assert run(tmp_path / "one") == VIDEOS
    assert contents(tmp_path / "several") == contents(tmp_path / "one")


def test_workers_take_parts_as_they_become_free(tmp_path: Path) -> None:
    done: Counter[str] = Counter()
    in_hand, rest_done = threading.Event(), threading.Event()

    def counted(videos: Sequence[str], worker: str, progress: Progress) -> list[Context]:
        if worker == "slow":
            in_hand.set()
            rest_done.wait(timeout=60)
        else:
            in_hand.wait(timeout=60)
        done[worker] += 1
        if done["quick"] == 5:
            rest_done.set()
        return describe(videos, worker, progress)

    run(tmp_path, counted, workers=("slow", "quick"))
    assert done == {"slow": 1, "quick": 5}


def test_what_stands_is_kept_and_where_nothing_is_left_no_worker_is_asked_for(tmp_path: Path) -> None:
    def until_v04(videos: Sequence[str], worker: None, progress: Progress) -> list[Context]:
        if "v04" in videos:
            raise ModelError("stopped")
        return describe(videos, worker, progress)

    with pytest.raises(ModelError):
        run(tmp_path, until_v04)
    assert set(contents(tmp_path)) == {"part-00000.jsonl", "part-00001.jsonl"}
    asked: list[str] = []
    counted: list[int] = []

    def rest(videos: Sequence[str], worker: None, progress: Progress) -> list[Context]:
        asked.extend(videos)
        return describe(videos, worker, progress)

    assert run(tmp_path, rest, progress=counted.append) == VIDEOS
    assert asked == VIDEOS[4:]
    assert sum(counted) == len(VIDEOS)
    assert run(tmp_path, workers=()) == VIDEOS


@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 3), (3, 4), (2, 100), (100, 2)])
def test_a_restart_with_parts_of_another_size_loses_and_doubles_nothing(
    tmp_path: Path, before: int, after: int
) -> None:
    run(tmp_path, rows_per_part=before)
    assert run(tmp_path, rows_per_part=after) == VIDEOS
    out = output(tmp_path)
    work_in_parts(VIDEOS, out, rows_per_part=after, row_type=Context, workers=lambda: [None], work=describe)
    made = out.seal(rows=len(VIDEOS), deterministic=True)
    text = b"".join((tmp_path / "out" / name).read_bytes() for name in sorted(made.files)).decode()
    assert [line.split('"')[3] for line in text.splitlines()] == VIDEOS


def test_shares_make_together_what_one_makes_alone(tmp_path: Path) -> None:
    shares = [Share(number, 4) for number in (1, 2, 3, 4)]
    together = [row for share in shares for row in run(tmp_path / "shared", share=share)]
    assert together == VIDEOS
    assert run(tmp_path / "alone") == VIDEOS
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


@pytest.mark.parametrize("count", range(9))
@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_every_part_is_in_exactly_one_share(count: int, of: int) -> None:
    ranges = [Share(number, of).parts(count) for number in range(1, of + 1)]
    assert [part for share in ranges for part in share] == list(range(count))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_a_part_whose_worker_dies_is_done_again_and_counted_once(tmp_path: Path) -> None:
    died = threading.Event()
    counted: list[int] = []

    def mortal(videos: Sequence[str], worker: None, progress: Progress) -> list[Context]:
        progress(1)
        if "v05" in videos and not died.is_set():
            died.set()
            raise WorkerDied("worker 1 was killed")
        progress(-1)
        return describe(videos, worker, progress)

    assert run(tmp_path, mortal, workers=(None, None), progress=counted.append) == VIDEOS
    assert sum(counted) == len(VIDEOS)


def test_a_second_death_on_the_same_part_names_it_and_its_rows(tmp_path: Path) -> None:
    def deadly(videos: Sequence[str], worker: None, progress: Progress) -> list[Context]:
        if "v05" in videos:
            raise WorkerDied("worker 2 was killed by SIGKILL")
        return describe(videos, worker, progress)

    named = r"part-00002\.jsonl: two workers died .* killed by SIGKILL\. Its rows: v04, v05\. .*engine\.batch_rows"
    with pytest.raises(OutsideError, match=named):
        run(tmp_path, deadly)


def test_an_error_ends_the_other_workers_too_and_nothing_more_is_begun(tmp_path: Path) -> None:
    begun: list[str] = []
    together = threading.Barrier(2)

    def failing(videos: Sequence[str], worker: Worker, progress: Progress) -> list[Context]:
        begun.extend(videos)
        kind = "fail" if "v02" in videos else "wait" if "v00" in videos else "slow"
        together.wait(timeout=60)
        worker.do(functools.partial(mortal.sample, [Sample(kind, "p", (1,), 0.0, 1.0, 1)]), progress)
        return describe(videos, worker, lambda _: None)

    started = time.monotonic()
    with (
        pytest.raises(ModelError, match="no memory for this"),
        pool.opened(functools.partial(MortalEngine, tmp_path), (None, None)) as workers,
    ):
        run(tmp_path, failing, workers=workers)
    assert time.monotonic() - started < 120
    assert sorted(begun) == VIDEOS[:4]


def test_a_killed_worker_costs_the_part_in_its_hand_and_no_other(tmp_path: Path) -> None:
    def once(videos: Sequence[str], worker: Worker, progress: Progress) -> list[Context]:
        kind = "die once" if "v06" in videos else "quick"
        requests = [Sample(kind, "p", (1,), 0.0, 1.0, 1)] * len(videos)
        worker.do(functools.partial(mortal.sample, requests), progress)
        return describe(videos, worker, lambda _: None)

    counted: list[int] = []
    with pool.opened(functools.partial(MortalEngine, tmp_path), (None, None)) as workers:
        assert run(tmp_path / "run", once, workers=workers, progress=counted.append) == VIDEOS
    assert sum(counted) == len(VIDEOS)
    assert len(list(tmp_path.glob("opened-*"))) == 3
