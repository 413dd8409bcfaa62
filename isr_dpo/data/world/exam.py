"""The gate: does the judge read its context, and do the answers leave room?

A study of context designs means something only if the judge is better with the true description than with its own,
with its own than with none, and if another clip's description is no better than none. It is measured on pairs of the
model's own sampled answers of which exactly one is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from isr_dpo.data.world.clips import film
from isr_dpo.data.world.lessons import PROMPTS
from isr_dpo.data.world.reader import Reader
from isr_dpo.data.world.scene import QUESTIONS, SLOTS, Scene, caption, is_right, sample_scene, stated

if TYPE_CHECKING:
    from transformers import VideoLlavaForConditionalGeneration, VideoLlavaProcessor

CONTEXTS = ("true", "refined", "own", "none", "shuffled")
ANSWER_TOKENS, DESCRIPTION_TOKENS = 24, 20
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Share:
    """A share of `n` cases."""

    value: float
    n: int

    @property
    def standard_error(self) -> float:
        return float((self.value * (1 - self.value) / max(self.n, 1)) ** 0.5)

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.standard_error:.3f} (n = {self.n})"


@dataclass(frozen=True)
class GateReport:
    """Held-out figures of one policy: right answers (greedy, and sampled at TEMPERATURE), by slot; pairs of sampled
    answers with exactly one right; right slots of own and refined descriptions; the judge's accuracy on those pairs by
    context, and how often it chooses the same answer in both orders."""

    greedy: Share
    sampled: Share
    discordant: Share
    by_slot: dict[str, Share]
    described: dict[str, Share]
    judge: dict[str, Share]
    consistency: dict[str, Share] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """What speaks against the start: steps of true >= refined >= own >= none >= shuffled that fall the wrong way by
        more than their noise (1.64 standard errors), a judge no better than chance with the true description."""
        found = []
        for better, worse in pairwise(CONTEXTS):
            high, low = self.judge[better], self.judge[worse]
            noise = 1.64 * (high.standard_error**2 + low.standard_error**2) ** 0.5
            if high.value < low.value - noise:
                found.append(f"judge: {better} {high} is below {worse} {low}")
        if self.judge["true"].value < 0.5 + 3 * self.judge["true"].standard_error:
            found.append(f"judge: with the true description only {self.judge['true']}")
        if self.judge["true"].value <= self.judge["none"].value + self.judge["none"].standard_error:
            found.append(f"judge: the true description does not help ({self.judge['true']}, none {self.judge['none']})")
        return found

    def lines(self) -> list[tuple[str, Share]]:
        """Every figure with its name."""
        lines = [("answers, greedy", self.greedy), ("answers, sampled", self.sampled)]
        lines += [(f"  {slot}, greedy", share) for slot, share in self.by_slot.items()]
        lines += [("pairs with one right", self.discordant)]
        lines += [(f"slots right, {name} description", share) for name, share in self.described.items()]
        lines += [(f"judge, context {name}", share) for name, share in self.judge.items()]
        lines += [(f"same choice in both orders, {name}", share) for name, share in self.consistency.items()]
        return lines

    def __str__(self) -> str:
        """The report for a terminal: every figure, then what speaks against the start."""
        table = [f"{name:<38} {share}" for name, share in self.lines()]
        return "\n".join([*table, *(self.problems() or ["gate passed: true >= refined >= own >= none >= shuffled"])])


def gate(
    model: VideoLlavaForConditionalGeneration,
    processor: VideoLlavaProcessor,
    *,
    seed: int,
    clips: int = 150,
    progress: Callable[[str], None] = lambda message: None,
) -> GateReport:
    """Measure `model` on `clips` new clips of the world, all six questions each. Takes about 0.2 s a clip."""
    rng = np.random.default_rng([seed, 1000])
    scenes = [sample_scene(rng) for _ in range(clips)]
    progress(f"gate: {clips} clips, {clips * len(SLOTS)} questions")
    model.eval()
    reader = Reader(model, processor, film(scenes, seed=seed))
    examiner = _Examiner(reader, scenes, torch.Generator().manual_seed(seed))
    return examiner.report()


class _Examiner:
    def __init__(self, reader: Reader, scenes: list[Scene], generator: torch.Generator):
        self.reader, self.scenes, self.generator = reader, scenes, generator
        self.rows = [row for row in range(len(scenes)) for _ in SLOTS]
        self.slots = list(SLOTS) * len(scenes)

    def report(self) -> GateReport:
        greedy = self._right(self._answers(0.0))
        first, second = self._answers(TEMPERATURE), self._answers(TEMPERATURE)
        right, other = self._right(first), self._right(second)
        pairs = np.flatnonzero(right != other)
        own = self._descriptions(None)
        refined = self._descriptions(own)
        contexts: dict[str, list[str] | None] = {
            "true": [caption(scene.facts) for scene in self.scenes],
            "refined": refined,
            "own": own,
            "none": None,
            "shuffled": own[1:] + own[:1],
        }
        verdicts = {name: self._choose(pairs, first, second, texts) for name, texts in contexts.items()}
        return GateReport(
            greedy=_share(greedy),
            sampled=_share(np.concatenate([right, other])),
            discordant=Share(len(pairs) / len(self.rows), len(self.rows)),
            by_slot={slot: _share(greedy[i :: len(SLOTS)]) for i, slot in enumerate(SLOTS)},
            described={"own": self._slots_right(own), "refined": self._slots_right(refined)},
            judge={name: _share(chosen[0] == right[pairs]) for name, chosen in verdicts.items()},
            consistency={name: _share(chosen[1]) for name, chosen in verdicts.items()},
        )

    def _answers(self, temperature: float) -> list[str]:
        prompts = [PROMPTS.answer.render(question=QUESTIONS[slot]) for slot in self.slots]
        return self.reader.write(
            self.rows, prompts, max_new_tokens=ANSWER_TOKENS, temperature=temperature, generator=self.generator
        )

    def _right(self, texts: Sequence[str]) -> np.ndarray:
        facts = (self.scenes[row].facts for row in self.rows)
        return np.array([is_right(text, slot, f) for text, slot, f in zip(texts, self.slots, facts, strict=True)])

    def _descriptions(self, drafts: list[str] | None) -> list[str]:
        rows = range(len(self.scenes))
        prompts = [PROMPTS.describe.render()] * len(rows)
        if drafts is not None:
            prompts = [PROMPTS.refine.render(context=draft) for draft in drafts]
        return self.reader.write(
            rows, prompts, max_new_tokens=DESCRIPTION_TOKENS, temperature=TEMPERATURE, generator=self.generator
        )

    def _slots_right(self, texts: list[str]) -> Share:
        said = [(stated(text), scene.facts) for text, scene in zip(texts, self.scenes, strict=True)]
        return _share(np.array([words.get(slot) == [facts[slot]] for words, facts in said for slot in SLOTS]))

    def _choose(
        self, pairs: np.ndarray, first: list[str], second: list[str], contexts: list[str] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each pair: is the first answer chosen (both orders averaged), and do the orders agree?"""
        forward = self._first_is_better(pairs, first, second, contexts)
        backward = 1 - self._first_is_better(pairs, second, first, contexts)
        return (forward + backward) / 2 > 0.5, (forward > 0.5) == (backward > 0.5)

    def _first_is_better(
        self, pairs: np.ndarray, first: list[str], second: list[str], contexts: list[str] | None
    ) -> np.ndarray:
        rows = [self.rows[i] for i in pairs]
        if not rows:
            return np.zeros(0)
        template = PROMPTS.judge if contexts is None else PROMPTS.judge_context
        prompts = []
        for i, row in zip(pairs, rows, strict=True):
            fields = {"question": QUESTIONS[self.slots[i]], "answer_1": first[i], "answer_2": second[i]}
            prompts.append(template.render(**fields, **({} if contexts is None else {"context": contexts[row]})))
        odds = self.reader.choose(rows, prompts, rationale_tokens=template.rationale_tokens, cue=template.cue)
        return (odds[:, 0] / odds.sum(1)).numpy()


def _share(right: np.ndarray) -> Share:
    return Share(float(right.mean()) if len(right) else 0.0, len(right))
