"""What of a run may go: large files alone, by their place in its layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from isr_dpo import layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.digests import canonical_digest
from isr_dpo.manifest import MANIFEST, Manifest, Origin
from isr_dpo.stores import join, open_store
from isr_dpo.stores.surveyed import Aged, Upload, aged, uploads

WEIGHTS = ".safetensors"
CHECKPOINTS_KEPT = 2
"""Of a round that is not trained to its end: as many as the trainer keeps."""
UNFINISHED_SECONDS = 24 * 3600.0
"""What nobody has written to for so long is no work in hand."""
_LARGE = re.compile(r"(frames|policy-\d+|masters/policy-\d+|round-\d+/training/checkpoints/[^/]+)/.+")
"""Outputs that hold large files. Rows are small and have cost GPU-hours: unfinished ones stay too."""

Reason = Literal[
    "weights of policies not kept",
    "masters before the newest",
    "checkpoints not needed",
    "unfinished for a day",
    "abandoned uploads",
    "this machine's cache",
]


@dataclass(frozen=True)
class Removal:
    """One thing to remove: the output or folder at `uri`, or (`names`) files of a finished output, or an `upload`."""

    reason: Reason
    uri: str
    size: int
    names: tuple[str, ...] = ()
    upload: Upload | None = None


class Survey:
    """A run's files as one listing shows them."""

    def __init__(self, run_uri: str) -> None:
        self.run_uri = run_uri.rstrip("/")
        self._objects = aged(self.run_uri)
        self._uploads = uploads(self.run_uri)
        self.outputs = self._large_outputs()
        self.policies = self._policies()

    @property
    def newest(self) -> int:
        """The newest finished policy, 0 where there is none."""
        return max(self.policies, default=0)

    def awaits_answers(self, index: int, recipe: Recipe) -> bool:
        """Whether the run has yet to ask this policy: while the task waits for a node, nobody holds the run's lock."""
        if index not in recipe.policies:
            return False
        folder = f"answers/{layout.policy_name(index)}"
        return any(f"{folder}/{name}/{MANIFEST}" not in self._objects for name in recipe.sets_at(index))

    def removals(self, kept: Mapping[int, object]) -> Iterator[Removal]:
        """All that may go where the policies `kept` keep their weights."""
        cached: list[Manifest] = []
        for index, made in sorted(self.policies.items()):
            if index not in kept:
                cached.append(made)
                standing = self.outputs[layout.policy_name(index)]
                names = tuple(name for name in sorted(made.files) if name.endswith(WEIGHTS) and name in standing)
                if names:
                    size = sum(standing[name].size for name in names)
                    yield Removal("weights of policies not kept", layout.policy(self.run_uri, index), size, names)
        for reason, name in (*self._masters(), *self._checkpoints(), *self._unfinished()):
            uri = join(self.run_uri, name)
            if (found := manifest.find(uri)) is not None:
                cached.append(found)
            yield Removal(reason, uri, sum(found.size for found in self.outputs[name].values()))
        for upload in self._uploads:
            if upload.seconds > UNFINISHED_SECONDS:
                yield Removal("abandoned uploads", upload.uri, upload.size, upload=upload)
        yield from self._cache(cached, [made for index, made in self.policies.items() if index in kept])

    def _large_outputs(self) -> dict[str, dict[str, Aged]]:
        """By the output's place in the run: its objects by name."""
        found: dict[str, dict[str, Aged]] = {}
        for name, state in self._objects.items():
            match = _LARGE.fullmatch(name)
            if match is not None:
                found.setdefault(match[1], {})[name.removeprefix(match[1] + "/")] = state
        return found

    def _policies(self) -> dict[int, Manifest]:
        """The finished policies whose files lie in this run; an alias has none here."""
        found = {}
        for place, objects in self.outputs.items():
            if place.startswith("policy-") and MANIFEST in objects:
                made = manifest.find(join(self.run_uri, place))
                if made is not None and made.files.keys() & objects.keys():
                    found[int(place.removeprefix("policy-"))] = made
        return found

    def _masters(self) -> Iterator[tuple[Reason, str]]:
        """Those of policies before the newest, whose own must stand."""
        newest = f"masters/{layout.policy_name(self.newest)}"
        for place in self.outputs:
            if place.startswith("masters/") and place < newest and MANIFEST in self.outputs.get(newest, {}):
                yield "masters before the newest", place

    def _checkpoints(self) -> Iterator[tuple[Reason, str]]:
        """All of a round whose policy is finished; of another the complete ones before the newest two."""
        rounds: dict[int, list[str]] = {}
        for place in self.outputs:
            if match := re.match(r"round-(\d+)/training/checkpoints/", place):
                rounds.setdefault(int(match[1]), []).append(place)
        for index, places in sorted(rounds.items()):
            done = MANIFEST in self.outputs.get(layout.policy_name(index + 1), {})
            complete = sorted(place for place in places if MANIFEST in self.outputs[place])
            for place in places if done else complete[:-CHECKPOINTS_KEPT]:
                yield "checkpoints not needed", place

    def _unfinished(self) -> Iterator[tuple[Reason, str]]:
        gone = {place for _, place in (*self._masters(), *self._checkpoints())}
        for place, objects in self.outputs.items():
            idle = min(state.seconds for state in objects.values())
            if place not in gone and MANIFEST not in objects and idle > UNFINISHED_SECONDS:
                yield "unfinished for a day", place

    def _cache(self, removed: list[Manifest], kept: list[Manifest]) -> Iterator[Removal]:
        """Copies of what is removed, and job folders of rounds whose policy is finished."""
        cache = manifest.cache_folder()
        digests = {made.digest for made in removed} - {made.digest for made in kept}
        places = {cache / digest for digest in digests}
        for index, made in self.policies.items():
            places |= set((cache / "train").glob(f"{job_key(self.run_uri, index - 1, made)}*"))
        for place in sorted(place for place in places if place.is_dir()):
            size = sum(open_store(str(place)).list(str(place)).values())
            yield Removal("this machine's cache", str(place), size)


def job_key(run_uri: str, round_index: int, policy: Manifest) -> str:
    """The name of the job folder in which the round of a finished policy was trained (steps/train)."""
    origin = policy.origin
    made_from = Origin("training", "train", dict(origin.inputs), origin.recipe_section_digest, origin.prompts_digest)
    return canonical_digest([layout.round_output(run_uri, round_index, "training"), vars(made_from)])[:16]
