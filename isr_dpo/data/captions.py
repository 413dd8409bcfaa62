"""Captions of evaluation rows: the caption protocol's grader reads one a video."""

from __future__ import annotations

from collections.abc import Iterable

from isr_dpo.data.rows import Located
from isr_dpo.errors import DataError
from isr_dpo.records import TestRow


def with_captions(rows: Iterable[Located[TestRow]]) -> list[Located[TestRow]]:
    """The rows, each with a caption: its own, or that of another row about the same video [C].

    Raises:
        DataError: file and line of the first row about a video without any.
    """
    found = list(rows)
    captions = {located.row.video: located.row.caption for located in found if located.row.caption}
    for located in found:
        if located.row.video not in captions:
            raise DataError(
                f"{located.where}: row {located.row.id!r} has no caption, nor has any other row about "
                f"{located.row.video!r}; the caption protocol needs one: add it, or have the set graded without: "
                "evaluate.protocols: {SET: official} in a recipe, --protocol official of isr-dpo score"
            )
    return [
        located
        if located.row.caption
        else located._replace(row=located.row.model_copy(update={"caption": captions[located.row.video]}))
        for located in found
    ]
