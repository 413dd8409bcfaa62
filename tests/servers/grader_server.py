"""A double of an OpenAI-compatible endpoint for graders, on loopback: completions, models, files and batches. It parses
every request with the `openai` package's own types, refuses what they do not know, and misbehaves on request."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types.chat import (
    ChatCompletion,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.model import Model
from openai.types.shared_params.response_format_json_schema import ResponseFormatJSONSchema
from pydantic import TypeAdapter

from tests.servers.batches import Batching
from tests.servers.completions import KEY as KEY
from tests.servers.completions import Call, Manner, Said, Served, completions_server

_PARAMS = TypeAdapter(CompletionCreateParamsNonStreaming)
_MESSAGES = {
    "system": TypeAdapter(ChatCompletionSystemMessageParam),
    "user": TypeAdapter(ChatCompletionUserMessageParam),
}
_FORMAT = TypeAdapter(ResponseFormatJSONSchema)


@dataclass(frozen=True)
class Asked:
    """One well-formed request: its settings and its prompt, the text of all messages."""

    settings: Mapping[str, Any]
    prompt: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Answer(Manner):
    """What the grader says. `usage`: tokens of the prompt and of the reply, None: it tells none. `no_choice`: an answer
    that is no completion. `raw`: the whole answer, whatever it is."""

    text: str | None = "Explanation: it agrees.\nScore: 4"
    refusal: str | None = None
    finish: str = "stop"
    usage: tuple[int, int] | None = (100, 10)
    no_choice: bool = False
    raw: Mapping[str, Any] | None = None


@dataclass
class GraderServer:
    served: Served[Asked]
    batching: Batching
    looked_up: list[str] = field(default_factory=list)
    """Paths under /v1/models that were asked for."""

    @property
    def url(self) -> str:
        return self.served.url

    @property
    def requests(self) -> list[tuple[float, str]]:
        """(monotonic time, prompt) of every completion that was asked for one by one and was well-formed."""
        times, asked = self.served.times, self.served.asked
        return [(time, one.prompt) for time, one in zip(times, asked, strict=False)]  # one may be under way between

    @property
    def prompts(self) -> list[str]:
        """Of all completions, those of batches among them."""
        return [asked.prompt for asked in (*self.served.asked, *self.batching.worked)]

    @property
    def most_at_once(self) -> int:
        return self.served.most_at_once


@contextlib.contextmanager
def grader_server(
    answer: Callable[[str, int], Answer] = lambda prompt, n: Answer(),
    *,
    structured: bool = True,
    models: Sequence[str] | None = ("grader-1",),
    unknown_parameters: Sequence[str] = (),
    batching: Batching | None = None,
) -> Iterator[GraderServer]:
    """`answer(prompt, n)` decides; n counts from 0 how often this prompt was asked. `structured` False: requests with a
    response_format are refused. `models` None: there is no list of them. Requests with one of `unknown_parameters` are
    refused, too."""
    batching = batching or Batching()

    def parse(content: bytes) -> Asked:
        asked = _parse(content)
        if not structured and "response_format" in asked.settings:
            raise ValueError("Invalid parameter: 'response_format' of type 'json_schema' is not supported")
        for name in unknown_parameters:
            if name in asked.settings:
                raise ValueError(f"Unsupported parameter: {name!r} is not supported with this model.")
        return asked

    def other(call: Call) -> Said | None:
        if call.path.startswith("/v1/models") and call.method == "GET":
            server.looked_up.append(call.path)
            return _model(call.path, models)
        return batching.said(call)

    def completion(said: Answer, asked: Asked) -> dict[str, Any]:
        return _completion(said, asked.model)

    batching.play(parse, lambda asked, n: answer(asked.prompt, n), completion)
    with completions_server(
        parse, lambda asked: asked.prompt, lambda asked, n: answer(asked.prompt, n), completion, other
    ) as served:
        server = GraderServer(served, batching)
        yield server


def _parse(content: bytes) -> Asked:
    body = json.loads(content)
    if unknown := set(body) - set(CompletionCreateParamsNonStreaming.__annotations__):
        raise ValueError(f"unknown parameters {sorted(unknown)}")
    _PARAMS.validate_python({**body, "messages": []})
    if body.get("stream") or not body["messages"]:
        raise ValueError("asked in another form than a grader's")
    for message in body["messages"]:
        if set(_MESSAGES[message["role"]].validate_python(message)) != set(message):
            raise ValueError(f"unknown keys in {sorted(message)}")
    if "response_format" in body:
        _check_format(body["response_format"])
    settings = {key: value for key, value in body.items() if key not in ("messages", "model")}
    return Asked(settings, "\n".join(message["content"] for message in body["messages"]), body["model"])


def _check_format(tree: Mapping[str, Any]) -> None:
    """What OpenAI asks of a strict schema: every property is required, no others are allowed."""
    _FORMAT.validate_python(tree)
    schema = tree["json_schema"]["schema"]
    if set(schema["required"]) != set(schema["properties"]) or schema["additionalProperties"] is not False:
        raise ValueError("Invalid schema for response_format: a strict schema requires all it has")


def _model(path: str, models: Sequence[str] | None) -> Said:
    if models is None:
        return Said(404, {"detail": "Not Found"})
    known = {name: Model(id=name, created=0, object="model", owned_by="tests").model_dump() for name in models}
    _, _, name = path.removeprefix("/v1/").partition("/")
    if not name:
        return Said(200, {"object": "list", "data": list(known.values())})
    if name in known:
        return Said(200, known[name])
    return Said(404, {"error": {"message": f"The model '{name}' does not exist", "code": "model_not_found"}})


def _completion(answer: Answer, model: str) -> dict[str, Any]:
    if answer.raw is not None:
        return dict(answer.raw)
    if answer.no_choice:
        return {"error": {"message": "upstream is away", "code": 502}}
    message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
    choice = {"index": 0, "finish_reason": answer.finish, "logprobs": None, "message": message}
    tree = {"id": "c", "object": "chat.completion", "created": 0, "model": f"{model}-0718", "choices": [choice]}
    if answer.usage is not None:
        prompt, written = answer.usage
        tokens = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        tree["usage"] = tokens
    return ChatCompletion.model_validate(tree).model_dump(mode="json")
