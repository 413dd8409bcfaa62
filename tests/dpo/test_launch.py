"""The launcher: lines come through, every end has a name, and nothing outlives what started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from isr_dpo.dpo.launch import distributed_environment, launch
from isr_dpo.errors import ModelError, OutsideError

ROOT = Path(__file__).parents[2]
WORKER = "tests.dpo.launch_worker"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def make(part: str) -> Path:
        (tmp_path / "part").write_text(part, encoding="utf-8")
        return tmp_path

    return make


def start(folder: Path, lines: list[str] | None = None) -> None:
    launch(folder, ranks=2, on_line=([] if lines is None else lines).append, worker=WORKER)


def test_new_lines_come_through_in_order_and_those_known_do_not(job: Callable[[str], Path]) -> None:
    folder = job("work")
    (folder / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 99}\n', encoding="utf-8")
    lines: list[str] = []
    start(folder, lines)
    assert lines == ['{"step": 3}', '{"step": 4}', '{"step": 5}']


def test_a_ranks_own_error_comes_back_as_itself(job: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=r"^train: the policy does not fit; take a smaller one$"):
        start(job("refuse"))


def test_another_error_names_the_rank_its_exit_code_and_its_last_words(job: Callable[[str], Path]) -> None:
    with pytest.raises(OutsideError, match=r"(?s)rank 1 of 2 ended with exit code 1.*nobody thought of"):
        start(job("fall_over"))


def test_out_of_device_memory_says_what_to_change(job: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=r"no more device memory.*micro_batch_tokens"):
        start(job("memory"))


def test_a_killed_rank_is_named_and_not_the_one_that_waited_for_it(job: Callable[[str], Path]) -> None:
    with pytest.raises(OutsideError, match=r"(?s)rank 1 of 2 was killed by SIGKILL.*the last words"):
        start(job("killed"))


def test_a_killed_rank_ends_the_others_within_seconds(job: Callable[[str], Path]) -> None:
    folder = job("stuck")
    with pytest.raises(OutsideError, match="rank 1 of 2 was killed by SIGKILL"):
        start(folder)
    assert time.time() - float((folder / "killed-at").read_text(encoding="utf-8")) < 60


def test_an_exception_in_the_step_ends_all_ranks(job: Callable[[str], Path]) -> None:
    folder = job("blocked")

    def refuse(line: str) -> None:
        pids(folder)
        raise KeyError(line)

    with pytest.raises(KeyError):
        launch(folder, ranks=2, on_line=refuse, worker=WORKER)
    assert_gone(pids(folder), seconds=30)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_step(job: Callable[[str], Path], how: signal.Signals) -> None:
    folder = job("blocked")
    code = f"from pathlib import Path; from tests.dpo.test_launch import start; start(Path({str(folder)!r}))"
    step = subprocess.Popen([sys.executable, "-c", code])
    started = pids(folder)
    step.send_signal(how)
    step.wait(timeout=60)
    assert_gone(started, seconds=60)


def test_several_nodes_are_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not distributed_environment()
    monkeypatch.setenv("RANK", "0")
    assert not distributed_environment()
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert distributed_environment()


def pids(folder: Path) -> set[int]:
    """Both ranks' and torchrun's, once they are there."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        texts = [path.read_text(encoding="utf-8").split() for path in folder.glob("pid-*")]
        if [len(text) for text in texts] == [2, 2]:
            return {int(pid) for text in texts for pid in text}
        time.sleep(0.05)
    raise AssertionError("the ranks did not start")


def assert_gone(started: set[int], *, seconds: float) -> None:
    assert len(started) == 3
    until = time.monotonic() + seconds
    while alive := {pid for pid in started if running(pid)}:
        assert time.monotonic() < until, f"{alive} still run"
        time.sleep(0.05)


def running(pid: int) -> bool:
    """A zombie does not run."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_a_process_is_told_from_a_zombie() -> None:
    assert running(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert not running(ended.pid)
    ended.wait()
