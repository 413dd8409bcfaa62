"""What a grader is asked and how its reply is read.

A protocol is one file of its own (`caption.py`, `official.py`, those of `isr_dpo/analyse`): its prompt
(`prompts/<name>.txt`), the JSON schema of a reply, the reading, and what the packaged rules would reply. Its reading is
strict: a reply that is not in the asked form gives no mark, so its answer is *unscored*, never wrong. Graders know
nothing of a protocol's meaning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol, TypeVar

import yaml

from isr_dpo.prompts import Template, clean

M_co = TypeVar("M_co", covariant=True)


@dataclass(frozen=True)
class Message:
    """One message to a grader. `role` is `system` or `user`."""

    role: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """One answer to grade: `prediction` to `question`, whose ground truth is `truth`; `caption` is the clip's
    ground-truth description, `other` the second answer where two are compared."""

    question: str
    truth: str
    prediction: str
    caption: str = ""
    other: str = ""


@dataclass(frozen=True)
class Mark:
    """What a readable reply of a scoring protocol says."""

    score: float
    correct: bool


class GradingProtocol(Protocol[M_co]):
    """What is asked about a task, and what a reply means: an `M_co`."""

    @property
    def name(self) -> str:
        """Part of directory names and of the ledger's key."""
        ...

    @property
    def prompt_digest(self) -> str:
        """sha256 of the packaged prompt file."""
        ...

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """JSON schema of a reply, for endpoints with structured output; None: the asked text form alone."""
        ...

    @property
    def max_tokens(self) -> int:
        """Ceiling of a reply, in tokens."""
        ...

    def messages(self, task: Task) -> tuple[Message, ...]:
        """What is asked."""
        ...

    def read(self, reply: str) -> M_co | None:
        """What the reply says: the JSON object of `schema`, or exactly the asked text form; None for anything else."""
        ...

    def by_rules(self, task: Task) -> str | None:
        """The packaged rule-based grader's reply, in this protocol's form; None where rules cannot say."""
        ...


class ScoringProtocol(GradingProtocol[Mark], Protocol):
    """A protocol that scores one answer: those of the public test files."""

    @property
    def score_range(self) -> tuple[float, float]: ...

    @property
    def needs_caption(self) -> bool: ...


@dataclass(frozen=True)
class PackagedPrompt:
    """A prompt file of this package: its messages' templates and the sha256 of the file.

    The file is a YAML head (`source`), a line `---`, and the user message; or the system message, a line `---` and the
    user message.
    """

    templates: Mapping[str, Template]
    """By role, in their order."""
    digest: str

    @classmethod
    def load(cls, name: str) -> PackagedPrompt:
        content = (resources.files(__package__) / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
        head, *texts = content.split("\n---\n")
        roles = ("system", "user")[-len(texts) :]
        source = yaml.safe_load(head)
        templates = {
            role: Template(name=name, text=text.strip("\n"), **source) for role, text in zip(roles, texts, strict=True)
        }
        return cls(templates, hashlib.sha256(content.encode()).hexdigest())

    def messages(self, **values: str) -> tuple[Message, ...]:
        """The messages with every field replaced."""
        return tuple(Message(role, template.render(**values)) for role, template in self.templates.items())


def quote(text: str) -> str:
    """Untrusted text as one JSON string on one line: cleaned of chat delimiters, every run of blanks and line breaks a
    single blank, quotes escaped. Whatever it says, it can neither end its string nor begin a line of the prompt."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return json.dumps(clean(" ".join(printable.split())), ensure_ascii=False)


def first_words(text: str, count: int) -> str:
    """The first `count` words, the words between blanks."""
    return " ".join(text.split()[:count])


def json_object(reply: str) -> Mapping[str, Any] | None:
    """The reply as one JSON object without repeated keys; None where it is anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            raise ValueError("a key stands twice")
        return tree

    try:
        tree = json.loads(reply, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None
