"""One call on many items, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def mapped(
    call: Callable[[T], R], items: Sequence[T], *, threads: int, done: Callable[[int], None] = lambda _: None
) -> list[R]:
    """`call` of each item, in their order; `done` is told here of the number of each one as it is done.

    The first error is raised, and nothing more is begun.
    """
    found: dict[int, R] = {}
    if threads == 1:  # in this thread, where an interrupt ends a call at once
        for number, item in enumerate(items):
            found[number] = call(item)
            done(number)
        return list(found.values())
    pool = ThreadPoolExecutor(threads, thread_name_prefix="mapped")
    try:
        running = {pool.submit(call, item): number for number, item in enumerate(items)}
        for future in as_completed(running):
            found[running[future]] = future.result()
            done(running[future])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [found[number] for number in range(len(items))]
