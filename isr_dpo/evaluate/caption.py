"""The caption protocol: the grader sees the clip's ground-truth caption beside question, truth and prediction.

From the public evaluation code of LLaVA-Hound-DPO [C]: the prediction is cut to 256 words, one user message at
temperature 0, a reply of a line with an explanation and a line with a score from 1 to 5, correct from 3 on. The wording
of the prompt is ours, and so is the strict reading [O]: the public parser falls back to the most frequent number in the
reply and then to 1, here such a reply is unscored.
"""

from __future__ import annotations

import re

from isr_dpo.evaluate.protocol import Mark, PackagedPrompt, Task, first_words, quote

PREDICTION_WORDS = 256  # [C]
CORRECT_FROM = 3  # [C]

_SCORE_LINE = re.compile(r"[\s*_#>-]*score\b", re.IGNORECASE)
_SCORE = re.compile(r"[\s*_#>-]*score[\s*_]*:[\s*_]*([1-5])(?:\s*/\s*5)?[\s*_.]*", re.IGNORECASE)


class CaptionProtocol:
    """Protocol A of the public test files, for all seven caption sets."""

    name = "caption"
    score_range = (1.0, 5.0)

    def __init__(self) -> None:
        packaged = PackagedPrompt.load("caption")
        self.prompt_digest = packaged.digest
        self._template = packaged.template

    def prompt(self, task: Task) -> str:
        return self._template.render(
            caption=quote(task.caption),
            question=quote(task.question),
            truth=quote(task.truth),
            prediction=quote(first_words(task.prediction, PREDICTION_WORDS)),
        )

    def read(self, reply: str) -> Mark | None:
        """The mark of the one line `Score: <1-5>`. Markdown around it and "/5" are allowed; no such line, two of them,
        a score out of range or a fraction give None."""
        lines = [line for line in reply.splitlines() if _SCORE_LINE.match(line)]
        found = _SCORE.fullmatch(lines[0]) if len(lines) == 1 else None
        if found is None:
            return None
        score = int(found.group(1))
        return Mark(score=float(score), correct=score >= CORRECT_FROM)


def format_reply(explanation: str, score: int) -> str:
    """A reply in the form this protocol asks for."""
    return f"Explanation: {explanation}\nScore: {score}"
