"""One item ahead: the next batch is read and tokenised while the model works on this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in their order; each is produced, in a thread, while its predecessor is in use. An error in producing
    one is raised where that item would have come."""
    source = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        pending = thread.submit(next, source, _END)
        while True:
            item = pending.result()
            if item is _END:
                return
            pending = thread.submit(next, source, _END)
            yield item  # type: ignore[misc]
