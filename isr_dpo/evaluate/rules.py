"""The packaged rule-based grader: no model, no key, no network [O].

It compares *content words*: words in lower case, without function words, reduced to a stem, number words as digits. It
sees what a model grader would see and nothing else, and knows no vocabulary of any data set.

- *required*: content words of the truth that the question does not already hold ("red" of "the object is red" to "what
  colour is the object?"). Where the question holds them all, as in "is it red or blue?", all of the truth's; then the
  question's other words, the alternatives, support nothing.
- *supported*: content words of the prediction found in the truth or the caption, and not only echoed from the question.
- *unsupported*: content words of the prediction found neither in the caption, nor the truth, nor the question: claims
  nobody can vouch for, the trace that verbosity hallucination leaves. Nouns such as "object" or "thing" are none.
- *denied*: a required word within three words after a negation ("not", "no", "never") of its clause, where the truth
  has no such.

| score | when |
|---|---|
| 5 | every required word, none denied, nothing unsupported |
| 4 | the same, one unsupported word |
| 3 | the same, several unsupported words, though no more than supported ones |
| 2 | some required words; or all of them, but one denied or drowned in more unsupported words than supported ones |
| 1 | no required word |

So a right answer with a false extra claim scores 3 or 4, and naming every colour there is does not pass as knowing one.
Agreement of words is not agreement of meaning: synonyms count as errors. It serves demos, tests and smoke runs; its
name stands beside every figure it makes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from isr_dpo.evaluate import Progress, Reply
from isr_dpo.evaluate.protocol import GradingProtocol, Task

CANNOT_SAY = "the ground truth has no content word to look for"

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_NEGATION_REACH_WORDS = 3
_CLAUSE_END = re.compile(r"[.,;:!?]")
_NEGATIONS = frozenset(["not", "never", "without", "cannot"])
# Function words, and words about the film rather than what it shows.
_FUNCTION_WORD_LIST = """
    a an the this that these those it its he she they them his her their there here i you we your our and or but nor so
    then than as if while also too very just quite is are was were be been being am do does did has have had can could
    will would shall should may might must of in on at to from by for with about what which who whom whose when where
    why how some any each both seem seems seen see shows show shown showing appear appears appearing video clip scene
    footage frame frames image picture
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORD_LIST.split())
_NUMBER_LIST = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_LIST.split())}


# Nouns that name anything: they claim nothing by themselves, though an answer may consist of one.
_GENERIC = ("object", "thing", "item", "something", "ground", "background", "place")


class Comparison(NamedTuple):
    """Stems, as the module says."""

    required: frozenset[str]
    missing: frozenset[str]
    denied: frozenset[str]
    supported: frozenset[str]
    unsupported: frozenset[str]


class RuleBasedGrader:
    """Replies as a protocol's own `by_rules` says."""

    name = "rule-based"
    model = None

    def grade(
        self, protocol: GradingProtocol[object], tasks: Sequence[Task], progress: Progress = lambda _: None
    ) -> list[Reply]:
        replies = [protocol.by_rules(task) for task in tasks]
        progress(len(replies))
        return [Reply("", failure=CANNOT_SAY) if text is None else Reply(text) for text in replies]


def compare(task: Task) -> Comparison:
    """What the prediction says against what is known."""
    question, truth, caption = content(task.question), content(task.truth), content(task.caption)
    required = (truth - question) or truth
    echo = question - truth if truth - question else frozenset[str]()
    said = content(task.prediction)
    known = truth | caption
    denied = (_negated(task.prediction) - _negated(task.truth)) & required
    return Comparison(
        required=required,
        missing=required - said,
        denied=denied,
        supported=said & known - (question - required),
        unsupported=said - known - echo - {stem(noun) for noun in _GENERIC},
    )


def score(comparison: Comparison) -> int:
    """1 to 5, by the module's table."""
    required, missing, denied, supported, unsupported = comparison
    if missing == required:
        return 1
    if missing or denied or len(unsupported) > len(supported):
        return 2
    return max(3, 5 - len(unsupported))


def explain(comparison: Comparison) -> str:
    """Why it scores so, in a line."""
    parts = {name: getattr(comparison, name) for name in ("missing", "denied", "unsupported")}
    return "; ".join(f"{name}: {' '.join(sorted(words))}" for name, words in parts.items() if words) or "agrees"


def content(text: str) -> frozenset[str]:
    """The stems of the content words of `text`."""
    return frozenset(stem(w) for w in _words(text) if w not in _FUNCTION_WORDS and not _negates(w))


def stem(word: str) -> str:
    """The word without the endings of number and tense: `balls` -> `ball`, `moves`, `moved`, `moving` -> `mov`."""
    if word in _NUMBERS:
        return _NUMBERS[word]
    word = word.removesuffix("'s").removesuffix("’s")
    for ending in ("ing", "ed", "es", "s"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= 3 and not word.endswith("ss"):
            doubled = root[-1] == root[-2] and root[-1] not in "lsz" and ending in ("ing", "ed")
            word = root[:-1] if doubled else root
            break
    return word.removesuffix("e") if len(word) > 3 else word


def _negated(text: str) -> frozenset[str]:
    reached: set[str] = set()
    for clause in _CLAUSE_END.split(text):
        words = _words(clause)
        for at, word in enumerate(words, start=1):
            if word == "no" or _negates(word):
                reached |= {stem(w) for w in words[at : at + _NEGATION_REACH_WORDS]}
    return frozenset(reached)


def _negates(word: str) -> bool:
    return word in _NEGATIONS or word.endswith(("n't", "n’t"))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
