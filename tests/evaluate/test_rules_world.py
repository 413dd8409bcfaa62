"""The rule-based grader on the demo world's vocabulary, which it does not know."""

from __future__ import annotations

import numpy as np
import pytest

from isr_dpo.data.world import scene
from isr_dpo.evaluate.protocol import Task
from isr_dpo.evaluate.rules import compare, score


@pytest.mark.parametrize("slot", scene.SLOTS)
def test_it_tells_every_answer_from_every_other_and_lowers_false_extras(slot: str) -> None:
    draws = np.random.default_rng(0)
    for truth in scene.SLOTS[slot]:
        facts = {**scene.sample_scene(draws, 0.0).facts, slot: truth}

        def grade(text: str, facts: dict[str, str] = facts, truth: str = truth) -> int:
            question = scene.QUESTIONS[slot]
            claim = scene.claim(slot, truth)
            task = Task(caption=scene.caption(facts), question=question, truth=claim, prediction=text)
            return score(compare(task))

        assert grade(scene.claim(slot, truth)) == 5
        for other in set(scene.SLOTS[slot]) - {truth}:
            assert grade(scene.claim(slot, other)) <= 2
        for extra in set(scene.SLOTS) - {slot}:
            right = scene.claim(extra, facts[extra])
            wrong = scene.claim(extra, next(v for v in scene.SLOTS[extra] if v != facts[extra]))
            assert grade(f"{scene.claim(slot, truth)} {right}") == 5
            assert grade(f"{scene.claim(slot, truth)} {wrong}") in (3, 4)
