"""Engines in processes of their own: what they answer, how they fail, and that they never outlive their parent."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from isr_dpo import config
from isr_dpo.engines import Choose, Progress, Sample, Text, pool
from isr_dpo.engines.fake import FakeEngine
from isr_dpo.engines.pool import Worker
from isr_dpo.errors import ModelError, OutsideError, WorkerDied
from tests.engines import mortal

MODEL = config.Model(start="x", registered_name="x", device="cpu")
TWO: Sequence[str | None] = (None, None)


def asked(*videos: str) -> list[Sample]:
    return [Sample(video, "what ?", (1, 2), 0.7, 1.0, 5) for video in videos]


def sample(worker: Worker, *videos: str, progress: Progress = lambda _: None) -> list[list[Text]]:
    return worker.do(functools.partial(mortal.sample, asked(*videos)), progress)


def processes(folder: Path) -> set[int]:
    """Of the workers that have opened an engine."""
    return {int(path.name.removeprefix("opened-")) for path in folder.glob("opened-*")}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds: float = 120) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_answers_as_its_engine_does_and_counts_what_is_done(tmp_path: Path) -> None:
    counted: list[int] = []
    with pool.opened(functools.partial(mortal.MortalEngine, tmp_path), TWO) as workers:
        for worker in workers:
            assert sample(worker, "a", "b", progress=counted.append) == FakeEngine().sample(asked("a", "b"))
            choice = Choose("a", "which ?", ("1", "2"), 0, "")
            assert worker.do(functools.partial(mortal.choose, [choice])) == FakeEngine().choose([choice])
    assert counted == [1, 1, 1, 1]
    assert len(processes(tmp_path)) == 2
    assert not any(alive(pid) for pid in processes(tmp_path))


def test_one_engine_needs_no_process(tmp_path: Path) -> None:
    with pool.opened(functools.partial(mortal.MortalEngine, tmp_path), [None]) as (worker,):
        assert sample(worker, "a") == FakeEngine().sample(asked("a"))
    assert processes(tmp_path) == {os.getpid()}


def test_a_dead_worker_is_named_and_replaced_at_the_next_call(tmp_path: Path) -> None:
    with pool.opened(functools.partial(mortal.MortalEngine, tmp_path), TWO) as (worker, _):
        with pytest.raises(WorkerDied, match=r"worker 1 of 2 \(process \d+\) was killed by SIGKILL; the kernel does"):
            sample(worker, "a", "die")
        assert sample(worker, "a") == FakeEngine().sample(asked("a"))


def test_a_worker_killed_between_two_calls_is_replaced(tmp_path: Path) -> None:
    with pool.opened(functools.partial(mortal.MortalEngine, tmp_path), TWO) as (worker, _):
        sample(worker, "a")
        (pid,) = processes(tmp_path)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid))
        assert sample(worker, "b") == FakeEngine().sample(asked("b"))


def test_an_engines_own_error_keeps_its_class_and_the_worker(tmp_path: Path) -> None:
    with pool.opened(functools.partial(mortal.MortalEngine, tmp_path), TWO) as (worker, _):
        with pytest.raises(ModelError, match=r"^no memory for this$"):
            sample(worker, "fail")
        with pytest.raises(FileNotFoundError, match="no such frames") as caught:  # no death, although it is an OSError
            sample(worker, "break")
        assert "mortal.py" in caught.value.__notes__[0]
        sample(worker, "a")
    assert len(processes(tmp_path)) <= 2


def test_an_engine_that_cannot_be_opened_says_why() -> None:
    with pool.opened(mortal.refused, TWO) as (worker, _), pytest.raises(ModelError, match="half a policy"):
        sample(worker, "a")


def test_what_a_worker_logs_its_parent_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, logger="isr_dpo"),
        pool.opened(functools.partial(mortal.MortalEngine, tmp_path), TWO) as (worker, _),
    ):
        sample(worker, "a")
    assert "opened by a worker" in caplog.text


def test_closing_ends_a_worker_that_is_busy(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        with pool.opened(functools.partial(mortal.MortalEngine, tmp_path), TWO) as (worker, _):
            call = thread.submit(sample, worker, "wait")
            until(lambda: processes(tmp_path))
        with pytest.raises(OutsideError, match="was stopped"):
            call.result(timeout=120)
    assert not any(alive(pid) for pid in processes(tmp_path))


def test_closing_ends_a_worker_that_is_being_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = pool.Process._start

    def slowly(worker: pool.Process) -> None:
        worker.close()  # by another thread
        start(worker)
        started.append(worker._process.pid)

    with pool.opened(functools.partial(mortal.MortalEngine, tmp_path), TWO) as (worker, _):
        with pytest.raises(WorkerDied):
            sample(worker, "die")
        monkeypatch.setattr(pool.Process, "_start", slowly)
        try:
            with pytest.raises(OutsideError, match="was stopped"):
                sample(worker, "a")
        finally:
            worker.close()
    assert not any(alive(pid) for pid in started)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path: Path, ending: signal.Signals) -> None:
    code = (
        "import functools, pathlib\n"
        "from isr_dpo.engines import pool\n"
        "from tests.engines import mortal, test_pool\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "with pool.opened(functools.partial(mortal.MortalEngine, folder), (None, None)) as (one, other):\n"
        "    test_pool.sample(other, 'a')\n"
        "    test_pool.sample(one, 'wait')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        until(lambda: len(processes(tmp_path)) == 2)
        parent.send_signal(ending)
        assert parent.wait(timeout=30) == -ending
    until(lambda: not any(alive(pid) for pid in processes(tmp_path)), seconds=30)


def test_each_worker_sees_its_own_gpu() -> None:
    with pool.opened(mortal.name_of_device, ["0", "3"]) as workers:
        seen = [sample(worker, "v")[0][0].text.split()[0] for worker in workers]
    assert seen == ["0", "3"]


@pytest.mark.parametrize(
    ("gpus", "visible", "workers", "expected"),
    [
        (0, None, None, [None]),
        (0, None, 3, [None, None, None]),
        (2, None, None, ["0", "1"]),
        (2, "4,7", None, ["4", "7"]),
        (2, None, 1, ["0"]),
        (2, None, 3, ["0", "1", "0"]),
    ],
)
def test_there_is_a_worker_a_gpu_unless_the_recipe_says_how_many(
    gpus: int, visible: str | None, workers: int | None, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings = config.Engine(workers=workers)
    assert pool.devices(settings, MODEL.model_copy(update={"device": "auto"})) == expected
    assert pool.devices(settings, MODEL) == [None] * (workers or 1)
