"""What a run has ordered through the Batch API, written down before it is ordered: `<run>/batches/<label>.json`, and
`<label>.jsonl` with what is asked in it; and the files of requests that go up."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from isr_dpo.endpoint import Refused
from isr_dpo.errors import CorruptOutput
from isr_dpo.evaluate.ledger import Asked
from isr_dpo.evaluate.protocol import Task
from isr_dpo.evaluate.terms import body
from isr_dpo.mapped import mapped
from isr_dpo.stores import Missing, join, open_store, read_bytes, write_bytes

MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
"""Of one batch, says OpenAI."""
_RECORD = ".json"
_REQUESTS = ".jsonl"


class Order(BaseModel):
    """One batch: what it will bring, and what became of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    keys: tuple[str, ...]
    """Of the ledger."""
    structured: bool
    """Its requests carry a response format."""
    when: float
    """Seconds since the epoch: before it was ordered."""
    batch: str | None = None
    """Its id; None: it was ordered, or perhaps not."""
    ended: str | None = None
    """How, once all it brought is in the ledger; None: it may be under way."""
    refused: dict[str, Refused] = Field(default_factory=dict)
    """Requests whose content was refused, by key."""

    @property
    def spender(self) -> str:
        """Its name in the run's account."""
        return f"batch-{self.label}"


class Orders:
    """The orders at `uri`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def all(self) -> list[Order]:
        """Raises CorruptOutput, naming the file that is none."""
        names = [name for name in open_store(self.uri).list(self.uri) if name.endswith(_RECORD)]
        found = mapped(self._read, names, threads=min(16, max(1, len(names))))
        return [order for order in found if order is not None]

    def begin(self, asked: Sequence[Asked], *, structured: bool) -> Order:
        """Writes down an order to come."""
        order = Order(
            label=secrets.token_hex(16),
            keys=tuple(one.key for one in asked),
            structured=structured,
            when=time.time(),
        )
        lines = "".join(json.dumps(asdict(one), default=dict) + "\n" for one in asked)
        write_bytes(self._place(order, _REQUESTS), lines.encode())
        return self._write(order)

    def with_batch(self, order: Order, batch: str) -> Order:
        """It was ordered: remembers the batch's id."""
        return self._write(order.model_copy(update={"batch": batch}))

    def end(self, order: Order, *, how: str, refused: Mapping[str, Refused]) -> Order:
        """All it brought is kept."""
        return self._write(order.model_copy(update={"ended": how, "refused": dict(refused)}))

    def forget(self, order: Order) -> None:
        """It was never ordered."""
        for suffix in (_RECORD, _REQUESTS):
            open_store(self.uri).delete(self._place(order, suffix))

    def asked(self, order: Order) -> dict[str, Asked]:
        """What is asked in it, by key."""
        lines = read_bytes(self._place(order, _REQUESTS)).decode().splitlines()
        trees = [json.loads(line) for line in lines]
        found = [Asked(**{**tree, "task": Task(**tree["task"])}) for tree in trees]
        return {one.key: one for one in found}

    def _write(self, order: Order) -> Order:
        write_bytes(self._place(order, _RECORD), (order.model_dump_json() + "\n").encode())
        return order

    def _place(self, order: Order, suffix: str) -> str:
        return join(self.uri, order.label + suffix)

    def _read(self, name: str) -> Order | None:
        """None: another process has just forgotten it."""
        uri = join(self.uri, name)
        try:
            return Order.model_validate_json(read_bytes(uri))
        except Missing:
            return None
        except ValidationError as error:
            raise CorruptOutput(
                f"{uri} is damaged, so a batch that may be paid for cannot be found: mend it, or delete it if its "
                "grades may be bought again"
            ) from error


def files(asked: Sequence[Asked], *, structured: bool) -> Iterator[list[Asked]]:
    """Cut where a batch may hold no more."""
    part: list[Asked] = []
    size = 0
    for one in asked:
        length = len(line(one, structured=structured))
        if part and (len(part) == MAX_REQUESTS or size + length > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(one)
        size += length
    if part:
        yield part


def line(asked: Asked, *, structured: bool) -> bytes:
    request = {
        "custom_id": asked.key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body(asked, structured=structured),
    }
    return (json.dumps(request) + "\n").encode()
