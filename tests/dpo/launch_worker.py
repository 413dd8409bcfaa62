"""One rank of the launcher's tests; `part` in the job folder says what it plays."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from isr_dpo.dpo import launch, ranks
from isr_dpo.errors import ModelError


def line(folder: Path, number: int) -> None:
    with (folder / launch.LOG).open("a", encoding="utf-8") as log:
        log.write(json.dumps({"step": number}) + "\n")


def work(folder: Path, rank: int) -> None:
    """Goes on from two steps done, of three that an earlier run wrote."""
    assert "TORCH_EXTENSIONS_DIR" in os.environ
    group = ranks.join()
    if rank == 0:
        (folder / launch.LOG).write_text('{"step": 1}\n{"step": 2}\n', encoding="utf-8")
        for number in (3, 4, 5):
            line(folder, number)
            time.sleep(0.3)
    group.sum(torch.zeros(1))
    group.leave()


def refuse(folder: Path, rank: int) -> None:
    group = ranks.join()
    if rank == 1:
        raise ModelError("train: the policy does not fit; take a smaller one")
    group.sum(torch.zeros(1))


def fall_over(folder: Path, rank: int) -> None:
    group = ranks.join()
    if rank == 1:
        raise RuntimeError("something that nobody thought of")
    group.sum(torch.zeros(1))


def memory(folder: Path, rank: int) -> None:
    raise torch.OutOfMemoryError("tried to allocate 20 GiB")


def killed(folder: Path, rank: int) -> None:
    group = ranks.join()
    if rank == 1:
        print("the last words", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    group.sum(torch.zeros(1))


def stuck(folder: Path, rank: int) -> None:
    """Rank 0 never notices that rank 1 is gone, as one may in a GPU's collective."""
    if rank == 1:
        (folder / "killed-at").write_text(repr(time.time()), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def blocked(folder: Path, rank: int) -> None:
    """Rank 0 waits in a collective for one that never comes."""
    group = ranks.join()
    (folder / f"pid-{rank}").write_text(f"{os.getpid()} {os.getppid()}", encoding="utf-8")
    if rank == 1:
        time.sleep(600)
    line(folder, 1)
    group.sum(torch.zeros(1))


PARTS: list[Callable[[Path, int], None]] = [work, refuse, fall_over, memory, killed, stuck, blocked]


def main() -> None:
    with launch.rank_of(Path(sys.argv[1])) as folder:
        part = (folder / "part").read_text(encoding="utf-8")
        next(play for play in PARTS if play.__name__ == part)(folder, launch.rank())


if __name__ == "__main__":
    main()
