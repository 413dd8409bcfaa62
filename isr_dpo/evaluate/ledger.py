"""The ledger: grades that were bought, so that none is bought twice, across rounds, runs and restarts.

One object a grade, `<ledger>/<first two letters>/<key>.json`, created as soon as its reply is in and never changed. The
key is the sha256 of what was asked: protocol, prompt digest, address and the whole request, which holds model, messages
and sampling. An entry holds all that too, so it can be audited by itself.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from isr_dpo.digests import canonical_digest
from isr_dpo.evaluate.protocol import Task
from isr_dpo.mapped import mapped
from isr_dpo.stores import Exists, Missing, join, read_bytes, write_bytes

log = logging.getLogger("isr_dpo")

LOOKUPS = 32
"""At a time."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a grader about one task. `request` is the chat completion's body as it is wanted, `task` what it
    is about."""

    protocol: str
    prompt_digest: str
    address: str
    request: Mapping[str, Any]
    task: Task

    @functools.cached_property
    def key(self) -> str:
        return _key(self.protocol, self.prompt_digest, self.address, self.request)


class Entry(BaseModel):
    """One bought grade: what was asked, what came back, what it cost, when and for whom."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    protocol: str
    prompt_digest: str
    address: str
    request: dict[str, Any]
    structured: bool
    """False: the server takes no `response_format`, so it was asked without."""
    task: dict[str, str]
    text: str
    refusal: str | None = None
    """The model's own."""
    finish: str | None = None
    model: str | None = None
    """As served."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    batch: str | None = None
    """Id of the batch it was bought in."""
    run_uri: str
    when: str
    """UTC."""


class Ledger:
    """Bought grades at `uri`, a folder or a prefix that any number of runs share."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def find(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries that stand, by key. A damaged one is named in the log and counts as none."""
        wanted = sorted(set(keys))
        found = mapped(self.get, wanted, threads=min(LOOKUPS, max(1, len(wanted))))
        return {key: entry for key, entry in zip(wanted, found, strict=True) if entry is not None}

    def get(self, key: str) -> Entry | None:
        """One entry; None: nothing stands there that can be trusted."""
        try:
            content = read_bytes(self.place(key))
        except Missing:
            return None
        entry = _read(content)
        if entry is None or entry.key != key:
            log.warning("%s is damaged: it counts for nothing, the grade is bought again", self.place(key))
            return None
        return entry

    def add(self, entry: Entry) -> Entry:
        """Keeps a grade; returns the entry that stands from now on, an earlier buyer's where there is one."""
        content = _write(entry)
        try:
            write_bytes(self.place(entry.key), content, if_absent=True)
        except Exists:
            standing = self.get(entry.key)
            if standing is not None:
                return standing
            write_bytes(self.place(entry.key), content)
        return entry

    def place(self, key: str) -> str:
        return join(self.uri, key[:2], f"{key}.json")


def _key(protocol: str, prompt_digest: str, address: str, request: Mapping[str, Any]) -> str:
    return canonical_digest([protocol, prompt_digest, address, request])


def _write(entry: Entry) -> bytes:
    """JSON with the sha256 of its content."""
    tree = entry.model_dump(mode="json")
    return _Sealed(entry=entry, sha256=canonical_digest(tree)).model_dump_json(indent=1).encode() + b"\n"


def _read(content: bytes) -> Entry | None:
    """None: not what was written, or not the answer to what its key says."""
    try:
        sealed = _Sealed.model_validate_json(content)
    except ValidationError:
        return None
    entry = sealed.entry
    sound = sealed.sha256 == canonical_digest(entry.model_dump(mode="json")) and entry.key == _key(
        entry.protocol, entry.prompt_digest, entry.address, entry.request
    )
    return entry if sound else None


class _Sealed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: Entry
    sha256: str
