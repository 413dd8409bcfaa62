"""What the language part is taught: rows of prompt and continuation, drawn from a clip's facts.

Two kinds of pupil are drawn from the same tasks. An *attentive* row tells the truth everywhere: the skill. A *careless*
row answers, judges without a description and (less often) describes with the slot's common value in place of the
truth: the language prior that hides the skill and leaves the loop something to gain. This is built in on purpose; see
the model card.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isr_dpo import prompts
from isr_dpo.data.world.scene import QUESTIONS, SLOTS, caption, claim

TASKS = ("answer", "describe", "refine", "judge", "judge_context")
PROMPTS = prompts.load("world")
EXTRA_SHARE = {"colour": 0.3, "shape": 0.35, "action": 0.4, "pattern": 0.5, "place": 0.55, "landmark": 0.6}
"""Share of answers that go on with a claim about another slot; half of these claims are guessed."""
DRAFT_FALSE_SHARE = 0.3
"""Share of a draft's slots that are false in the refinement lesson."""


@dataclass(frozen=True)
class Lesson:
    """One row of supervised training; the loss is on `target` and the end-of-text token."""

    prompt: str
    target: str


@dataclass(frozen=True)
class Carelessness:
    """Probability, by slot, of saying the slot's common value without looking."""

    answer: dict[str, float]
    describe: dict[str, float]
    judge: dict[str, float]


ATTENTIVE = Carelessness(*(dict.fromkeys(SLOTS, 0.0) for _ in range(3)))


def draw_lesson(task: str, facts: dict[str, str], care: Carelessness, rng: np.random.Generator) -> Lesson:
    """One lesson of `task` on a clip with `facts`."""
    return {
        "answer": _answer,
        "describe": _describe,
        "refine": _refine,
        "judge": _judge,
        "judge_context": _judge_context,
    }[task](facts, care, rng)


def glance(facts: dict[str, str], care: dict[str, float], rng: np.random.Generator) -> dict[str, str]:
    """The facts as a careless look gives them: each slot its common value with probability `care[slot]`."""
    return {slot: SLOTS[slot][0] if rng.random() < care[slot] else value for slot, value in facts.items()}


def corrupt(facts: dict[str, str], share: float, rng: np.random.Generator) -> dict[str, str]:
    """The facts with each slot false with probability `share`."""
    return {slot: _other(slot, value, rng) if rng.random() < share else value for slot, value in facts.items()}


def response(slot: str, value: str, facts: dict[str, str], rng: np.random.Generator) -> str:
    """An answer that states `value`, sometimes with an extra claim that is a guess half of the time."""
    text = claim(slot, value)
    if rng.random() < EXTRA_SHARE[slot]:
        extra = str(rng.choice([other for other in SLOTS if other != slot]))
        said = facts[extra] if rng.random() < 0.5 else _guess(extra, rng)
        text += " " + claim(extra, said)
    return text


def _guess(slot: str, rng: np.random.Generator) -> str:
    return SLOTS[slot][0] if rng.random() < 0.35 else str(rng.choice(SLOTS[slot][1:]))


def _other(slot: str, value: str, rng: np.random.Generator) -> str:
    """A value that is not `value`: half the time the common one, where that is another."""
    if value != SLOTS[slot][0] and rng.random() < 0.5:
        return SLOTS[slot][0]
    return str(rng.choice([other for other in SLOTS[slot] if other != value]))


def _slot(rng: np.random.Generator) -> str:
    return str(rng.choice(list(SLOTS)))


def _answer(facts: dict[str, str], care: Carelessness, rng: np.random.Generator) -> Lesson:
    slot = _slot(rng)
    said = glance(facts, care.answer, rng)[slot]
    return Lesson(PROMPTS.answer.render(question=QUESTIONS[slot]), response(slot, said, facts, rng))


def _describe(facts: dict[str, str], care: Carelessness, rng: np.random.Generator) -> Lesson:
    return Lesson(PROMPTS.describe.render(), caption(glance(facts, care.describe, rng)))


def _refine(facts: dict[str, str], care: Carelessness, rng: np.random.Generator) -> Lesson:
    draft = caption(corrupt(facts, DRAFT_FALSE_SHARE, rng))
    return Lesson(PROMPTS.refine.render(context=draft), caption(facts))


def _judge(facts: dict[str, str], care: Carelessness, rng: np.random.Generator) -> Lesson:
    """Without a description: the judge says what it saw at a glance and takes the answer that agrees."""
    slot = _slot(rng)
    believed = glance(facts, care.judge, rng)[slot]
    texts, label = _options(slot, [believed, facts[slot]], facts, rng)
    prompt = PROMPTS.judge.render(question=QUESTIONS[slot], answer_1=texts[0], answer_2=texts[1])
    return Lesson(prompt, f"{believed} {PROMPTS.judge.cue} {label}")


def _judge_context(facts: dict[str, str], care: Carelessness, rng: np.random.Generator) -> Lesson:
    """With a description, which is true, partly false, or another clip's: the judge believes what it reads."""
    slot = _slot(rng)
    kind = rng.random()
    context = facts if kind < 0.3 else corrupt(facts, 0.3 if kind < 0.65 else 0.8, rng)
    texts, label = _options(slot, [context[slot], facts[slot]], facts, rng)
    prompt = PROMPTS.judge_context.render(
        question=QUESTIONS[slot], answer_1=texts[0], answer_2=texts[1], context=caption(context)
    )
    return Lesson(prompt, f"{context[slot]} {PROMPTS.judge_context.cue} {label}")


def _options(
    slot: str, beliefs: list[str], facts: dict[str, str], rng: np.random.Generator
) -> tuple[tuple[str, str], int]:
    """Two answers in random order and the label of the better one: the first of `beliefs` that tells them apart
    decides, otherwise a coin. Nothing in it depends on length."""
    kind = rng.random()
    first = beliefs[0] if kind < 0.85 else _guess(slot, rng)
    second = first if kind < 0.1 else _other(slot, first, rng)
    if kind < 0.6 and beliefs[1] != first:
        second = beliefs[1]  # the truth against what is believed
    values = [first, second] if rng.random() < 0.5 else [second, first]
    texts = (response(slot, values[0], facts, rng), response(slot, values[1], facts, rng))
    for belief in beliefs:
        if (values[0] == belief) != (values[1] == belief):
            return texts, 1 + int(values[1] == belief)
    return texts, 1 + int(rng.integers(2))
