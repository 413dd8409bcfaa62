"""The frames of a run's videos as images for a browser; of a remote run, a shard is fetched when it is first wanted."""

from __future__ import annotations

import threading

from isr_dpo import layout
from isr_dpo.data.frames import FrameStore
from isr_dpo.errors import CorruptOutput, DataError
from isr_dpo.manifest import files, find

KIND = "image/webp"


class Footage:
    """Images by video. Safe to use from several threads. Raises DataError: the run has no frames."""

    def __init__(self, run_uri: str) -> None:
        made = find(layout.frames(run_uri))
        if made is None:
            raise DataError(f"{layout.frames(run_uri)}: no frames there; the run's step prepare makes them")
        self._manifest = made
        self._store = FrameStore(files(made, [name for name in made.files if name.startswith("index-")]))
        self._at_hand: set[str] = set()
        self._lock = threading.Lock()

    def images(self, video: str) -> list[bytes]:
        """The frames of `video` in order, as `KIND`.

        Raises:
            DataError: the run has no frames of this video.
            CorruptOutput: the shard is missing or damaged.
        """
        shard = self._store.describe(video).shard
        with self._lock:
            if shard not in self._at_hand:
                files(self._manifest, {shard})
                self._at_hand.add(shard)
        try:
            return self._store.images(video)
        except OSError as error:
            raise CorruptOutput(f"{self._manifest.uri}/{shard}: {error.strerror}; delete the folder") from error
