"""What the grader costs: tokens of the packaged prompts around texts of usual lengths, at the recipe's prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from isr_dpo.config import Recipe
from isr_dpo.evaluate import open_protocol
from isr_dpo.evaluate.protocol import Task

BYTES_A_TOKEN = 4
QUESTION_TOKENS, TRUTH_TOKENS, CAPTION_TOKENS = 15, 40, 120
"""Of the public test files, about [A]."""
REPLY_TOKENS: Mapping[str, int] = {"caption": 60, "official": 25}
"""Of the asked forms [A]; what a model thinks before it answers is not counted."""


class Bill(NamedTuple):
    """All grades of a run, each bought once. `usd` is None where the recipe states no prices."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None


def bill(recipe: Recipe, sets: Mapping[str, int], *, answer_tokens: int) -> Bill:
    """Of a recipe's evaluations; nothing where the packaged rules grade."""
    asked = recipe.evaluate
    if asked.grader == "rules":
        return Bill(0, 0, 0, 0.0)
    names = [name for policy in recipe.policies for name in recipe.sets_at(policy)]
    requests = sum(sets[name] for name in names)
    prompt = sum(sets[name] * _prompt_tokens(recipe.protocol(name), answer_tokens) for name in names)
    completion = sum(sets[name] * REPLY_TOKENS[recipe.protocol(name)] for name in names)
    if asked.price_prompt_usd is None or asked.price_completion_usd is None:
        return Bill(requests, prompt, completion, None)
    usd = (prompt * asked.price_prompt_usd + completion * asked.price_completion_usd) * 1e-6
    return Bill(requests, prompt, completion, usd * (1 - asked.batch_discount if asked.batch else 1))


def _prompt_tokens(protocol: str, answer_tokens: int) -> int:
    task = Task(
        question="x" * BYTES_A_TOKEN * QUESTION_TOKENS,
        truth="x" * BYTES_A_TOKEN * TRUTH_TOKENS,
        prediction="x" * BYTES_A_TOKEN * answer_tokens,
        caption="x" * BYTES_A_TOKEN * CAPTION_TOKENS,
    )
    texts = (message.text for message in open_protocol(protocol).messages(task))
    return sum(len(text.encode()) for text in texts) // BYTES_A_TOKEN
