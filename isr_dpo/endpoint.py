"""Chat completions of any OpenAI-compatible endpoint, on the `openai` package: for the grader and for served models.

The package retries 429, 5xx, timeouts and cut connections with backoff and follows the server's Retry-After and
retry-after-ms, up to two minutes; what remains is translated here, once. The key comes from OPENAI_API_KEY alone and is
shown nowhere.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from isr_dpo.errors import BudgetSpent, IsrDpoError, KeyRefused, OutsideError, RecipeError
from isr_dpo.mapped import mapped

if TYPE_CHECKING:
    from httpx2 import Response
    from openai import APIStatusError, OpenAI, OpenAIError
    from openai.types.chat import ChatCompletion

MAX_RETRIES = 5
KEY = "OPENAI_API_KEY"
# A refusal of one request's content, not of its form: by error code, or in the words of servers without codes.
_TOO_LONG = ("context_length", "maximum context length", "maximum model length", "too long")
_CONTENT = ("content_filter", "content_policy", "moderation", "flagged")
_FORMAT = ("response_format", "json_schema", "structured output", "guided_json")
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit", "billing_not_active")
_NOT_AGAIN = {"x-should-retry": "false"}
"""What the package heeds in an answer."""
T = TypeVar("T")


@dataclass(frozen=True)
class Refused:
    """The server takes requests like this one, and refuses its content; or (`format`) it takes no `response_format`."""

    reason: Literal["too_long", "refused", "format"]
    said: str


class Watch(Protocol):
    """Sees every attempt at a request, in the thread that makes it."""

    def sending(self) -> None:
        """Before each attempt. An error of ours that it raises ends the request, and nothing is sent."""
        ...

    def answered(self, status: int) -> None:
        """The latest attempt got an answer with this HTTP status; one that is cut or times out gets none."""
        ...


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
        self._here = threading.local()

    def ask_all(
        self,
        items: Sequence[T],
        body: Callable[[T], Mapping[str, Any]],
        done: Callable[[int], None] = lambda _: None,
    ) -> list[ChatCompletion | Refused]:
        """The completion of each item's request, in their order. `body` makes a request of an item when its turn has
        come, in a thread; `done` is called here with the number of an item that has been answered.

        Raises:
            OutsideError: the endpoint stays away after the retries; its subclasses say that it refuses the key, or
                has no credit for it.
            RecipeError: it refuses the model or the form of the request: none can be answered.
        """
        assert self.client is not None  # made before the threads ask for it
        return mapped(lambda item: self.ask(body(item)), items, threads=self._concurrency, done=done)

    def ask(self, body: Mapping[str, Any], watch: Watch | None = None) -> ChatCompletion | Refused:
        """The completion of one request, in the thread that calls. Raises as `ask_all` does, and what `watch` does."""
        from openai import APIStatusError
        from openai.types.chat import ChatCompletion

        self._here.watch = watch
        try:
            with self.translated():
                completion = self.client.chat.completions.create(**{"model": self._model, **body})
        except IsrDpoError as error:
            cause = error.__cause__
            refused = (
                refusal(cause.status_code, cause.code, self._said(cause), formatted="response_format" in body)
                if isinstance(cause, APIStatusError)
                else None
            )
            if refused is None:
                raise
            return refused
        finally:
            self._here.watch = None
        if not isinstance(completion, ChatCompletion):
            raise OutsideError(f"{self.where}: its answer is not a chat completion: {str(completion)[:100]!r}")
        return completion

    @property
    def where(self) -> str:
        """For messages: who, and at which address."""
        return f"{self._who} at {self.address}"

    @property
    def address(self) -> str:
        """The base URL, without what a password could hide in."""
        return str(self.client.base_url.copy_with(userinfo=b"", query=None))

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """What the openai package raises inside becomes an error of ours."""
        from openai import OpenAIError

        try:
            yield
        except OpenAIError as error:
            raise self._meaning(error) from error

    @functools.cached_property
    def client(self) -> OpenAI:
        from openai import DefaultHttpxClient, OpenAI

        logging.getLogger("httpx2").setLevel(logging.WARNING)  # else a line a request
        return OpenAI(
            api_key=self._key,
            base_url=self._base_url,
            timeout=self._timeout_seconds,
            max_retries=self._max_retries,
            http_client=DefaultHttpxClient(event_hooks={"request": [self._sending], "response": [self._answered]}),
        )

    def _sending(self, _: object) -> None:
        watch: Watch | None = getattr(self._here, "watch", None)
        if watch is not None:
            watch.sending()

    def _answered(self, response: Response) -> None:
        watch: Watch | None = getattr(self._here, "watch", None)
        if watch is not None:
            watch.answered(response.status_code)
        if response.status_code == 429 and any(word in response.read().decode(errors="replace") for word in _NO_CREDIT):
            response.headers.update(_NOT_AGAIN)  # no wait brings credit

    def _meaning(self, error: OpenAIError) -> IsrDpoError:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, APITimeoutError):
            attempts = f"in {self._max_retries + 1} attempts" if self._max_retries else "in one attempt"
            return OutsideError(f"{self.where}: no answer within {self._timeout_seconds:g} s {attempts}")
        if isinstance(error, APIConnectionError):
            why = str(error.__cause__ or error).replace(self._key, "***")
            return OutsideError(f"{self.where}: cannot be reached: {why}")
        if isinstance(error, APIStatusError):
            return self._status(error)
        return OutsideError(f"{self.where}: its answer is not what the API promises ({type(error).__name__})")

    def _status(self, error: APIStatusError) -> IsrDpoError:
        status, said = error.status_code, self._said(error)
        if status in (401, 403):
            return KeyRefused(f"{self.where} refuses the key in {KEY}: {said}; set a valid one and run again")
        if any(word in f"{error.code} {said}" for word in _NO_CREDIT):
            return BudgetSpent(
                f"{self.where}: there is no credit left behind the key in {KEY} ({said}): add some, or ask another "
                "endpoint, and run again; what was bought is kept"
            )
        if status in (408, 409, 429) or status >= 500:
            wait = error.response.headers.get("retry-after")
            hint = f", and asks to wait for {wait} s" if wait else ""
            return OutsideError(f"{self.where}: still refusing after the retries{hint}: {said}")
        return RecipeError(f"{self.where} refuses requests for model {self._model!r}: {said}")

    def _said(self, error: APIStatusError) -> str:
        if error.status_code == 401:  # servers quote parts of the key
            return f"401 {error.code or error.type or 'not authorised'}"
        body = error.body
        message = body.get("message") if isinstance(body, dict) else None
        return f"{error.status_code} {str(message or error.message)[:300]}".replace(self._key, "***")


def refusal(status: int, code: str | None, said: str, *, formatted: bool) -> Refused | None:
    """What an HTTP status other than 200 says about this one request's content, or about its `response_format` where it
    has one (`formatted`); None: it is no such refusal."""
    words = f"{code} {said}".lower()
    if status not in (400, 403, 413, 422):
        return None
    if any(word in words for word in _TOO_LONG):
        return Refused("too_long", said)
    if any(word in words for word in _CONTENT):
        return Refused("refused", said)
    if formatted and any(word in words for word in _FORMAT):
        return Refused("format", said)
    return None


def _key(wanted_by: str) -> str:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise RecipeError(f"{wanted_by} and the environment has no {KEY}: set it (any text for a server without keys)")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise RecipeError(f"{KEY} holds blanks, line breaks or letters that no HTTP header can carry; set it anew")
    return key
