"""What a grader is asked and how its reply is read.

A protocol turns a task into a prompt and a reply into a mark. Its reading is strict: a reply that is not in the asked
form gives no mark, so its answer is *unscored*, never wrong.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Protocol

import yaml

from isr_dpo.prompts import Template, clean


@dataclass(frozen=True)
class Task:
    """One answer to grade: `prediction` to `question`, whose ground truth is `truth`; `caption` is the clip's
    ground-truth description."""

    caption: str
    question: str
    truth: str
    prediction: str


@dataclass(frozen=True)
class Mark:
    """What a readable reply says."""

    score: float
    correct: bool


class GradingProtocol(Protocol):
    """A grading protocol; `name` is part of the output directory's name. `prompt_digest` is a sha256."""

    name: str
    score_range: tuple[float, float]
    prompt_digest: str

    def prompt(self, task: Task) -> str:
        """The one user message that asks for a grade."""
        ...

    def read(self, reply: str) -> Mark | None:
        """The mark in a reply, None where it is not in the asked form."""
        ...


@dataclass(frozen=True)
class PackagedPrompt:
    """A prompt file of this package: its template and the sha256 of the file."""

    template: Template
    digest: str

    @classmethod
    def load(cls, name: str) -> PackagedPrompt:
        content = (resources.files(__package__) / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
        head, _, text = content.partition("\n---\n")
        template = Template(name=name, text=text.strip("\n"), **yaml.safe_load(head))
        return cls(template, hashlib.sha256(content.encode()).hexdigest())


def quote(text: str) -> str:
    """Untrusted text as one JSON string on one line: cleaned of chat delimiters, every run of blanks and line breaks a
    single blank, quotes escaped. Whatever it says, it can neither end its string nor begin a line of the prompt."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return json.dumps(clean(" ".join(printable.split())), ensure_ascii=False)


def first_words(text: str, count: int) -> str:
    """The first `count` words, the words between blanks."""
    return " ".join(text.split()[:count])
