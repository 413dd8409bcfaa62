"""Engines in processes of their own, one a device: what several GPUs of a pod work with.

A stage goes over a pipe to the process that holds the model (`worker`) and runs there. A process that died is replaced
at its worker's next job. Processes end with the one that started them, whatever ends that, and hold nothing that is not
made again.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from isr_dpo import config
from isr_dpo.engines import Engine, Progress
from isr_dpo.errors import OutsideError, WorkerDied

PROGRAM = "isr_dpo.engines.worker"
log = logging.getLogger(__name__)

R = TypeVar("R")
Job = Callable[[Engine, Progress], R]
"""What a worker is given: a stage with its rows. For a process of its own it can be pickled."""


def devices(settings: config.Engine, model: config.Model) -> list[str | None]:
    """The device of each worker, as CUDA_VISIBLE_DEVICES names it; None: none of its own.

    `engine.workers` of them: not given, one a GPU, or one on a CPU. More workers than GPUs share these evenly.
    """
    gpus: list[str | None] = list(_gpus()) if settings.kind not in ("fake", "openai") and model.device != "cpu" else []
    count = settings.workers or max(len(gpus), 1)
    return [gpus[number % len(gpus)] if gpus else None for number in range(count)]


def _gpus() -> list[str]:
    """The GPUs that this process may use. Asking takes no memory on them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


class Worker(Protocol):
    """An engine and who runs stages on it, one at a time."""

    def do(self, job: Job[R], progress: Progress = ...) -> R: ...


@contextmanager
def opened(opening: Callable[[], Engine], devices: Sequence[str | None]) -> Iterator[list[Worker]]:
    """A worker a device, each with an engine as `opening` gives it, which travels to its process pickled. Only one: in
    this process."""
    if len(devices) == 1:
        yield [Here(opening())]
        return
    with ExitStack() as running:
        workers: list[Worker] = []
        for number, device in enumerate(devices, start=1):
            worker = Process(opening, name=f"worker {number} of {len(devices)}", device=device)
            running.callback(worker.close)
            workers.append(worker)
        yield workers


class Here:
    """A worker in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def do(self, job: Job[R], progress: Progress = lambda _: None) -> R:
        return job(self._engine, progress)


class Process:
    """A worker in a process of its own, started at once, ready when it is first used. Jobs travel to it pickled."""

    def __init__(self, opening: Callable[[], Engine], *, name: str, device: str | None = None) -> None:
        self._opening = pickle.dumps(opening)
        self._name, self._device = name, device
        self._closed = False
        self._start()

    def do(self, job: Job[R], progress: Progress = lambda _: None) -> R:
        """What the job gives; what the process says meanwhile is passed on.

        Raises:
            WorkerDied: the process ended on this job. What the job raises in it is raised here.
        """
        sent = pickle.dumps(job)
        if not self._begun(sent) and not self._closed:
            self._end()
            log.warning("%s %s between two jobs; another takes its place", self._name, self._how())
            self._connection.close()
            self._start()
            self._begun(sent)  # where it has not, the next lines say so
        try:
            kind, value = self._connection.recv()
            while kind in ("progress", "log"):
                if kind == "progress":
                    progress(value)
                else:
                    logging.getLogger(value.name).handle(value)
                kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            self._end()
            if self._closed:
                raise OutsideError(f"{self._name} was stopped") from error
            raise WorkerDied(f"{self._name} (process {self._process.pid}) {self._how()}") from error
        if kind == "error":
            raise pickle.loads(value)  # noqa: S301 - our own process
        made: R = value
        return made

    def _begun(self, job: bytes) -> bool:
        """Hands the job over; whether the process lives to take it up."""
        try:
            self._connection.send_bytes(job)
            return bool(self._connection.recv() == ("began", None))
        except (EOFError, OSError):
            return False

    def close(self) -> None:
        """Ends the process. A job under way, or a later one, raises OutsideError."""
        self._closed = True
        self._end()

    def _start(self) -> None:
        ours, theirs = Pipe()
        path = os.pathsep.join(folder for folder in sys.path if folder)  # what we can import the process can
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        if self._device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._device
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
                [sys.executable, "-m", PROGRAM, str(theirs.fileno()), str(os.getpid())],
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's interrupt is ours to answer; and its own children end with it
            )
        self._connection: Connection[Any, Any] = ours
        try:
            ours.send_bytes(self._opening)
        except OSError:
            log.debug("%s ended before it had begun", self._name)  # the next job says so
        if self._closed:  # meanwhile, by another thread, which has ended the process before this one
            self._end()

    def _end(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("%s had left nothing", self._name)
        self._process.wait()

    def _how(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f"ended with exit code {code}"
        hint = "; the kernel does so when memory runs out" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"
