"""The grader: the outside model that scores answers against the ground truth.

Not to be confused with the judge, which is the policy choosing between its own two answers. A grader is a pure function
of its tasks; `open_grader` picks the implementation by the recipe's `evaluate.grader`. What is asked and how a reply is
read is the protocol's business (`protocol.py`), so a grader returns texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isr_dpo.config import Evaluate
from isr_dpo.evaluate.protocol import GradingProtocol, Task


@dataclass(frozen=True)
class Reply:
    """A grader's reply, or (`failure`) why there is none for this one task."""

    text: str
    failure: str | None = None


class Grader(Protocol):
    """Scores answers."""

    @property
    def name(self) -> str:
        """Stands wherever a figure of its making appears."""
        ...

    @property
    def model(self) -> str | None:
        """None for a grader that asks no model, and so has no prompt."""
        ...

    @property
    def prompt_digest(self) -> str | None: ...

    def grade(self, tasks: Sequence[Task]) -> list[Reply]:
        """A reply a task, in their order.

        Raises:
            OutsideError: the grader stays away after the retries.
            RecipeError: it refuses the key, the model or the form of the request: no task can be graded.
        """
        ...


def open_grader(settings: Evaluate, protocol: GradingProtocol) -> Grader:
    """The grader that the recipe names: `rules` (packaged, no model) or `openai` (any OpenAI-compatible endpoint)."""
    if settings.grader == "rules":
        from isr_dpo.evaluate.rules import RuleBasedGrader

        return RuleBasedGrader()
    from isr_dpo.evaluate.openai import OpenAIGrader

    return OpenAIGrader(
        protocol,
        model=settings.model,
        base_url=settings.base_url,
        concurrency=settings.concurrency,
        timeout_seconds=settings.timeout_seconds,
    )
