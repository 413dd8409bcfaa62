"""A step started by a local driver must not outlive it: an orphan would go on writing beside its own successor."""

from __future__ import annotations

import os
import select
import threading
import time

DRIVER_PID = "ISR_DPO_DRIVER_PID"
"""Environment variable in which a local driver leaves its process id to the steps it starts; a pod has none."""

EXIT_CODE = 9
POLL_SECONDS = 0.5


def die_with(pid: int) -> None:
    """Ends this process, without clean-up, as soon as process `pid` is gone, at once where it is gone already.

    A parent-death signal does not do: between a driver and its step stands KFP's shell.
    """
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            os._exit(EXIT_CODE)
        waiter = threading.Thread(target=_exit_when_readable, args=(descriptor,), name="orphans", daemon=True)
    else:
        waiter = threading.Thread(target=_exit_when_gone, args=(pid,), name="orphans", daemon=True)
    waiter.start()


def _exit_when_readable(descriptor: int) -> None:
    """A process's descriptor becomes readable when it ends (Linux)."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()
    os._exit(EXIT_CODE)


def _exit_when_gone(pid: int) -> None:
    """Elsewhere (macOS) the driver is asked after twice a second."""
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os._exit(EXIT_CODE)
        time.sleep(POLL_SECONDS)
