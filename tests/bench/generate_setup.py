"""What all sides of the generation benchmark share: a random policy, questions, clips, and the count of tokens that a
round needs."""

from __future__ import annotations

import functools
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isr_dpo.config import Recipe
from isr_dpo.records import Question
from tests.family_parts import BENCH, Shape, qwen_patch


@dataclass(frozen=True)
class Sizes:
    """Of the model, the clips and the texts of a setting."""

    shape: Shape
    rows: int
    """Each about a clip of its own, as in the paper's data."""
    batch1_rows: int
    hf_rows: int
    """Rows that these sides do: the first is the same for every row, the second for every batch."""
    new_tokens: int
    """Of an answer and of a description, at most; a random policy seldom stops before."""
    batch_rows: int
    """engine.batch_rows of the HF engine."""
    fused_videos: int
    """Videos in hand of the fused round."""
    question_words: int = 12
    family: str = "video_llava"

    def rows_of(self, side: str) -> int:
        """Rows that a side does in a round."""
        return {"batch1": self.batch1_rows, "hf": self.hf_rows}.get(side, self.rows)


SETTINGS = {
    "answers": Sizes(
        shape=Shape(
            hidden=256, intermediate=688, layers=4, kv_heads=4, vocabulary=4000, context=1024, frames=8, pixels=56
        ),
        rows=64,
        batch1_rows=16,
        hf_rows=64,
        new_tokens=96,
        batch_rows=64,
        fused_videos=64,
    ),
    "video": Sizes(
        shape=replace(BENCH, vocabulary=4000),
        rows=32,
        batch1_rows=4,
        hf_rows=8,
        new_tokens=16,
        batch_rows=8,
        fused_videos=8,
    ),
    "small": Sizes(
        shape=Shape(hidden=128, intermediate=128, context=1024),
        rows=4,
        batch1_rows=2,
        hf_rows=4,
        new_tokens=6,
        batch_rows=4,
        fused_videos=2,
        question_words=4,
    ),
}
"""`answers`: most of a batch-1 call goes into writing, as on a GPU (a 7B model on an A100: 0.1 s of prefill, 1 s of
writing). `video`: the video is nearly all that is computed, and 1 GB of keys and values, 32 kB a token, holds half the
clips. `small`: does it run at all?"""


def recipe_for(sizes: Sizes, **engine: Any) -> Recipe:
    """A round's settings: the packaged prompts, contexts described afresh, both orders judged."""
    tree = {
        "name": "bench",
        "model": {"start": "random", "registered_name": "bench", "device": "cpu"},
        "data": {"train": "none", "sets": {"dev": "none"}},
        "generate": {"max_new_tokens": sizes.new_tokens},
        "retrospect": {"max_new_tokens": sizes.new_tokens},
        "engine": {"batch_rows": sizes.batch_rows, **engine},
    }
    return Recipe.model_validate(tree)


def write(folder: Path, sizes: Sizes) -> None:
    """Draws the policy into `folder/policy`."""
    from tests.families import build

    build(folder / "policy", sizes.family, shape=sizes.shape)
    (folder / "sizes.json").write_text(json.dumps(asdict(sizes)), encoding="utf-8")


def read(folder: Path) -> Sizes:
    values = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    return replace(Sizes(**values), shape=Shape(**values["shape"]))


def questions(sizes: Sizes, *, repeat: int) -> list[Question]:
    """The rows of a repeat; other repeats ask about other clips, which no cache knows."""
    draw = random.Random(repeat)

    def text() -> str:
        return " ".join(f"w{draw.randrange(sizes.shape.vocabulary // 2)}" for _ in range(sizes.question_words))

    return [Question(id=f"{repeat}-{i}", video=f"clip-{repeat}-{i}", prompt=text()) for i in range(sizes.rows)]


@functools.lru_cache(maxsize=256)
def clip(video: str, sizes: Sizes) -> np.ndarray:
    """Frames of a made-up clip as the frame store keeps them: uint8 [F, H, W, 3], others for each name."""
    shape, side = sizes.shape, sizes.shape.pixels
    if sizes.family.startswith("qwen"):
        unit = 2 * qwen_patch(sizes.family)
        side = max(side // unit, 1) * unit
    draw = np.random.default_rng(list(video.encode()))
    return draw.integers(0, 256, (shape.frames, side, side, 3), dtype=np.uint8)


def needed_tokens(prompts: Sequence[tuple[str, Sequence[int]]]) -> int:
    """Tokens to compute if nothing about a clip is computed twice: those of the tree that its prompts, (video, ids)
    each, make."""
    groups: dict[str, list[list[int]]] = defaultdict(list)
    for video, ids in prompts:
        groups[video].append(list(ids))
    total = 0
    for group in groups.values():
        before: list[int] = []
        for ids in sorted(group):
            shared = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), len(before))
            total += len(ids) - min(shared, len(ids))
            before = ids
    return total
