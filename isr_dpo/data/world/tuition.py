"""Second lesson: supervised training of the projector and the language part; the tower stays frozen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from transformers import VideoLlavaForConditionalGeneration

from isr_dpo.data.world.lessons import TASKS, Carelessness, Lesson, draw_lesson
from isr_dpo.data.world.model import VIDEO_TOKENS
from isr_dpo.data.world.scene import Scene

VERDICT_WEIGHT = 4.0
"""How much more a judge's label counts than another token: it is one of four and the last to be learned."""


class Tuition:
    """The optimiser's state over several courses of lessons."""

    def __init__(self, model: VideoLlavaForConditionalGeneration, words: dict[str, int], *, muon: float, adam: float):
        self.model, self.words = model, words
        language, projector = model.model.language_model, model.model.multi_modal_projector
        matrices = [p for p in [*language.layers.parameters(), *projector.parameters()] if p.ndim == 2]
        known = {id(p) for p in matrices}
        rest = [*language.parameters(), *projector.parameters(), *model.lm_head.parameters()]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=muon, weight_decay=0.0),
            torch.optim.AdamW([p for p in rest if id(p) not in known], lr=adam, weight_decay=0.0),
        ]
        self.rates = [muon, adam]

    def step(self, states: torch.Tensor, lessons: Sequence[Lesson], *, rate: float) -> torch.Tensor:
        """One update on `lessons`, about clips whose tower states are `states`, at `rate` times the full learning
        rates; returns each lesson's loss."""
        order = sorted(range(len(lessons)), key=lambda i: len(lessons[i].prompt.split()))
        losses = torch.zeros(len(lessons))
        for optimizer, full in zip(self.optimizers, self.rates, strict=True):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = full * rate
        for part in np.array_split(np.asarray(order), 3):
            each = self._losses(states[part], [lessons[i] for i in part])
            (each.sum() / len(lessons)).backward()  # type: ignore[no-untyped-call]
            losses[part] = each.detach()
        for optimizer in self.optimizers:
            optimizer.step()
        return losses

    def _losses(self, states: torch.Tensor, lessons: Sequence[Lesson]) -> torch.Tensor:
        ids, labels = collate(lessons, self.words)
        weights = (labels[:, 1:] != -100).float()
        for verdict in ("1", "2"):
            weights[labels[:, 1:] == self.words[verdict]] = VERDICT_WEIGHT
        embeds = self.model.get_input_embeddings()(ids)
        video = self.model.model.multi_modal_projector(states)
        embeds = torch.cat([embeds[:, :1], video, embeds[:, 1:]], 1)
        hidden = self.model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[:, VIDEO_TOKENS:-1])  # predicts ids[:, 1:]
        loss = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
        return (loss * weights).sum(1) / (weights > 0).sum(1)


def collate(lessons: Sequence[Lesson], words: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels [lesson, token], the video tokens left out after the first."""
    rows = []
    for lesson in lessons:
        prompt = [words["<s>"], *(words[w] for w in f"{lesson.prompt} assistant :".split())]
        target = [*(words[w] for w in lesson.target.split()), words["</s>"]]
        rows.append((prompt + target, [-100] * len(prompt) + target))
    longest = max(len(row) for row, _ in rows)
    ids = torch.tensor([row + [words["<pad>"]] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor([label + [-100] * (longest - len(label)) for _, label in rows])
    return ids, labels


def draw_lessons(
    scenes: Sequence[Scene],
    mixture: dict[str, float],
    care: Carelessness,
    rng: np.random.Generator,
    count: int,
) -> tuple[np.ndarray, list[str], list[Lesson]]:
    rows = rng.integers(len(scenes), size=count)
    tasks = [str(t) for t in rng.choice(list(TASKS), size=count, p=[mixture[t] for t in TASKS])]
    return rows, tasks, [draw_lesson(t, scenes[r].facts, care, rng) for r, t in zip(rows, tasks, strict=True)]
