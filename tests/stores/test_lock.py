"""One owner a run, with real processes: on a disk, on moto's S3 server, on a real Ceph gateway."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from isr_dpo.errors import CorruptOutput, RunBusy, StoreError
from isr_dpo.stores import Exists, join, lock_s3, open_store, read_bytes, write_bytes
from isr_dpo.stores.lock import owner

SILENT_SECONDS = 2.5
QUICK = {"patience_seconds": 0.7, "beat_seconds": 0.3, "silent_seconds": SILENT_SECONDS}
PATIENT = {**QUICK, "silent_seconds": 60.0}
AT_ONCE_SECONDS = 20.0  # a loaded machine is slow, but a takeover would take 60
on_s3 = pytest.mark.parametrize("run_uri", ["moto", "ceph"], indirect=True)

HOLD = f"""
import sys
from isr_dpo.errors import RunBusy
from isr_dpo.stores.lock import owner
try:
    with owner(sys.argv[1], sys.argv[2], **{QUICK}) as lock:
        print("held", flush=True)
        for line in sys.stdin:
            lock.check()
            print("still", flush=True)
except RunBusy as error:
    print("busy:", error, flush=True)
"""


SLOWLY = """
import fcntl, time
flock = fcntl.flock
def slowly(file, kind):
    if kind & fcntl.LOCK_SH:
        flock(file, fcntl.LOCK_UN)
        time.sleep(1)
    flock(file, kind)
fcntl.flock = slowly
"""


class Start(Protocol):
    def __call__(self, uri: str, run_id: str, *, script: str = HOLD) -> "subprocess.Popen[str]": ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that holds the run until its input ends, checking its lock at every line."""
    processes = []

    def begin(uri: str, run_id: str, *, script: str = HOLD) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", script, uri, run_id]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def says(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def is_refused(uri: str, run_id: str) -> bool:
    try:
        with owner(uri, run_id, **PATIENT):
            return False
    except RunBusy:
        return True


def test_a_second_run_is_refused_and_told_by_whom(run_uri: str, start: Start) -> None:
    first = start(run_uri, "monday")
    assert says(first) == "held"
    told = rf"'monday'.*process {first.pid} on .*another --run-uri"
    with pytest.raises(RunBusy, match=told) as error, owner(run_uri, "tuesday", **PATIENT):
        pass
    assert run_uri in str(error.value)
    assert first.stdin is not None
    first.stdin.write("go on\n")
    first.stdin.flush()
    assert says(first) == "still"


def test_after_a_clean_end_another_run_owns_at_once(run_uri: str, start: Start) -> None:
    first = start(run_uri, "monday")
    assert says(first) == "held"
    first.communicate()
    began = time.monotonic()
    with owner(run_uri, "tuesday", **PATIENT) as lock:
        lock.check()
    assert time.monotonic() - began < AT_ONCE_SECONDS


def test_an_error_releases_the_run_and_stays_itself(run_uri: str) -> None:
    with pytest.raises(OSError, match="of the step"), owner(run_uri, "monday", **QUICK):
        raise OSError("of the step")
    assert not is_refused(run_uri, "tuesday")


def test_processes_of_one_run_hold_it_together_until_the_last_leaves(run_uri: str, start: Start) -> None:
    driver, step = start(run_uri, "monday"), start(run_uri, "monday")
    assert says(driver) == says(step) == "held"
    driver.communicate()  # it came first and leaves first
    assert is_refused(run_uri, "tuesday")
    step.communicate()
    assert not is_refused(run_uri, "tuesday")


def test_a_killed_run_is_taken_over_by_another(run_uri: str, start: Start) -> None:
    first = start(run_uri, "monday")
    assert says(first) == "held"
    first.kill()
    with owner(run_uri, "tuesday", **QUICK) as lock:
        lock.check()
        assert is_refused(run_uri, "wednesday")


def test_a_killed_run_goes_on_under_its_own_id_at_once(run_uri: str, start: Start) -> None:
    first = start(run_uri, "monday")
    assert says(first) == "held"
    first.kill()
    first.wait()
    began = time.monotonic()
    with owner(run_uri, "monday", **PATIENT):
        assert time.monotonic() - began < AT_ONCE_SECONDS


def test_of_two_that_take_over_a_dead_run_one_wins(run_uri: str, start: Start) -> None:
    dead = start(run_uri, "monday")
    assert says(dead) == "held"
    dead.kill()
    heirs = [start(run_uri, name) for name in ("red", "blue")]
    assert sorted(says(heir).split(":")[0] for heir in heirs) == ["busy", "held"]


@on_s3
def test_a_holder_that_was_suspended_too_long_stops_writing(run_uri: str, start: Start) -> None:
    first = start(run_uri, "monday")
    assert says(first) == "held"
    first.send_signal(signal.SIGSTOP)
    with owner(run_uri, "tuesday", **QUICK) as lock:
        first.send_signal(signal.SIGCONT)
        output, _ = first.communicate("go on\n", timeout=120)
        assert "busy:" in output
        assert "was taken over by the run 'tuesday'" in output
        time.sleep(2 * QUICK["beat_seconds"])
        lock.check()


@on_s3
def test_a_holder_notices_a_takeover_that_has_already_ended(run_uri: str, start: Start) -> None:
    first = start(run_uri, "monday")
    assert says(first) == "held"
    first.send_signal(signal.SIGSTOP)
    with owner(run_uri, "tuesday", **QUICK):
        pass
    first.send_signal(signal.SIGCONT)
    assert "was taken over by the run 'tuesday'" in first.communicate("go on\n", timeout=120)[0]


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_a_holder_that_never_gets_its_turn_among_others_goes_on_trying(
    run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap, refused, shown = lock_s3.swap, list[str](), list[str]()

    def crowded(uri: str, content: bytes, tag: str | None) -> str:
        if len(refused) < 20:  # attempts of one beat
            refused.append(uri)
            raise Exists(uri)
        shown.append(uri)
        return swap(uri, content, tag)

    with owner(run_uri, "one", **{**QUICK, "beat_seconds": 0.05}):
        monkeypatch.setattr("isr_dpo.stores.lock_s3.random.uniform", lambda *_: 0.0)
        monkeypatch.setattr(lock_s3, "swap", crowded)
        deadline = time.monotonic() + AT_ONCE_SECONDS
        while not shown:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@on_s3
def test_a_dead_companion_does_not_keep_the_run(run_uri: str, start: Start) -> None:
    dead = start(run_uri, "monday")
    assert says(dead) == "held"
    dead.kill()
    with owner(run_uri, "monday", **QUICK):
        time.sleep(SILENT_SECONDS + 3 * QUICK["beat_seconds"])
    began = time.monotonic()
    with owner(run_uri, "tuesday", **PATIENT):
        assert time.monotonic() - began < AT_ONCE_SECONDS


@on_s3
def test_a_waiting_process_says_for_whom(run_uri: str, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    first = start(run_uri, "monday")
    assert says(first) == "held"
    first.kill()
    with owner(run_uri, "tuesday", **QUICK):
        pass
    assert sum("waiting for the run 'monday'" in message for message in caplog.messages) == 1


@on_s3
def test_something_else_in_the_lock_s_place_is_named(run_uri: str) -> None:
    write_bytes(join(run_uri, "lock.json"), b"[]")
    named = pytest.raises(CorruptOutput, match=r"lock.json: not a lock .*delete it")
    with named, owner(run_uri, "monday", **QUICK):
        pass


@on_s3
def test_a_deleted_lock_is_made_again(run_uri: str) -> None:
    with owner(run_uri, "monday", **QUICK) as lock:
        open_store(run_uri).delete(join(run_uri, "lock.json"))
        until = time.monotonic() + 60
        while not open_store(run_uri).list(run_uri):
            assert time.monotonic() < until, "it is not made again"
            time.sleep(0.05)
        lock.check()
        assert b"monday" in read_bytes(join(run_uri, "lock.json"))


def test_nobody_slips_in_while_flock_turns_exclusive_into_shared(tmp_path: Path, start: Start) -> None:
    run_lock = tmp_path / "run.lock"
    first = start(str(tmp_path), "monday", script=SLOWLY + HOLD)
    while not (run_lock.exists() and run_lock.read_text()):
        time.sleep(0.01)
    assert is_refused(str(tmp_path), "tuesday")
    assert says(first) == "held"


def test_a_place_that_cannot_hold_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/run.*--run-uri"), owner(str(tmp_path / "file" / "run"), "monday"):
        pass
