"""A grader behind any OpenAI-compatible endpoint, on the `openai` package.

One user message at temperature 0 a task [C]. The package retries 429, 5xx, timeouts and cut connections with backoff
and follows the server's Retry-After; what remains is translated here, once. The key comes from OPENAI_API_KEY alone and
is shown nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TYPE_CHECKING, Any

from isr_dpo.errors import OutsideError, RecipeError
from isr_dpo.evaluate import Reply
from isr_dpo.evaluate.protocol import GradingProtocol, Task

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

MAX_RETRIES = 5
KEY = "OPENAI_API_KEY"
# A refusal of one task's content, not of the request's form: by error code, or in the words of servers without codes.
_CONTENT_REFUSALS = ("content_filter", "content_policy", "context_length", "maximum context length", "too long")


class OpenAIGrader:
    """`concurrency` requests at a time, each given `timeout_seconds` and at most 1 + `max_retries` attempts."""

    def __init__(
        self,
        protocol: GradingProtocol,
        *,
        model: str,
        base_url: str | None,
        concurrency: int,
        timeout_seconds: float,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        self._key = _key()
        self.name = model
        self.model = model
        self.prompt_digest = protocol.prompt_digest
        self._protocol = protocol
        self._base_url = base_url
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries

    @cached_property
    def _client(self) -> OpenAI:
        from openai import OpenAI

        return OpenAI(
            api_key=self._key,
            base_url=self._base_url,
            timeout=self._timeout_seconds,
            max_retries=self._max_retries,
        )

    def grade(self, tasks: Sequence[Task]) -> list[Reply]:
        client = self._client  # made before the threads ask for it
        assert client is not None
        with ThreadPoolExecutor(max_workers=self._concurrency) as pool:
            futures = [pool.submit(self._ask, task) for task in tasks]
            wait(futures, return_when=FIRST_EXCEPTION)
            pool.shutdown(wait=False, cancel_futures=True)
            failed = next((f for f in futures if f.done() and not f.cancelled() and f.exception()), None)
            if failed is not None:
                failed.result()
        return [future.result() for future in futures]

    def _ask(self, task: Task) -> Reply:
        from openai import APIConnectionError, APIResponseValidationError, APIStatusError, APITimeoutError

        try:
            completion = self._client.chat.completions.create(
                model=self.name,
                messages=[{"role": "user", "content": self._protocol.prompt(task)}],
                temperature=0,
            )
        except APITimeoutError as error:
            raise OutsideError(
                f"grader at {self._where}: no answer within {self._timeout_seconds:g} s "
                f"in {self._max_retries + 1} attempts"
            ) from error
        except APIConnectionError as error:
            raise OutsideError(f"grader at {self._where}: cannot be reached: {error.__cause__ or error}") from error
        except APIStatusError as error:
            return self._refused(error)
        except APIResponseValidationError as error:
            raise OutsideError(f"grader at {self._where}: its answer is not a chat completion") from error
        return _reply(completion)

    def _refused(self, error: APIStatusError) -> Reply:
        """An unscored reply where the server refuses this one task's content, else raises what the status means."""
        said = f"{error.status_code} {_message(error)}".replace(self._key, "***")
        if error.status_code in (401, 403):
            raise RecipeError(f"grader at {self._where} refuses the key in {KEY}: {said}") from error
        if error.status_code == 429 or error.status_code >= 500:
            raise OutsideError(
                f"grader at {self._where}: still refusing after {self._max_retries + 1} attempts: {said}"
            ) from error
        if error.status_code in (400, 413, 422) and any(w in f"{error.code} {said}".lower() for w in _CONTENT_REFUSALS):
            return Reply("", failure=f"refused by the grader's server: {said}")
        raise RecipeError(f"grader at {self._where} refuses requests for model {self.model!r}: {said}") from error

    @property
    def _where(self) -> str:
        return str(self._client.base_url)


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise RecipeError(
            f"evaluate.grader is 'openai' and the environment has no {KEY}: set it (any text for a server without "
            "keys), or use evaluate.grader: rules"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise RecipeError(f"{KEY} holds blanks, line breaks or letters that no HTTP header can carry; set it anew")
    return key


def _reply(completion: Any) -> Reply:
    """The text of a completion. Servers in the wild leave out what the API promises, so nothing is assumed."""
    choices = getattr(completion, "choices", None)
    message = choices[0].message if choices else None
    text = (getattr(message, "content", None) or "").strip()
    if text:
        return Reply(text)
    refusal = getattr(message, "refusal", None)
    return Reply("", failure=f"the grader refused: {refusal}" if refusal else "empty reply")


def _message(error: APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error.message)[:300]
