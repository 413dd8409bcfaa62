"""The Batch API of the grader's double: files that are uploaded, and the batches that are made of them."""

from __future__ import annotations

import email.parser
import email.policy
import itertools
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from openai.types import Batch, FileObject
from openai.types.batch_create_params import BatchCreateParams
from pydantic import TypeAdapter

from tests.servers.completions import Call, Said

_CREATE = TypeAdapter(BatchCreateParams)
CREATED = 2_000_000_000
"""When every batch was made, by the server's clock."""


class Batching:
    """`polls`: how often a batch is looked at before it ends. `end(n)` says how the n-th batch ends, and
    `brings(n, custom_id)` whether it brings an answer to a request. `created(n)` says what is answered to the n-th
    order, once its batch is made: None: the batch; `refused(n)` the same for an order that comes to nothing."""

    def __init__(
        self,
        *,
        polls: int = 1,
        end: Callable[[int], str] = lambda n: "completed",
        brings: Callable[[int, int], bool] = lambda n, row: True,
        created: Callable[[int], Said | None] = lambda n: None,
        refused: Callable[[int], Said | None] = lambda n: None,
        errors: Callable[[int], list[dict[str, Any]]] = lambda n: [],
    ) -> None:
        self.worked: list[Any] = []
        """Requests of all batches that were made."""
        self.batches: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.orders = 0
        """Orders, whatever came of them."""
        self._polls, self._end, self._brings = polls, end, brings
        self._created, self._refused, self._errors = created, refused, errors
        self._numbers = itertools.count(1)
        self._seen: dict[str, int] = {}
        self._mutex = threading.Lock()

    def play(
        self,
        parse: Callable[[bytes], Any],
        answer: Callable[[Any, int], Any],
        completion: Callable[[Any, Any], dict[str, Any]],
    ) -> None:
        """How a request of a batch is read and answered."""
        self._parse, self._answer, self._completion = parse, answer, completion

    def said(self, call: Call) -> Said | None:
        with self._mutex:
            if call.path == "/v1/files" and call.method == "POST":
                return self._upload(call)
            if call.path.startswith("/v1/files/") and call.path.endswith("/content"):
                content = self.files.get(call.path.split("/")[3])
                return None if content is None else Said(tree=content.decode())
            if call.path == "/v1/batches":
                return self._order(call) if call.method == "POST" else self._list(call.query)
            if call.path.startswith("/v1/batches/") and call.method == "GET":
                return self._look(call.path.split("/")[3])
            return None

    def _upload(self, call: Call) -> Said:
        head = f"Content-Type: {call.content_type}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + call.content)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        if set(parts) != {"purpose", "file"} or parts["purpose"].get_content().strip() != "batch":
            return Said(400, {"error": {"message": f"a file for a batch is expected, not {sorted(map(str, parts))}"}})
        content = parts["file"].get_payload(decode=True)
        assert isinstance(content, bytes)
        file_id = self._file(content)
        tree = {"id": file_id, "bytes": len(content), "created_at": CREATED, "filename": parts["file"].get_filename()}
        tree |= {"object": "file", "purpose": "batch", "status": "processed"}
        return Said(tree=FileObject.model_validate(tree).model_dump(mode="json"))

    def _file(self, content: bytes) -> str:
        file_id = f"file-{next(self._numbers)}"
        self.files[file_id] = content
        return file_id

    def _order(self, call: Call) -> Said:
        params = json.loads(call.content)
        if unknown := set(params) - set(BatchCreateParams.__annotations__):
            return Said(400, {"error": {"message": f"unknown parameters {sorted(unknown)}"}})
        _CREATE.validate_python(params)
        number = self.orders
        self.orders += 1
        if (said := self._refused(number)) is not None:
            return said
        batch_id = f"batch_{next(self._numbers)}"
        requests = [json.loads(line) for line in self.files[params["input_file_id"]].decode().splitlines()]
        assert len({request["custom_id"] for request in requests}) == len(requests)
        self.batches[batch_id] = {
            **params,
            **{"id": batch_id, "object": "batch", "created_at": CREATED, "status": "validating"},
            "request_counts": {"total": len(requests), "completed": 0, "failed": 0},
        }
        self._work(number, batch_id, requests)
        return self._created(number) or Said(tree=self._shown(batch_id))

    def _work(self, number: int, batch_id: str, requests: list[Mapping[str, Any]]) -> None:
        """Answers everything at once; that it is done shows later."""
        lines: dict[bool, list[str]] = {True: [], False: []}
        for row, request in enumerate(requests):
            assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
            if self._end(number) == "failed":
                continue
            if not self._brings(number, row):
                expired = {"code": "batch_expired", "message": "This request could not be executed in time."}
                lines[False].append(json.dumps(_result(request, None, error=expired)))
                continue
            status, body = self._reply(json.dumps(request["body"]).encode())
            lines[status == 200].append(json.dumps(_result(request, {"status_code": status, "body": body})))
        ended = {"status": self._end(number), "errors": {"object": "list", "data": self._errors(number)}}
        ended["request_counts"] = {
            "total": len(requests),
            "completed": len(lines[True]),
            "failed": len(lines[False]),
        }
        for key, good in (("output_file_id", True), ("error_file_id", False)):
            if lines[good]:
                ended[key] = self._file(("\n".join(reversed(lines[good])) + "\n").encode())
        self.batches[batch_id]["ended"] = ended

    def _reply(self, content: bytes) -> tuple[int, dict[str, Any]]:
        try:
            asked = self._parse(content)
        except ValueError as error:
            return 400, {"error": {"message": str(error)}}
        self.worked.append(asked)
        seen = self._seen[asked.prompt] = self._seen.get(asked.prompt, -1) + 1
        answer = self._answer(asked, seen)
        if answer.status != 200:
            return answer.status, {"error": {"message": "misbehaving", **answer.error}}
        return 200, self._completion(answer, asked)

    def _list(self, query: Mapping[str, str]) -> Said:
        """Newest first, two a page, whatever is asked for."""
        ids = list(reversed(self.batches))
        start = ids.index(query["after"]) + 1 if "after" in query else 0
        page = ids[start : start + 2]
        tree = {"object": "list", "data": [self._shown(i) for i in page], "has_more": start + 2 < len(ids)}
        return Said(tree={**tree, "first_id": page[0] if page else None, "last_id": page[-1] if page else None})

    def _look(self, batch_id: str) -> Said | None:
        batch = self.batches.get(batch_id)
        if batch is None:
            return None
        batch["looks"] = batch.get("looks", 0) + 1
        if batch["looks"] > self._polls:
            batch.update(batch["ended"])
        else:
            batch["status"] = "in_progress"
        return Said(tree=self._shown(batch_id))

    def _shown(self, batch_id: str) -> dict[str, Any]:
        shown = {key: value for key, value in self.batches[batch_id].items() if key not in ("ended", "looks")}
        return Batch.model_validate(shown).model_dump(mode="json")


def _result(request: Mapping[str, Any], response: Any, error: Any = None) -> dict[str, Any]:
    if response is not None:
        response = {**response, "request_id": "r"}
    return {"id": "b", "custom_id": request["custom_id"], "response": response, "error": error}
