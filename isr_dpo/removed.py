"""Files that were removed from a finished output on purpose: `removed.json` beside its manifest says which, and why.

The manifest stays, so a finished run stays complete and what was made from the output keeps its origin; whoever needs
one of the files is told that it was removed, not that it is damaged. The marker is written before the first file goes:
an output that was cut in the middle of it is a removed one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from isr_dpo.errors import CorruptOutput, DataError
from isr_dpo.stores import Missing, join, open_store, read_bytes, write_bytes

REMOVED = "removed.json"


@dataclass(frozen=True)
class Removed:
    """`names` of the files; `at` in UTC; `why` in words."""

    names: tuple[str, ...]
    at: str
    why: str


def find(uri: str) -> Removed | None:
    """What was removed from the output whose files lie at `uri`. Raises CorruptOutput: the marker cannot be read."""
    where = join(uri, REMOVED)
    try:
        tree = json.loads(read_bytes(where))
        return Removed(tuple(tree["names"]), str(tree["at"]), str(tree["why"]))
    except Missing:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptOutput(f"{where}: does not say what was removed ({error}); delete {uri}") from error


def refuse(uri: str, name: str | None = None) -> None:
    """Raises DataError where the file `name` (none: any) of the output at `uri` was removed."""
    found = find(uri)
    if found is not None and (name is None or name in found.names):
        raise DataError(
            f"{uri}: its weights were removed by `isr-dpo gc` on {found.at} ({found.why}); take a policy that has kept "
            "its weights, or train this one again in a run of its own"
        )


def remove(uri: str, names: Sequence[str], *, why: str) -> None:
    """Deletes files of the finished output at `uri`, the marker first. Again after a cut, it goes on."""
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    before = find(uri)
    gone = Removed(tuple(sorted({*names, *(before.names if before else ())})), before.at if before else at, why)
    write_bytes(join(uri, REMOVED), (json.dumps(asdict(gone), indent=1) + "\n").encode())
    store = open_store(uri)
    for name in names:
        store.delete(join(uri, name))
