"""Parts: the unit of resumption. A step's rows are cut into parts of fixed size, each written as soon as it is done; a
restart repeats only the part that was in hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from isr_dpo.manifest import Output
from isr_dpo.records import Row, part_name, read_rows, to_jsonl

T = TypeVar("T")
R = TypeVar("R", bound=Row)


def work_in_parts(
    items: Sequence[T],
    output: Output,
    *,
    rows_per_part: int,
    row_type: type[R],
    work: Callable[[Sequence[T]], Sequence[R]],
    progress: Callable[[int], None] = lambda _: None,
    prefix: str = "part",
) -> list[R]:
    """Applies `work` to every part of `items` that `output` does not hold yet, writes each, and returns all rows.

    `progress` is called with the items of a part that was found done; `work` reports its own.
    """
    rows: list[R] = []
    for number, start in enumerate(range(0, len(items), rows_per_part)):
        name = part_name(number, prefix)
        chunk = items[start : start + rows_per_part]
        if name in output.done:
            rows += read_rows(output.read(name).decode().split("\n"), row_type, where=f"{output.uri}/{name}")
            progress(len(chunk))
        else:
            done = list(work(chunk))
            output.write(name, to_jsonl(done))
            rows += done
    return rows
