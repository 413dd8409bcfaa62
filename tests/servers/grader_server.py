"""A double of an OpenAI-compatible endpoint on loopback that parses every body strictly and misbehaves on request."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict

from tests.servers.completions import KEY as KEY
from tests.servers.completions import Manner, Served, completions_server


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: str


class _Body(BaseModel):
    """All that a grader may send; anything else is refused with 400."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: list[_Message]
    temperature: float | int


@dataclass(frozen=True)
class Answer(Manner):
    """What the grader says."""

    text: str | None = "Explanation: it agrees.\nScore: 4"


@dataclass(frozen=True)
class GraderServer:
    served: Served[_Body]

    @property
    def url(self) -> str:
        return self.served.url

    @property
    def requests(self) -> list[tuple[float, str]]:
        """(monotonic time, prompt) of every request that was well-formed."""
        return [(time, _prompt(body)) for time, body in zip(self.served.times, self.served.asked, strict=True)]

    @property
    def most_at_once(self) -> list[int]:
        return [self.served.most_at_once]


@contextlib.contextmanager
def grader_server(answer: Callable[[str, int], Answer]) -> Iterator[GraderServer]:
    """`answer(prompt, n)` decides; n counts from 0 how often this prompt was asked."""
    with completions_server(_parse, _prompt, lambda body, n: answer(_prompt(body), n), _completion) as served:
        yield GraderServer(served)


def _parse(content: bytes) -> _Body:
    body = _Body.model_validate_json(content)
    if [m.role for m in body.messages] != ["user"] or body.temperature != 0:
        raise ValueError("asked in another form than the protocol's")
    return body


def _prompt(body: _Body) -> str:
    return body.messages[0].content


def _completion(answer: Answer, body: _Body) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    completion = ChatCompletion.model_validate(
        {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": body.model,
            "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}],
        }
    )
    return completion.model_dump(mode="json")
