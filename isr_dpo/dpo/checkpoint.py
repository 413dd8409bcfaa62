"""Points of resumption inside a round: masters, Adam's moments, how many steps were taken, and the log so far.

A checkpoint is a folder `step-000042`, complete or absent: it is written under another name and renamed. It does not
depend on the number of ranks that wrote it. At most two are kept, so that one is always whole.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from isr_dpo.dpo.backend import Backend, State
from isr_dpo.dpo.masters import Masters, write
from isr_dpo.dpo.trainer import Entry
from isr_dpo.errors import CorruptOutput

log = logging.getLogger("isr_dpo")

FOLDER = "checkpoints"
STATE = "state.json"
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the local disk."""

    folder: Path
    step: int
    log: list[Entry]

    def state(self, name: str) -> State | None:
        """What parameter `name` goes on from."""
        tensors = Masters(self.folder)
        return State(*(tensors[f"{field}/{name}"] for field in State._fields))


def save(folder: Path, backend: Backend, entries: Sequence[Entry]) -> Path:
    """Writes a checkpoint after the step of the last of `entries` into `folder` and removes all but the newest two.
    Collective: rank 0 writes, the others take part."""
    step = int(entries[-1]["step"])
    complete = folder / f"step-{step:06d}"
    if backend.rank != 0:
        for _ in backend.states():
            pass
        return complete
    for left in folder.glob("*.unfinished"):  # by a killed attempt, which wrote or removed it
        shutil.rmtree(left)
    unfinished = folder / f"{complete.name}.unfinished"
    write(unfinished, _named(backend))
    (unfinished / STATE).write_text(json.dumps({"step": step, "log": list(entries)}), encoding="utf-8")
    os.replace(unfinished, complete)
    for old in found(folder)[:-KEPT]:
        remove(old)
    return complete


def remove(complete: Path) -> None:
    """Removes a checkpoint: whole until now, absent from now on."""
    unfinished = complete.with_name(f"{complete.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    os.replace(complete, unfinished)
    shutil.rmtree(unfinished)


@contextmanager
def held(complete: Path) -> Iterator[Path | None]:
    """A folder with a checkpoint's files, for as long as it takes to store them: the trainer goes on and removes all
    but the newest two meanwhile. They are links, no bytes are copied. None: it has removed this one already."""
    links = complete.with_name("held")
    shutil.rmtree(links, ignore_errors=True)
    try:
        shutil.copytree(complete, links, copy_function=os.link)
    except (FileNotFoundError, shutil.Error):
        if complete.exists():
            raise
    try:
        yield links if complete.exists() else None
    finally:
        shutil.rmtree(links, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(".unfinished"))


def newest(folder: Path) -> Checkpoint | None:
    """The one to go on from.

    Raises:
        CorruptOutput: it cannot be read.
    """
    standing = found(folder)
    if not standing:
        return None
    try:
        tree = json.loads((standing[-1] / STATE).read_text(encoding="utf-8"))
        return Checkpoint(standing[-1], int(tree["step"]), list(tree["log"]))
    except (OSError, ValueError, KeyError) as error:
        raise CorruptOutput(f"{standing[-1]}: not a checkpoint ({error}); delete it and run again") from error


def _named(backend: Backend) -> Iterator[tuple[str, Tensor]]:
    for name, state in backend.states():
        for field, tensor in zip(State._fields, state, strict=True):
            yield f"{field}/{name}", tensor
