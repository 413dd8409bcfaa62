"""The caption protocol: the grader sees the clip's ground-truth caption beside question, truth and prediction.

From the public evaluation code of LLaVA-Hound-DPO [C]: the prediction is cut to 256 words, one user message at
temperature 0, a reply of a line with an explanation and a line with a score from 1 to 5, correct from 3 on. The wording
of the prompt is ours, and so is the strict reading [O]: the public parser falls back to the most frequent number in the
reply and then to 1 (`compat.py`), here such a reply is unscored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from isr_dpo.evaluate import rules
from isr_dpo.evaluate.protocol import Mark, Message, PackagedPrompt, Task, first_words, json_object, quote

PREDICTION_WORDS = 256  # [C]
CORRECT_FROM = 3  # [C]
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "explanation": {"type": "string"},
        "score": {"type": "integer", "enum": [1, 2, 3, 4, 5]},
    },
    "required": ["explanation", "score"],
    "additionalProperties": False,
}

_SCORE_LINE = re.compile(r"[\s*_#>-]*score\b", re.IGNORECASE)
_SCORE = re.compile(r"[\s*_#>-]*score[\s*_]*:[\s*_]*([1-5])(?:\s*/\s*5)?[\s*_.]*", re.IGNORECASE)


class CaptionProtocol:
    """Protocol A of the public test files, for all seven caption sets."""

    name = "caption"
    score_range = (1.0, 5.0)
    needs_caption = True
    schema = SCHEMA
    max_tokens = 256

    def __init__(self) -> None:
        self._prompt = PackagedPrompt.load("caption")
        self.prompt_digest = self._prompt.digest

    def messages(self, task: Task) -> tuple[Message, ...]:
        return self._prompt.messages(
            caption=quote(task.caption),
            question=quote(task.question),
            truth=quote(task.truth),
            prediction=quote(first_words(task.prediction, PREDICTION_WORDS)),
        )

    def read(self, reply: str) -> Mark | None:
        """The mark of the JSON object of the schema, or of the one line `Score: <1-5>`. Markdown around the line and
        "/5" are allowed; no such line, two of them, a score out of range or a fraction give None."""
        if json_object(reply) is not None:
            return read_object(reply)
        lines = [line for line in reply.splitlines() if _SCORE_LINE.match(line)]
        found = _SCORE.fullmatch(lines[0]) if len(lines) == 1 else None
        return None if found is None else _mark(int(found.group(1)))

    def by_rules(self, task: Task) -> str | None:
        comparison = rules.compare(task)
        return format_reply(rules.explain(comparison), rules.score(comparison)) if comparison.required else None


def format_reply(explanation: str, score: int) -> str:
    """A reply in the text form this protocol asks for."""
    return f"Explanation: {explanation}\nScore: {score}"


def read_object(reply: str) -> Mark | None:
    """The mark of a reply that is the JSON object of the schema; None for anything else."""
    tree = json_object(reply)
    if tree is None or tree.keys() != {"explanation", "score"} or not isinstance(tree["explanation"], str):
        return None
    return _mark(tree["score"])


def _mark(score: object) -> Mark | None:
    if type(score) is not int or not 1 <= score <= 5:
        return None
    return Mark(score=float(score), correct=score >= CORRECT_FROM)
