"""The edge to OpenAI's Batch API, on the `openai` package: order a batch once, find it again, look at it, read it."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from isr_dpo.endpoint import Endpoint
from isr_dpo.errors import IsrDpoError, OutsideError

if TYPE_CHECKING:
    from openai.types import Batch

log = logging.getLogger("isr_dpo")

LABEL = "isr-dpo"
"""Of the metadata that a batch is known by."""
ATTEMPTS = 4
FIRST_LOOK_SECONDS = 2.0
"""After an order that got no answer, until the batch is looked for; doubled each time."""
UPLOAD_SECONDS = 600.0
CLOCKS_SECONDS = 3600.0
"""What the server's clock and ours may differ by."""


class BatchApi:
    """Batches of chat completions at `endpoint`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = endpoint.client

    def order(self, label: str, content: bytes) -> Batch:
        """Uploads the requests and orders their batch, once: where the order gets no answer, the batch is looked for
        before it is ordered again.

        Raises:
            OutsideError: no answer; it may have been ordered all the same. Where `retry` is False, it was not.
            RecipeError: it was refused.
        """
        since = time.time()
        with self._endpoint.translated():
            file = self._client.with_options(timeout=UPLOAD_SECONDS).files.create(
                file=(f"{LABEL}-{label}.jsonl", content), purpose="batch"
            )
        for attempt in itertools.count(1):
            try:
                with self._endpoint.translated():
                    return self._client.with_options(max_retries=0).batches.create(
                        input_file_id=file.id,
                        endpoint="/v1/chat/completions",
                        completion_window="24h",
                        metadata={LABEL: label},
                    )
            except IsrDpoError as error:
                if not error.retry:
                    raise
                log.info("grader batch: the order got no answer, it is looked for: %s", error)
                time.sleep(FIRST_LOOK_SECONDS * 2 ** (attempt - 1))
                found = self.find(label, since=since)
                if found is not None:
                    return found
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError

    def find(self, label: str, *, since: float) -> Batch | None:
        """The batch of this label, ordered after `since` (seconds since the epoch)."""
        with self._endpoint.translated():
            for batch in self._client.batches.list(limit=100):  # newest first
                if (batch.metadata or {}).get(LABEL) == label:
                    return batch
                if batch.created_at < since - CLOCKS_SECONDS:
                    break
        return None

    def find_patiently(self, label: str, *, since: float) -> Batch | None:
        """The same; one that was ordered just now may show up a little later."""
        for attempt in range(ATTEMPTS):
            found = self.find(label, since=since)
            if found is not None:
                return found
            if time.time() - since > UPLOAD_SECONDS:
                return None
            if attempt + 1 < ATTEMPTS:
                time.sleep(FIRST_LOOK_SECONDS * 2**attempt)
        return None

    def look(self, batch_id: str) -> Batch:
        """How it stands."""
        from openai import NotFoundError

        try:
            with self._endpoint.translated():
                return self._client.batches.retrieve(batch_id)
        except IsrDpoError as error:
            if not isinstance(error.__cause__, NotFoundError):
                raise
            raise OutsideError(
                f"{self._endpoint.where} knows no batch {batch_id}, which this run has ordered there: use the key "
                "that it was ordered with"
            ) from error

    def lines(self, batch: Batch) -> Iterator[dict[str, Any]]:
        """What it brought, a line a request: answers, then errors."""
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                with self._endpoint.translated():
                    content = self._client.with_options(timeout=UPLOAD_SECONDS).files.content(file_id)
                for number, line in enumerate(content.text.split("\n"), start=1):
                    if line.strip():
                        yield self._line(line, f"batch {batch.id}, {file_id}:{number}")

    def _line(self, line: str, place: str) -> dict[str, Any]:
        try:
            tree = json.loads(line)
        except ValueError:
            tree = None
        if not isinstance(tree, dict):
            raise OutsideError(f"{self._endpoint.where}: {place} is not an answer: {line[:100]!r}; run again")
        return tree
