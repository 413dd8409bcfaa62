"""A side of the DPO benchmark in its own process: it does a step whenever it is told to, and says what that took."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-6
BETA = 0.1
MAX_GRAD_NORM = 1.0
"""All three are the defaults of TRL's DPOConfig."""
STEPS = 1000
"""Optimiser steps that the learning rate's decay is laid out for; far fewer are taken."""


@dataclass(frozen=True)
class Job:
    """What a child is told on its command line."""

    folder: Path
    checkpointing: bool
    micro_batch_pairs: int
    threads: int


class Channel:
    """Lines of JSON to the parent, commands from it. Whatever else this process prints goes to its stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._started = self._started_cpu = 0.0

    def ready(self, **facts: Any) -> None:
        self._send({"gpu": on_gpu(), **facts})

    def wait(self) -> bool:
        """Blocks until the next step is asked for, and starts the clock; False: no more steps."""
        go = sys.stdin.readline().strip() == "step"
        self._started, self._started_cpu = time.perf_counter(), time.process_time()
        return go

    def elapsed(self) -> float:
        """Seconds since the step was asked for, the device's work included."""
        synchronize()
        return time.perf_counter() - self._started

    def done(self, **values: Any) -> None:
        seconds = self.elapsed()
        cpu_seconds = time.process_time() - self._started_cpu
        self._send({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes(), **values})

    def _send(self, values: dict[str, Any]) -> None:
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()


def on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def peak_bytes() -> int:
    """GPU: most memory that torch held. CPU: the process's resident high-water mark, libraries and all."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kib) * 1024


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
