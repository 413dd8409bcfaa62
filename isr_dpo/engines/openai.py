"""A model that somebody serves behind an OpenAI-compatible endpoint: a baseline that this package cannot load, say.

The video comes first and the prompt after it, in one user message. A draw is a request, with the draw's own seed. What
a seed is worth is the server's affair, so nothing here is called deterministic.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isr_dpo.endpoint import MAX_RETRIES, Endpoint, Refused
from isr_dpo.engines import Choice, Choose, Progress, Sample, Text, media
from isr_dpo.errors import RecipeError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion
    from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob

TOP_LOGPROBS = 20
"""Tokens with probabilities at a position; the most that the API gives. A label beyond them counts as impossible."""
CUE_TOKENS = 16
"""Room for the cue after a rationale, which a served model writes itself."""


class OpenAIEngine:
    """Asks `model` at `base_url`, `concurrency` requests at a time. `frames` gives the uint8 [F, H, W, 3] frames of a
    video key, sent as `video_as` says (media.PARTS).

    Raises:
        RecipeError: no key in the environment. When asked: the server refuses the key, the model or the form of a
            request, or gives no probabilities.
        OutsideError: it stays away after the retries.
    """

    deterministic = False
    side_by_side = False
    """A call has `concurrency` requests under way by itself."""

    def __init__(
        self,
        frames: Callable[[str], np.ndarray],
        *,
        model: str,
        base_url: str | None,
        video_as: str,
        concurrency: int,
        timeout_seconds: float,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        self._endpoint = Endpoint(
            who="model",
            wanted_by="engine.kind is 'openai'",
            model=model,
            base_url=base_url,
            concurrency=concurrency,
            timeout_seconds=timeout_seconds,
            max_retries=max_retries,
        )
        self._parts = functools.lru_cache(maxsize=4 * concurrency)(lambda video: media.PARTS[video_as](frames(video)))

    def sample(self, requests: Sequence[Sample], progress: Progress = lambda _: None) -> list[list[Text]]:
        """One Text a seed of each request."""
        draws = [(index, seed) for index, request in enumerate(requests) for seed in request.seeds]
        left = Counter(index for index, _ in draws)

        def done(number: int) -> None:
            index, _ = draws[number]
            left[index] -= 1
            if not left[index]:
                progress(1)

        def body(draw: tuple[int, int]) -> Mapping[str, Any]:
            index, seed = draw
            request = requests[index]
            return {
                "messages": self._messages(request),
                "seed": seed,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "max_tokens": request.max_new_tokens,
            }

        texts: list[list[Text]] = [[] for _ in requests]
        for (index, _), answer in zip(draws, self._endpoint.ask_all(draws, body, done), strict=True):
            texts[index].append(_text(answer))
        return texts

    def choose(self, requests: Sequence[Choose], progress: Progress = lambda _: None) -> list[Choice]:
        """Label probabilities of each request.

        No endpoint lets us write into the model's turn. So without a rationale its very first token is read, as the
        prompt asks for it, and the cue plays no part; with one the model has to write the cue itself, and a label that
        no cue precedes counts for nothing [O].
        """

        def body(request: Choose) -> Mapping[str, Any]:
            return {
                "messages": self._messages(request),
                "temperature": 0,
                "max_tokens": request.rationale_tokens + CUE_TOKENS if request.rationale_tokens else 1,
                "logprobs": True,
                "top_logprobs": TOP_LOGPROBS,
            }

        try:
            answers = self._endpoint.ask_all(requests, body, lambda _: progress(1))
        except RecipeError as error:
            if "logprob" not in str(error).lower():
                raise
            raise _without_logprobs(str(error)) from error
        return [self._choice(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def _choice(self, request: Choose, answer: ChatCompletion | Refused) -> Choice:
        text = _text(answer)
        if isinstance(answer, Refused) or text.finish == "refused":
            return Choice((0.0, 0.0), "", text.finish)
        logprobs = answer.choices[0].logprobs if answer.choices else None
        if logprobs is None or logprobs.content is None:
            raise _without_logprobs(f"{self._endpoint.where}: its answers hold no logprobs")
        written: Sequence[ChatCompletionTokenLogprob] = logprobs.content
        rationale = ""
        if request.rationale_tokens:
            written, rationale = _after(written, request.cue)
        if not written:
            return Choice((0.0, 0.0), rationale)
        return Choice(_probabilities(written[0], request.labels), rationale)

    def _messages(self, request: Sample | Choose) -> list[dict[str, Any]]:
        text = {"type": "text", "text": request.prompt}
        return [{"role": "user", "content": [*self._parts(request.video), text]}]


def _text(answer: ChatCompletion | Refused) -> Text:
    """Servers in the wild leave out what the API promises, so nothing is assumed."""
    if isinstance(answer, Refused):
        return Text("", 0, answer.reason)
    choice = answer.choices[0] if answer.choices else None
    if choice is None or choice.finish_reason == "content_filter" or choice.message.refusal:
        return Text("", 0, "refused")
    tokens = answer.usage.completion_tokens if answer.usage else 0
    finish = "length" if choice.finish_reason == "length" else "stop"
    return Text((choice.message.content or "").strip(), tokens, finish)


def _after(written: Sequence[ChatCompletionTokenLogprob], cue: str) -> tuple[Sequence[ChatCompletionTokenLogprob], str]:
    """The tokens after the first cue, none where it is not written; and the text before it."""
    text = ""
    for number, token in enumerate(written):
        before, text = text, text + token.token
        if cue and text.rstrip().endswith(cue) and not before.rstrip().endswith(cue):
            return written[number + 1 :], text.rstrip().removesuffix(cue).strip()
    return [], text.strip()


def _probabilities(token: ChatCompletionTokenLogprob, labels: tuple[str, str]) -> tuple[float, float]:
    """Of the labels at a token's position, with and without a blank before them."""
    first, second = (
        min(1.0, sum(math.exp(top.logprob) for top in token.top_logprobs if top.token.strip() == label))
        for label in labels
    )
    return round(first, 6), round(second, 6)


def _without_logprobs(said: str) -> RecipeError:
    return RecipeError(
        f"{said}. judge.verdict 'logits' needs the probabilities of a token's alternatives (top_logprobs); use another "
        "endpoint, or judge.verdict: text"
    )
