"""Parts: the unit of resumption, and of what is handed out. A step's rows are cut into parts of fixed size, each
written as soon as it is done, in any order; a restart repeats only the parts that were in hand."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from isr_dpo.errors import OutsideError, WorkerDied
from isr_dpo.outputs import Output
from isr_dpo.records import Row, part_name, read_rows, to_jsonl

log = logging.getLogger("isr_dpo")

T = TypeVar("T")
W = TypeVar("W")
R = TypeVar("R", bound=Row)
Progress = Callable[[int], None]
Work = Callable[[Sequence[T], W, Progress], Sequence[R]]
"""Items of a part, the worker to do it, whom to tell of items done -> a row an item, in order."""
_NAMED_IN_A_MESSAGE = 5


class Share(NamedTuple):
    """The `number`-th of `of` ranges of a step's parts, counted from 1: what one of several pods does."""

    number: int
    of: int

    def parts(self, count: int) -> range:
        """The numbers of its parts among `count`. Ranges differ by one part at most."""
        return range(count * (self.number - 1) // self.of, count * self.number // self.of)


WHOLE = Share(1, 1)


class _Part(NamedTuple, Generic[T]):
    name: str
    items: Sequence[T]


def work_in_parts(
    items: Sequence[T],
    output: Output,
    *,
    rows_per_part: int,
    row_type: type[R],
    workers: Callable[[], Sequence[W]],
    work: Work[T, W, R],
    progress: Progress = lambda _: None,
    prefix: str = "part",
    share: Share = WHOLE,
) -> list[R]:
    """Applies `work` to every part of `items` that `output` does not hold yet, writes each, and returns all rows in the
    order of `items`: those of the share's parts, where it is not the whole.

    `workers` is asked for once, where anything is left to do; each of them works on one part at a time. A part whose
    worker dies is done again. Parts of another size, left by an attempt with another `rows_per_part`, are not kept.

    Raises:
        OutsideError: two workers died on the same part; names it and its rows.
    """
    starts = range(0, len(items), rows_per_part)
    parts = [
        _Part(part_name(number, prefix), items[start : start + rows_per_part]) for number, start in enumerate(starts)
    ]
    _forget_others(output, prefix, {part.name for part in parts})
    parts = [parts[number] for number in share.parts(len(parts))]
    rows: dict[str, Sequence[R]] = {}
    for part in parts:
        found = _found(part, output, row_type)
        if found is not None:
            rows[part.name] = found
            progress(len(found))
    left = [part for part in parts if part.name not in rows]

    def do(part: _Part[T], worker: W) -> None:
        made = _done(part, worker, work, progress, where=output.uri)
        output.write(part.name, to_jsonl(made))
        rows[part.name] = made

    if left:
        _hand_out(left, workers(), do)
    return [row for part in parts for row in rows[part.name]]


def _hand_out(parts: Sequence[_Part[T]], workers: Sequence[W], do: Callable[[_Part[T], W], None]) -> None:
    """Each worker takes the next part as soon as it is free; the first error ends it all."""
    if len(workers) == 1:
        for part in parts:
            do(part, workers[0])
        return
    queue: SimpleQueue[_Part[T]] = SimpleQueue()
    for part in parts:
        queue.put(part)

    def serve(worker: W) -> None:
        for part in _taken(queue):
            do(part, worker)

    threads = ThreadPoolExecutor(len(workers), thread_name_prefix="parts")
    try:
        served = [threads.submit(serve, worker) for worker in workers]
        for future in wait(served, return_when=FIRST_EXCEPTION).done:
            future.result()
    finally:
        for _ in _taken(queue):  # after an error nothing more is begun
            pass
        threads.shutdown(wait=False)


def _taken(queue: SimpleQueue[T]) -> Iterator[T]:
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return


def _done(part: _Part[T], worker: W, work: Work[T, W, R], progress: Progress, *, where: str) -> Sequence[R]:
    """The part's rows; a worker may die on it once."""
    try:
        return _counted(part, worker, work, progress)
    except WorkerDied as error:
        log.warning("%s/%s: %s; the part is done again", where, part.name, error)
    try:
        return _counted(part, worker, work, progress)
    except WorkerDied as error:
        keys = [_key(item) for item in part.items]
        more = f" and {len(keys) - _NAMED_IN_A_MESSAGE} more" if len(keys) > _NAMED_IN_A_MESSAGE else ""
        raise OutsideError(
            f"{where}/{part.name}: two workers died on this part, the second one thus: {error}. Its rows: "
            f"{', '.join(keys[:_NAMED_IN_A_MESSAGE])}{more}. Where memory ran out, lower engine.batch_rows"
        ) from error


def _counted(part: _Part[T], worker: W, work: Work[T, W, R], progress: Progress) -> Sequence[R]:
    """Takes back what was counted where the part comes to nothing."""
    counted = 0

    def count(done: int) -> None:
        nonlocal counted
        counted += done
        progress(done)

    try:
        return work(part.items, worker, count)
    except WorkerDied:
        progress(-counted)
        raise


def _found(part: _Part[T], output: Output, row_type: type[R]) -> list[R] | None:
    """The rows of a part that stands, unless they are not of its items."""
    if part.name not in output.done:
        return None
    where = f"{output.uri}/{part.name}"
    rows = list(read_rows(output.read(part.name).decode().split("\n"), row_type, where=where))
    return rows if [_key(row) for row in rows] == [_key(item) for item in part.items] else None


def _forget_others(output: Output, prefix: str, names: set[str]) -> None:
    """Leaves out of the output the parts beyond the last."""
    numbered = re.compile(rf"{re.escape(prefix)}-\d+\.jsonl")
    others = {name for name in output.done if numbered.fullmatch(name)} - names
    if others:
        output.keep(output.done - others)


def _key(item: Any) -> str:
    """What a row, or the item that it is made from, is known by: its id, or its video."""
    return item if isinstance(item, str) else str(getattr(item, "id", None) or item.video)
