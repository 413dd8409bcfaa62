import os
import signal
import subprocess
import sys
import time

import pytest

from isr_dpo import orphans

STEP = "import time; from isr_dpo import orphans; {setup}orphans.die_with({pid}); print('up', flush=True); {work}"


def start_step(pid: int, *, setup: str = "", work: str = "time.sleep(60)") -> "subprocess.Popen[str]":
    code = STEP.format(pid=pid, setup=setup, work=work)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def driver() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


@pytest.mark.parametrize(
    ("setup", "work"),
    [
        ("", "time.sleep(60)"),
        ("", "sum(1 for _ in iter(int, 1))"),  # never lets go of the interpreter by itself
        ("import os; vars(os).pop('pidfd_open', None); ", "time.sleep(60)"),  # as where there are no pidfds
    ],
    ids=["asleep", "busy", "polling"],
)
def test_a_step_ends_when_its_driver_is_killed(driver: "subprocess.Popen[bytes]", setup: str, work: str) -> None:
    with start_step(driver.pid, setup=setup, work=work) as step:
        assert step.stdout is not None
        assert step.stdout.readline() == "up\n"
        assert step.poll() is None
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert step.wait(timeout=50) == orphans.EXIT_CODE


def test_a_step_ends_at_once_when_its_driver_is_gone_already(driver: "subprocess.Popen[bytes]") -> None:
    driver.kill()
    driver.wait()
    with start_step(driver.pid) as step:
        assert step.wait(timeout=50) == orphans.EXIT_CODE


def test_a_step_runs_on_while_its_driver_lives() -> None:
    with start_step(os.getpid(), work="time.sleep(1.5)") as step:
        started = time.monotonic()
        assert step.wait(timeout=120) == 0
        assert time.monotonic() - started > 1
