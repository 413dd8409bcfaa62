"""A double of a vision model behind an OpenAI-compatible endpoint, on loopback. It parses every body with the `openai`
package's own types, and refuses what they do not know, vLLM's part `video_url` excepted."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from openai.types.chat import ChatCompletion, ChatCompletionContentPartImageParam, ChatCompletionContentPartTextParam
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from PIL import Image
from pydantic import BaseModel, ConfigDict, TypeAdapter

from tests.servers.completions import KEY as KEY
from tests.servers.completions import Manner, Served, completions_server

_PARAMS = TypeAdapter(CompletionCreateParamsNonStreaming)
_PARTS = {
    "text": TypeAdapter(ChatCompletionContentPartTextParam),
    "image_url": TypeAdapter(ChatCompletionContentPartImageParam),
}


class _Url(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    url: str


class _VideoPart(BaseModel):
    """vLLM's own: not among the openai package's types."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: str
    video_url: _Url


@dataclass(frozen=True)
class Asked:
    """One well-formed request: its settings, its prompt, and the frames it was sent."""

    settings: Mapping[str, Any]
    prompt: str
    frames: np.ndarray
    kind: str
    """Of the parts: image_url or video_url."""


@dataclass(frozen=True)
class Answer(Manner):
    """`tops`: the alternatives of each token with their probabilities, the token written first; None: no logprobs,
    whatever was asked."""

    text: str | None = "a red ball"
    finish: str = "stop"
    tops: Sequence[Mapping[str, float]] | None = None
    refusal: str | None = None


ModelServer = Served[Asked]


@contextlib.contextmanager
def model_server(answer: Callable[[Asked, int], Answer]) -> Iterator[ModelServer]:
    """`answer(request, n)` decides; n counts from 0 how often this prompt with this seed was asked."""
    with completions_server(
        _parse, lambda asked: (asked.prompt, asked.settings.get("seed")), answer, _completion
    ) as it:
        yield it


def _parse(content: bytes) -> Asked:
    body = json.loads(content)
    if unknown := set(body) - set(CompletionCreateParamsNonStreaming.__annotations__):
        raise ValueError(f"unknown parameters {sorted(unknown)}")
    _PARAMS.validate_python({**body, "messages": []})
    (message,) = body["messages"]
    if set(message) != {"role", "content"} or message["role"] != "user":
        raise ValueError(f"one user message is expected, not {message}")
    *media, text = message["content"]
    for part in message["content"]:
        if part["type"] == "video_url":
            _VideoPart.model_validate(part)
        elif set(_PARTS[part["type"]].validate_python(part)) != set(part):
            raise ValueError(f"unknown keys in {sorted(part)}")
    (kind,) = {part["type"] for part in media}
    settings = {key: value for key, value in body.items() if key not in ("messages", "model")}
    return Asked(settings, text["text"], _frames(kind, [part[kind]["url"] for part in media]), kind)


def _frames(kind: str, urls: list[str]) -> np.ndarray:
    contents = []
    for url in urls:
        head, _, data = url.partition(";base64,")
        assert head == {"image_url": "data:image/png", "video_url": "data:video/mp4"}[kind]
        contents.append(io.BytesIO(base64.b64decode(data, validate=True)))
    if kind == "image_url":
        return np.stack([np.asarray(Image.open(content)) for content in contents])
    with av.open(contents[0]) as container:
        assert container.streams.video[0].average_rate == 2
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _completion(answer: Answer, asked: Asked) -> dict[str, Any]:
    logprobs = None
    if answer.tops is not None and asked.settings.get("logprobs"):
        limit = asked.settings["top_logprobs"]
        logprobs = {"content": [_position(top, limit) for top in answer.tops], "refusal": None}
    choice = {
        "index": 0,
        "finish_reason": answer.finish,
        "logprobs": logprobs,
        "message": {"role": "assistant", "content": answer.text, "refusal": answer.refusal},
    }
    tree = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    return ChatCompletion.model_validate({**tree, "usage": usage}).model_dump(mode="json")


def _position(top: Mapping[str, float], limit: int) -> dict[str, Any]:
    alternatives = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in top.items()]
    return {**alternatives[0], "top_logprobs": alternatives[:limit]}
