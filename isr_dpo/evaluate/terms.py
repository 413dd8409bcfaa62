"""The terms on which a grader is asked: the request that a task becomes, the most it can cost, and the ledger's entry
that a completion makes of it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from isr_dpo.config import Evaluate
from isr_dpo.evaluate.ledger import Asked, Entry
from isr_dpo.evaluate.protocol import GradingProtocol, Task

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

FORMAT = "response_format"
_PER_MILLION = 1e-6
_TEMPLATE_TOKENS = 256
"""Room for what a chat template adds to a request's own text; OpenAI's adds less than ten tokens [O]."""


class Terms:
    """What the recipe says about asking and paying, for requests to `address` on behalf of `run_uri`."""

    def __init__(self, settings: Evaluate, *, address: str, run_uri: str) -> None:
        self._settings = settings
        self._address = address
        self._run_uri = run_uri
        self._discount = settings.batch_discount if settings.batch else 0.0

    def asked(self, protocol: GradingProtocol[object], task: Task) -> Asked:
        """What is asked about a task, as the recipe wants it asked."""
        settings = self._settings
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": m.role, "content": m.text} for m in protocol.messages(task)],
        }
        if settings.reply_limit != "none":
            request[settings.reply_limit] = settings.reply_tokens or protocol.max_tokens
        for key in ("temperature", "seed", "reasoning_effort"):
            if (value := getattr(settings, key)) is not None:
                request[key] = value
        if settings.structured != "off" and protocol.schema is not None:
            schema = {"name": protocol.name, "strict": True, "schema": dict(protocol.schema)}
            request[FORMAT] = {"type": "json_schema", "json_schema": schema}
        return Asked(protocol.name, protocol.prompt_digest, self._address, request, task)

    def worst_usd(self, asked: Asked) -> float:
        """The most that one attempt can cost. A token is at least a byte of UTF-8 text, and the reply is limited."""
        sent = {"messages": asked.request["messages"], FORMAT: asked.request.get(FORMAT)}
        prompt = len(json.dumps(sent, ensure_ascii=False).encode(errors="replace")) + _TEMPLATE_TOKENS
        limit = self._settings.reply_limit
        return self._usd(prompt, 0 if limit == "none" else asked.request[limit])

    def entry(
        self, asked: Asked, completion: ChatCompletion, *, structured: bool, batch: str | None = None
    ) -> Entry | None:
        """None: the completion holds no reply at all, and no usage. A reply without usage is counted at its worst."""
        usage = completion.usage
        choice = completion.choices[0] if completion.choices else None
        if choice is None and usage is None:
            return None
        message = getattr(choice, "message", None)
        prompt, written = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        return Entry(
            key=asked.key,
            protocol=asked.protocol,
            prompt_digest=asked.prompt_digest,
            address=asked.address,
            request=dict(asked.request),
            structured=structured and FORMAT in asked.request,
            task={name: _storable(text) for name, text in asdict(asked.task).items() if text},
            text=_text(message, "content") or "",
            refusal=_text(message, "refusal"),
            finish=_text(choice, "finish_reason"),
            model=_text(completion, "model"),
            prompt_tokens=prompt,
            completion_tokens=written,
            cost_usd=self._usd(prompt, written) if prompt + written else self.worst_usd(asked),
            batch=batch,
            run_uri=self._run_uri,
            when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def _usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        settings = self._settings
        prompt = prompt_tokens * (settings.price_prompt_usd or 0.0)
        completion = completion_tokens * (settings.price_completion_usd or 0.0)
        return (prompt + completion) * _PER_MILLION * (1 - self._discount)


def body(asked: Asked, *, structured: bool) -> Mapping[str, Any]:
    """The request as it is sent; not `structured`: without the response's format."""
    return asked.request if structured else {k: v for k, v in asked.request.items() if k != FORMAT}


# Servers in the wild leave out what the API promises, or send something else, so nothing is assumed of an answer.


def _text(holder: object, name: str) -> str | None:
    value = getattr(holder, name, None)
    return None if value is None else _storable(value if isinstance(value, str) else json.dumps(value, default=str))


def _count(usage: object, name: str) -> int:
    value = getattr(usage, name, None)
    return max(0, value) if isinstance(value, int) else 0


def _storable(text: str) -> str:
    """Without halves of characters, which no file can hold."""
    return text.encode(errors="replace").decode()
