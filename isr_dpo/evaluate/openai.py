"""A grader behind any OpenAI-compatible endpoint, at temperature 0 [C]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isr_dpo.endpoint import MAX_RETRIES, Endpoint, Refused
from isr_dpo.evaluate import Progress, Reply
from isr_dpo.evaluate.protocol import GradingProtocol, Task

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion


class OpenAIGrader:
    """`concurrency` requests at a time, each given `timeout_seconds` and at most 1 + `max_retries` attempts."""

    def __init__(
        self,
        *,
        model: str,
        base_url: str | None,
        concurrency: int,
        timeout_seconds: float,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        self.name = model
        self.model = model
        self._endpoint = Endpoint(
            who="grader",
            wanted_by="evaluate.grader is 'openai' (rules is the packaged grader, which needs none)",
            model=model,
            base_url=base_url,
            concurrency=concurrency,
            timeout_seconds=timeout_seconds,
            max_retries=max_retries,
        )

    def grade(
        self, protocol: GradingProtocol[object], tasks: Sequence[Task], progress: Progress = lambda _: None
    ) -> list[Reply]:
        def body(task: Task) -> Mapping[str, Any]:
            messages = [{"role": m.role, "content": m.text} for m in protocol.messages(task)]
            return {"messages": messages, "temperature": 0}

        answers = self._endpoint.ask_all(tasks, body, done=lambda _: progress(1))
        return [_reply(answer) for answer in answers]


def _reply(answer: ChatCompletion | Refused) -> Reply:
    """The text of a completion. Servers in the wild leave out what the API promises, so nothing is assumed."""
    if isinstance(answer, Refused):
        return Reply("", failure=f"refused by the grader's server: {answer.said}")
    choices = getattr(answer, "choices", None)
    message = choices[0].message if choices else None
    text = (getattr(message, "content", None) or "").strip()
    if text:
        return Reply(text)
    refusal = getattr(message, "refusal", None)
    return Reply("", failure=f"the grader refused: {refusal}" if refusal else "empty reply")
