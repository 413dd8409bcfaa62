"""The official protocol, Video-ChatGPT's: the grader sees question, truth and prediction, and no caption.

From its public evaluation code, as LLaVA-Hound-DPO uses it [C]: the prediction is cut to 256 words, a system message
that asks for meaningful match and lets synonyms count, one user message, temperature 0, and a dictionary as reply,
`pred` (yes or no) and `score` (0 to 5). The answer is correct where `pred` is yes, whatever the score. The wording of
the prompt is ours, and so is the strict reading [O]: the public scripts look for the words and the digits anywhere in
the reply (`compat.py`), here such a reply is unscored.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from isr_dpo.evaluate import rules
from isr_dpo.evaluate.protocol import Mark, Message, PackagedPrompt, Task, first_words, json_object, quote

PREDICTION_WORDS = 256  # [C]
HIGHEST = 5  # [C]
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "pred": {"type": "string", "enum": ["yes", "no"]},
        "score": {"type": "integer", "enum": [0, 1, 2, 3, 4, 5]},
    },
    "required": ["pred", "score"],
    "additionalProperties": False,
}
_LONGEST = 200


class OfficialProtocol:
    """Protocol B of the public test files, for their three official sets."""

    name = "official"
    score_range = (0.0, 5.0)
    needs_caption = False
    schema = SCHEMA
    max_tokens = 64

    def __init__(self) -> None:
        self._prompt = PackagedPrompt.load("official")
        self.prompt_digest = self._prompt.digest

    def messages(self, task: Task) -> tuple[Message, ...]:
        return self._prompt.messages(
            question=quote(task.question),
            truth=quote(task.truth),
            prediction=quote(first_words(task.prediction, PREDICTION_WORDS)),
        )

    def read(self, reply: str) -> Mark | None:
        """The mark of the one dictionary that the reply is, in JSON or as Python writes it: exactly the keys `pred`,
        "yes" or "no" in any case, and `score`, a whole number from 0 to 5. Anything else gives None."""
        tree = json_object(reply)
        if tree is None:
            tree = _dict_literal(reply)
        if tree is None or tree.keys() != {"pred", "score"}:
            return None
        pred, score = tree["pred"], tree["score"]
        if type(score) is not int or not 0 <= score <= HIGHEST:
            return None
        if not isinstance(pred, str) or pred.lower() not in ("yes", "no"):
            return None
        return Mark(score=float(score), correct=pred.lower() == "yes")

    def by_rules(self, task: Task) -> str | None:
        """The rules' score from 1 to 5, its lowest as this scale's 0; yes from 3 on [O]."""
        comparison = rules.compare(task)
        if not comparison.required:
            return None
        score = rules.score(comparison)
        return format_reply("yes" if score >= 3 else "no", 0 if score == 1 else score)


def format_reply(pred: str, score: int) -> str:
    """A reply in the text form this protocol asks for."""
    return str({"pred": pred, "score": score})


def _dict_literal(reply: str) -> Mapping[str, Any] | None:
    """The reply as one dictionary of two constants in Python's notation; nothing is evaluated."""
    if len(reply) > _LONGEST:
        return None  # long before a parser could be made to recurse
    try:
        node = ast.parse(reply.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(node, ast.Dict) or len(node.keys) != 2:
        return None
    if not all(isinstance(part, ast.Constant) for part in (*node.keys, *node.values)):
        return None
    tree: dict[str, Any] = ast.literal_eval(node)
    return tree
