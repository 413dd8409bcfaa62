"""Chat completions of any OpenAI-compatible endpoint, on the `openai` package: for the grader and for served models.

The package retries 429, 5xx, timeouts and cut connections with backoff and follows the server's Retry-After; what
remains is translated here, once. The key comes from OPENAI_API_KEY alone and is shown nowhere.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from isr_dpo.errors import OutsideError, RecipeError
from isr_dpo.mapped import mapped

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI
    from openai.types.chat import ChatCompletion

MAX_RETRIES = 5
KEY = "OPENAI_API_KEY"
# A refusal of one request's content, not of its form: by error code, or in the words of servers without codes.
_TOO_LONG = ("context_length", "maximum context length", "maximum model length", "too long")
_CONTENT = ("content_filter", "content_policy")
T = TypeVar("T")


@dataclass(frozen=True)
class Refused:
    """The server takes requests like this one, and refuses its content."""

    reason: Literal["too_long", "refused"]
    said: str


class Endpoint:
    """A model behind an endpoint: `concurrency` requests at a time, each given `timeout_seconds` and at most
    1 + `max_retries` attempts. `who` names it in messages, `wanted_by` is what in the recipe asks for it.

    Raises:
        RecipeError: there is no usable key in the environment.
    """

    def __init__(
        self,
        *,
        who: str,
        wanted_by: str,
        model: str,
        base_url: str | None,
        concurrency: int,
        timeout_seconds: float,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        self._key = _key(wanted_by)
        self._who = who
        self._model = model
        self._base_url = base_url
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries

    def ask_all(
        self,
        items: Sequence[T],
        body: Callable[[T], Mapping[str, Any]],
        done: Callable[[int], None] = lambda _: None,
    ) -> list[ChatCompletion | Refused]:
        """The completion of each item's request, in their order. `body` makes a request of an item when its turn has
        come, in a thread; `done` is called here with the number of an item that has been answered.

        Raises:
            OutsideError: the endpoint stays away after the retries.
            RecipeError: it refuses the key, the model or the form of the request: none can be answered.
        """
        assert self._client is not None  # made before the threads ask for it
        ask = functools.partial(self._ask, body)
        return mapped(ask, items, threads=self._concurrency, done=done)

    @property
    def where(self) -> str:
        """For messages: who, and at which address."""
        return f"{self._who} at {self._client.base_url}"

    @functools.cached_property
    def _client(self) -> OpenAI:
        from openai import OpenAI

        return OpenAI(
            api_key=self._key,
            base_url=self._base_url,
            timeout=self._timeout_seconds,
            max_retries=self._max_retries,
        )

    def _ask(self, body: Callable[[T], Mapping[str, Any]], item: T) -> ChatCompletion | Refused:
        from openai import APIConnectionError, APIResponseValidationError, APIStatusError, APITimeoutError

        try:
            completion: ChatCompletion = self._client.chat.completions.create(model=self._model, **body(item))
        except APITimeoutError as error:
            raise OutsideError(
                f"{self.where}: no answer within {self._timeout_seconds:g} s in {self._max_retries + 1} attempts"
            ) from error
        except APIConnectionError as error:
            raise OutsideError(f"{self.where}: cannot be reached: {error.__cause__ or error}") from error
        except APIStatusError as error:
            return self._refused(error)
        except APIResponseValidationError as error:
            raise OutsideError(f"{self.where}: its answer is not a chat completion") from error
        return completion

    def _refused(self, error: APIStatusError) -> Refused:
        """What the server says to this one request's content, else raises what the status means."""
        said = f"{error.status_code} {_message(error)}".replace(self._key, "***")
        if error.status_code in (401, 403):
            raise RecipeError(f"{self.where} refuses the key in {KEY}: {said}") from error
        if error.status_code == 429 or error.status_code >= 500:
            raise OutsideError(
                f"{self.where}: still refusing after {self._max_retries + 1} attempts: {said}"
            ) from error
        words = f"{error.code} {said}".lower()
        if error.status_code in (400, 413, 422) and any(word in words for word in _TOO_LONG):
            return Refused("too_long", said)
        if error.status_code in (400, 413, 422) and any(word in words for word in _CONTENT):
            return Refused("refused", said)
        raise RecipeError(f"{self.where} refuses requests for model {self._model!r}: {said}") from error


def _key(wanted_by: str) -> str:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise RecipeError(f"{wanted_by} and the environment has no {KEY}: set it (any text for a server without keys)")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise RecipeError(f"{KEY} holds blanks, line breaks or letters that no HTTP header can carry; set it anew")
    return key


def _message(error: APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error.message)[:300]
