"""What a grader is asked about an answer's claims, and how its reply is read: the protocol `claims`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from isr_dpo.evaluate import rules
from isr_dpo.evaluate.protocol import Message, PackagedPrompt, Task, json_object, quote

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "claims": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"span": {"type": "string"}, "supported": {"type": "boolean"}},
                "required": ["span", "supported"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["claims"],
    "additionalProperties": False,
}
# Where a clause ends, for the rules: punctuation, or a word that joins clauses.
_BREAK = re.compile(r"[.,;:!?]+(?=\s|$)|\b(?:and|but|while|then|which|who|where|because|as|although)\b", re.IGNORECASE)


class Stated(NamedTuple):
    """A claim as the grader stated it."""

    span: str
    supported: bool


class ClaimsProtocol:
    """The claims of a task's `prediction`, against its caption and truth."""

    name = "claims"
    schema = SCHEMA
    max_tokens = 2048

    def __init__(self) -> None:
        self._prompt = PackagedPrompt.load(self.name)
        self.prompt_digest = self._prompt.digest

    def messages(self, task: Task) -> tuple[Message, ...]:
        return self._prompt.messages(
            caption=quote(task.caption),
            question=quote(task.question),
            truth=quote(task.truth),
            answer=quote(task.prediction),
        )

    def read(self, reply: str) -> tuple[Stated, ...] | None:
        """The claims of the one JSON object of the schema; anything else gives None."""
        tree = json_object(reply)
        if tree is None or tree.keys() != {"claims"} or not isinstance(tree["claims"], list):
            return None
        stated = [_stated(claim) for claim in tree["claims"]]
        return None if None in stated else tuple(claim for claim in stated if claim is not None)

    def by_rules(self, task: Task) -> str | None:
        """Every clause with a content word is a claim. It is unsupported where one of its words is found neither in the
        caption, the truth nor the question, or is denied (evaluate/rules.py)."""
        if not (rules.content(task.caption) or rules.content(task.truth)):
            return None
        answer, found = shown(task.prediction), rules.compare(task)
        bad = found.unsupported | found.denied
        return format_reply(
            [Stated(clause, not rules.content(clause) & bad) for clause in _clauses(answer) if rules.content(clause)]
        )


def format_reply(claims: Sequence[Stated]) -> str:
    """A reply in the form this protocol asks for."""
    return json.dumps({"claims": [claim._asdict() for claim in claims]}, ensure_ascii=False)


def shown(text: str) -> str:
    """An answer as the grader is shown it: on one line, without the delimiters of chats."""
    told: str = json.loads(quote(text))
    return told


def _stated(claim: object) -> Stated | None:
    if not isinstance(claim, dict) or claim.keys() != {"span", "supported"}:
        return None
    span, supported = claim["span"], claim["supported"]
    return Stated(span, supported) if isinstance(span, str) and isinstance(supported, bool) else None


def _clauses(answer: str) -> list[str]:
    return [clause.strip() for clause in _BREAK.split(answer) if clause.strip()]
