"""A packaged double: texts and choices derived from the request alone. Recipes name it `engine.kind: fake`."""

from __future__ import annotations

from collections.abc import Sequence

from isr_dpo.engines import Choice, Choose, Progress, Sample, Text
from isr_dpo.records import seed_for


class FakeEngine:
    """Answers with words picked by a hash of the prompt and seed; prefers one of two labels by a hash of the prompt."""

    deterministic = True
    side_by_side = False
    words = ("red", "green", "blue", "left", "right", "circle", "square", "large", "small", "grey")

    def sample(self, requests: Sequence[Sample], progress: Progress = lambda _: None) -> list[list[Text]]:
        progress(len(requests))
        return [[self._draw(r, seed if r.temperature else 0) for seed in r.seeds] for r in requests]

    def choose(self, requests: Sequence[Choose], progress: Progress = lambda _: None) -> list[Choice]:
        progress(len(requests))
        return [self._choice(r) for r in requests]

    def _draw(self, request: Sample, seed: int) -> Text:
        number = seed_for(seed, request.video, request.prompt)
        count = min(1 + number % 5, request.max_new_tokens)
        text = " ".join(self.words[(number >> (4 * i)) % len(self.words)] for i in range(count))
        return Text(text=text, tokens=count, finish="stop")

    def _choice(self, request: Choose) -> Choice:
        share = seed_for(0, request.video, request.prompt) % 99 + 1
        return Choice(probabilities=(share / 100, 1 - share / 100), rationale="")
