"""What a grader is asked about two answers, and how its reply is read: the protocol `win-rate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from isr_dpo.evaluate import rules
from isr_dpo.evaluate.protocol import Message, PackagedPrompt, Task, json_object, quote

Nearer = Literal["prediction", "other", "tie"]
_NEARER: Mapping[str, Nearer] = {"1": "prediction", "2": "other", "tie": "tie"}
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "explanation": {"type": "string"},
        "nearer": {"type": "string", "enum": list(_NEARER)},
    },
    "required": ["explanation", "nearer"],
    "additionalProperties": False,
}


class WinRateProtocol:
    """Which of a task's two answers is nearer its truth: `prediction` is shown first, `other` second."""

    name = "win-rate"
    schema = SCHEMA
    max_tokens = 256

    def __init__(self) -> None:
        self._prompt = PackagedPrompt.load(self.name)
        self.prompt_digest = self._prompt.digest

    def messages(self, task: Task) -> tuple[Message, ...]:
        return self._prompt.messages(
            caption=quote(task.caption),
            question=quote(task.question),
            truth=quote(task.truth),
            answer_1=quote(task.prediction),
            answer_2=quote(task.other),
        )

    def read(self, reply: str) -> Nearer | None:
        """What the one JSON object of the schema says; anything else gives None."""
        tree = json_object(reply)
        if tree is None or tree.keys() != {"explanation", "nearer"} or not isinstance(tree["nearer"], str):
            return None
        return _NEARER.get(tree["nearer"])

    def by_rules(self, task: Task) -> str | None:
        """The answer of the higher score by the rules (evaluate/rules.py) is nearer; equal scores are a tie."""
        first = rules.compare(task)
        second = rules.compare(
            Task(question=task.question, truth=task.truth, prediction=task.other, caption=task.caption)
        )
        if not first.required:
            return None
        lead = rules.score(first) - rules.score(second)
        return format_reply(
            f"{rules.explain(first)} / {rules.explain(second)}", "1" if lead > 0 else "2" if lead else "tie"
        )


def format_reply(explanation: str, nearer: Literal["1", "2", "tie"]) -> str:
    """A reply in the form this protocol asks for."""
    return json.dumps({"explanation": explanation, "nearer": nearer}, ensure_ascii=False)
