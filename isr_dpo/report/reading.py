"""A run's files as the report reads them: what is not there yet is left out, what is damaged is left out and named, so
that the page of a failed run stands."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

from isr_dpo import layout
from isr_dpo.analyse.runs import Graded, Run
from isr_dpo.data.frames import FrameStore
from isr_dpo.errors import CorruptOutput, DataError
from isr_dpo.manifest import files, find
from isr_dpo.records import Row

T = TypeVar("T")
R = TypeVar("R", bound=Row)


class Damage:
    """Collects what is wrong with files while the rest is read on."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def around(self, read: Callable[[], T]) -> T | None:
        """What `read` returns; None where it meets a file that differs from its manifest, or makes no sense."""
        try:
            return read()
        except (CorruptOutput, DataError) as error:
            if str(error) not in self.messages:
                self.messages.append(str(error))
            return None


@dataclass(frozen=True)
class KeptRun(Run):
    """A run whose damaged files are as good as absent, and named in `damage`. Grades are read once."""

    damage: Damage = field(default_factory=Damage, compare=False)
    _grades: dict[tuple[int, str], Graded | None] = field(default_factory=dict, compare=False, repr=False)

    def graded(self, policy: int, name: str) -> Graded | None:
        """As `Run.graded`."""
        key = (policy, name)
        if key not in self._grades:
            self._grades[key] = self.damage.around(lambda: super(KeptRun, self).graded(policy, name))
        return self._grades[key]

    def _rows(self, uri: str, prefix: str, row_type: type[R]) -> list[R] | None:
        return self.damage.around(lambda: super(KeptRun, self)._rows(uri, prefix, row_type))

    def frames(self, videos: Collection[str]) -> FrameStore | None:
        """The run's frames, those of `videos` fetched and verified; None where they are not at hand."""
        return self.damage.around(lambda: _frames(self.uri, videos))


def _frames(run_uri: str, videos: Collection[str]) -> FrameStore | None:
    manifest = find(layout.frames(run_uri))
    if manifest is None:
        return None
    store = FrameStore(files(manifest, [name for name in manifest.files if name.startswith("index-")]))
    files(manifest, {store.describe(video).shard for video in set(videos) & set(store.videos())})
    return store
