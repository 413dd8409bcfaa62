"""A small world to learn in: drawn clips with ground truth, and a tiny video LMM that is wrong about them often enough.

    scene.py     what a clip shows, and the words for it          pixels.py   scenes as frames
    dataset.py   clips, rows and held-out questions on disk       model.py    the tiny Video-LLaVA and its processor
    clips.py     clips in memory, as the model sees them          reader.py   what a model says and chooses, in batches
    lessons.py   rows of supervised training                      tower.py, tuition.py   the two trainings
    school.py    the starting checkpoint from a seed              exam.py     does the judge read its context?
    start/       the committed starting checkpoint

The miniature shows the *mechanism* of self-retrospective DPO in minutes. Its start is made so that the mechanism can
work (see the model card in start/README.md); it is no evidence for the paper's claims.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from isr_dpo.data.world.dataset import draw
from isr_dpo.data.world.scene import SLOTS

if TYPE_CHECKING:
    from isr_dpo.data.world.exam import GateReport

__all__ = ["SLOTS", "build", "draw", "gate", "start"]


def start() -> Path:
    """The folder of the committed starting checkpoint."""
    return Path(str(resources.files(__name__) / "start"))


def build(
    folder: Path, *, seed: int, scale: float = 1.0, progress: Callable[[str], None] = lambda message: None
) -> GateReport:
    """Train the starting checkpoint from `seed` and write it to `folder`; see school.py."""
    from isr_dpo.data.world.school import build

    return build(folder, seed=seed, scale=scale, progress=progress)


def gate(
    model: Path, *, seed: int, clips: int = 150, progress: Callable[[str], None] = lambda message: None
) -> GateReport:
    """The gate's figures for the checkpoint in folder `model`; see exam.py."""
    from transformers import AutoProcessor, VideoLlavaForConditionalGeneration

    from isr_dpo.data.world.exam import gate

    return gate(
        VideoLlavaForConditionalGeneration.from_pretrained(model),
        AutoProcessor.from_pretrained(model),
        seed=seed,
        clips=clips,
        progress=progress,
    )
