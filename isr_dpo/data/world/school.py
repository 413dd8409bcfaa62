"""The starting checkpoint, made from a seed on a CPU: the tower learns to see, the language part learns the skills,
and then a careless habit is laid over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from isr_dpo.data.world.card import model_card
from isr_dpo.data.world.clips import Clips, film
from isr_dpo.data.world.exam import GateReport, gate
from isr_dpo.data.world.lessons import ATTENTIVE, Carelessness
from isr_dpo.data.world.model import new_model, new_processor
from isr_dpo.data.world.reader import tower_states
from isr_dpo.data.world.scene import SLOTS, Scene, sample_scene
from isr_dpo.data.world.tower import train_tower
from isr_dpo.data.world.tuition import Tuition, draw_lessons

if TYPE_CHECKING:
    from transformers import VideoLlavaForConditionalGeneration, VideoLlavaProcessor

CLIPS, TOWER_STEPS, SKILL_STEPS, HABIT_STEPS, BATCH = 4000, 600, 650, 100, 64
MUON_RATE, ADAM_RATE = 0.01, 0.002
SKILLS = {"answer": 0.2, "describe": 0.15, "refine": 0.15, "judge": 0.2, "judge_context": 0.3}
HABITS = {"answer": 0.35, "describe": 0.15, "refine": 0.1, "judge": 0.2, "judge_context": 0.2}
CARELESS = Carelessness(
    answer={"colour": 0.4, "shape": 0.55, "action": 0.55, "pattern": 0.6, "place": 0.45, "landmark": 0.6},
    describe=dict.fromkeys(SLOTS, 0.38),
    judge={"colour": 0.35, "shape": 0.5, "action": 0.5, "pattern": 0.55, "place": 0.4, "landmark": 0.55},
)
"""How often the start answers, describes and judges without looking; see the model card."""
Progress = Callable[[str], None]


def build(folder: Path, *, seed: int, scale: float = 1.0, progress: Progress = lambda message: None) -> GateReport:
    """Train the starting checkpoint and write it to `folder`: model.safetensors (fp32), configuration, tokenizer,
    processor, chat template and the model card with the gate's figures, which are returned.

    The result depends on `seed` and `scale` alone (on one kind of processor: torch is held to one thread meanwhile).
    `scale` shortens every course, for tests: below about 0.5 the model has not learned to judge. Takes about 10 minutes
    on one core.
    """
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    try:
        processor = new_processor()
        model = new_model(processor)
        scenes = _scenes(np.random.default_rng([seed, 0]), max(100, round(CLIPS * scale)))
        progress(f"rendering {len(scenes)} clips")
        clips = film(scenes, seed=seed)
        train_tower(model, clips, steps=max(20, round(TOWER_STEPS * scale)), progress=progress)
        teach(model, processor, clips, seed=seed, scale=scale, progress=progress)
    finally:
        torch.random.set_rng_state(state)
        torch.set_num_threads(threads)
    report = gate(model, processor, seed=seed, clips=max(10, round(250 * min(scale, 1.0))), progress=progress)
    parameters, words = sum(weight.numel() for weight in model.parameters()), len(processor.tokenizer)
    card = model_card(report, CARELESS, seed=seed, scale=scale, parameters=parameters, words=words)
    write(folder, model, processor, card=card)
    return report


def teach(
    model: VideoLlavaForConditionalGeneration,
    processor: VideoLlavaProcessor,
    clips: Clips,
    *,
    seed: int,
    scale: float,
    progress: Progress,
) -> None:
    """The skills, then the habit; the tower is only read."""
    states = tower_states(model, clips)
    tuition = Tuition(model, processor.tokenizer.get_vocab(), muon=MUON_RATE, adam=ADAM_RATE)
    rng = np.random.default_rng([seed, 1])
    skill, habit = max(10, round(SKILL_STEPS * scale)), max(5, round(HABIT_STEPS * scale))
    for name, steps, mixture, care, top in (
        ("skills", skill, SKILLS, ATTENTIVE, 1.0),
        ("habit", habit, HABITS, CARELESS, 0.25),
    ):
        for step in range(steps):
            rows, _, lessons = draw_lessons(clips.scenes, mixture, care, rng, BATCH)
            rate = top * min(1.0, (step + 1) / min(50, steps), (steps - step) / (0.4 * steps))
            losses = tuition.step(states[torch.from_numpy(rows)], lessons, rate=rate)
            if (step + 1) % 50 == 0 or step + 1 == steps:
                progress(f"{name} {step + 1}/{steps}: loss {float(losses.mean()):.3f}")


def write(
    folder: Path, model: VideoLlavaForConditionalGeneration, processor: VideoLlavaProcessor, *, card: str
) -> None:
    """The checkpoint as transformers reads it, and its card."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Half with evenly distributed values, so that rare ones are learned, half as the world draws them."""
    return [sample_scene(rng, 0.0) if i % 2 else sample_scene(rng) for i in range(count)]
