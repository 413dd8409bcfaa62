"""Starts the ranks of a training job on this machine, and turns their end into a value or a named error.

The step that calls `launch` stays outside the ranks: it imports no DeepSpeed, has no device memory, and outlives any of
them. Between it and the ranks stands torchrun (`torchrun`), which ends all when one fails. Each of the three ends when
the one that started it is gone, so nothing survives a killed step.

Several nodes: each launches its own ranks, whose torchruns meet at node 0 (`nodes`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from isr_dpo import errors
from isr_dpo.dpo.nodes import Node
from isr_dpo.dpo.torchrun import TORCHRUN_PID
from isr_dpo.errors import IsrDpoError, OutsideError
from isr_dpo.orphans import die_with

WORKER = "isr_dpo.dpo.worker"
LOG = "log.jsonl"
LOGS = "logs"
POLL_SECONDS = 0.2
STOP_SECONDS = 5
_TAIL_CHARACTERS = 3000


def distributed_environment() -> bool:
    """True where this process is one of several ranks: torchrun has set RANK and WORLD_SIZE."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(
    folder: Path,
    *,
    ranks: int,
    on_line: Callable[[str], None],
    worker: str = WORKER,
    node: Node | None = None,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Runs `python -m <worker> <folder>` on `ranks` ranks of this machine until all have ended well.

    Args:
        folder: the job. The ranks' own messages go into `logs/` there, what they compile into `extensions/`.
        on_line: called in this process with each line that the worker adds to `log.jsonl`, in order; lines that were
            there before, or are written again as they were, are passed over.
        worker: a module whose main runs inside `rank_of`.
        node: this machine among several that do the same; none: it is alone.
        watch: called a few times a second; what it raises ends the ranks.

    Raises:
        IsrDpoError: a rank's own error, with its class and message; or what `watch` raised.
        OutsideError: a rank ended otherwise; names it, its signal or exit code, and the end of what it printed.
    """
    logs = folder / LOGS
    report = logs / "failures.json"
    logs.mkdir(parents=True, exist_ok=True)
    for stale in (report, *folder.glob("error-*.json")):
        stale.unlink(missing_ok=True)
    command = [sys.executable, "-m", "isr_dpo.dpo.torchrun", str(report), str(os.getpid())]
    command += [*_meeting(node), "--nproc-per-node", str(ranks), "--max-restarts", "0"]
    command += ["--log-dir", str(logs), "--redirects", "3", "-m", worker, str(folder)]
    log = _Log(folder / LOG)
    with (logs / "torchrun.log").open("wb") as printed:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, our own modules
            command, env=_environment(folder, ranks), stdout=printed, stderr=printed, start_new_session=True
        )
        try:
            while process.poll() is None:
                for line in log.new():
                    on_line(line)
                watch()
                time.sleep(POLL_SECONDS)
            for line in log.new():
                on_line(line)
        finally:
            _stop(process)
    if process.returncode:
        first, nodes = (node.rank * ranks, node.nodes) if node else (0, 1)
        raise _error(folder, report, ranks=ranks * nodes, first=first, code=process.returncode)


def _meeting(node: Node | None) -> list[str]:
    """How this machine's torchrun finds the others'."""
    if node is None:
        return ["--standalone"]
    where = {"nnodes": node.nodes, "node-rank": node.rank, "master-addr": node.address, "master-port": node.port}
    return [part for name, value in where.items() for part in (f"--{name}", str(value))]


@contextmanager
def rank_of(folder: Path) -> Iterator[Path]:
    """The body of one rank's program. An error is left in `folder` for `launch`, as `error-<rank>.json` {type, message,
    exit_code}, and ends the process at once, without the clean-up that would wait for the other ranks."""
    if TORCHRUN_PID in os.environ:
        die_with(int(os.environ[TORCHRUN_PID]))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler of Python's never runs in a rank that waits for another
    try:
        yield folder
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
        traceback.print_exc()
        code = _leave(folder, _named(error))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _named(error: BaseException) -> BaseException:
    """The error as a user needs it."""
    import torch

    if not isinstance(error, torch.OutOfMemoryError):
        return error
    return errors.ModelError(
        f"train: rank {rank()} has no more device memory ({error}); lower train.micro_batch_tokens, raise "
        "train.zero_stage, or set train.gradient_checkpointing"
    )


def _leave(folder: Path, error: BaseException) -> int:
    """Writes the error down; the exit code."""
    code = error.exit_code if isinstance(error, IsrDpoError) else 1
    path = folder / f"error-{rank()}.json"
    unfinished = path.with_suffix(".unfinished")
    tree = {"type": type(error).__name__, "message": str(error), "exit_code": code}
    unfinished.write_text(json.dumps(tree), encoding="utf-8")
    unfinished.replace(path)
    return code


def rank() -> int:
    """This process among those of its environment."""
    return int(os.environ.get("RANK", "0"))


class _Log:
    """A file of lines that others append to. A worker that resumes writes it again up to its checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._lines()

    def new(self) -> list[str]:
        """Lines since the last call, complete ones."""
        lines, common = self._lines(), 0
        for before, now in zip(self._seen, lines, strict=False):
            if before != now:
                break
            common += 1
        self._seen = lines
        return lines[common:]

    def _lines(self) -> list[str]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return text[: text.rfind("\n") + 1].splitlines()


def _environment(folder: Path, ranks: int) -> dict[str, str]:
    """Of torchrun and its ranks. Extension folders are per job: a killed compile leaves a lock that later ones would
    wait for."""
    threads = max(1, (os.cpu_count() or 1) // ranks)
    own = {"TORCH_EXTENSIONS_DIR": str(folder / "extensions"), "PYTHONUNBUFFERED": "1"}
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **own}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends torchrun; its ranks end with it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _error(folder: Path, report: Path, *, ranks: int, first: int, code: int) -> IsrDpoError:
    """What to tell the user. Where several ranks fell, the others often fell over the first: an error of ours comes
    first, then a signal, then what a rank raised, the earliest of each. `first`: the first rank of this machine."""
    left = sorted(folder.glob("error-*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in left:
        tree = json.loads(path.read_text(encoding="utf-8"))
        kind = getattr(errors, tree["type"], None)
        if kind is not None:
            return kind(tree["message"])  # type: ignore[no-any-return]
    if not report.exists():
        return OutsideError(f"train: torchrun {_how(code)}:\n{_tail(folder / LOGS / 'torchrun.log')}")
    failures = json.loads(report.read_text(encoding="utf-8"))
    ends = {failure["rank"]: failure["exit_code"] for failure in failures}
    soon = min(failure["seconds"] for failure in failures) + 2  # later ones torchrun has ended itself
    signalled = [f["rank"] for f in failures if 0 > f["exit_code"] != -signal.SIGTERM and f["seconds"] <= soon]
    raised = [int(path.stem.removeprefix("error-")) for path in left]
    rank = next(rank for rank in (*signalled, *raised, *ends) if rank in ends)
    hint = "; the kernel does so when memory runs out" if ends[rank] == -signal.SIGKILL else ""
    return OutsideError(
        f"train: rank {rank} of {ranks} {_how(ends[rank])}{hint}. Its last words:\n{_printed(folder, rank - first)}"
    )


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _printed(folder: Path, local_rank: int) -> str:
    found = sorted(folder.glob(f"{LOGS}/*/attempt_*/{local_rank}/stderr.log"), key=lambda path: path.stat().st_mtime_ns)
    return _tail(found[-1]) if found else "(none)"


def _tail(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    return text[-_TAIL_CHARACTERS:] or "(none)"
