"""The grader: the outside model that scores answers against the ground truth.

Not to be confused with the judge, which is the policy choosing between its own two answers. A grader is a function of a
protocol and its tasks; `open_grader` picks the implementation by the recipe's `evaluate.grader`. What is asked and how
a reply is read is the protocol's business (`protocol.py`), so a grader returns texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from isr_dpo.config import Evaluate
from isr_dpo.evaluate.protocol import GradingProtocol, ScoringProtocol, Task

Progress = Callable[[int], None]
"""Called with the number of tasks just answered."""


@dataclass(frozen=True)
class Reply:
    """A grader's reply, or (`failure`) why there is none for this one task."""

    text: str
    failure: str | None = None
    model: str | None = None
    """As served, where a model was asked."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    """What this reply cost when it was bought, be it now or before."""
    bought: bool = False
    """Paid for now; False: by rules, or out of the ledger."""
    key: str | None = None
    """Of the ledger."""


class Grader(Protocol):
    """Replies to what a protocol asks."""

    @property
    def name(self) -> str:
        """Stands wherever a figure of its making appears; the packaged rules' is `rule-based`."""
        ...

    @property
    def model(self) -> str | None:
        """As asked for; None for a grader that asks no model, and so shows nobody a prompt."""
        ...

    def grade(
        self, protocol: GradingProtocol[object], tasks: Sequence[Task], progress: Progress = lambda _: None
    ) -> list[Reply]:
        """A reply a task, in their order.

        Raises:
            OutsideError: the grader stays away after the retries, or (subclasses) the run's budget is spent or the key
                refused.
            RecipeError: it refuses the model or the form of the request: no task can be graded.
        """
        ...


def open_grader(settings: Evaluate, *, run_uri: str) -> Grader:
    """The grader that the recipe names: `rules` (packaged, no model) or `openai` (any OpenAI-compatible endpoint).
    `run_uri` is whose account pays."""
    if settings.grader == "rules":
        from isr_dpo.evaluate.rules import RuleBasedGrader

        return RuleBasedGrader()
    from isr_dpo.evaluate.openai import OpenAIGrader

    return OpenAIGrader(settings, run_uri=run_uri)


def open_protocol(name: str) -> ScoringProtocol:
    """The scoring protocol `caption` or `official`."""
    if name == "official":
        from isr_dpo.evaluate.official import OfficialProtocol

        return OfficialProtocol()
    from isr_dpo.evaluate.caption import CaptionProtocol

    assert name == "caption", name
    return CaptionProtocol()
