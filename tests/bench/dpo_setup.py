"""What both sides of the DPO benchmark share: one random Video-LLaVA, one set of pairs, one set of clips.

TRL takes images only, so that it gets a clip's frames as images. The image tower is a copy of the video tower and keeps
the class token too (`vision_feature_select_strategy: full`), so that frames as images and frames as a video are the
same tokens with the same features, and both sides must find the same log-probs.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from isr_dpo.records import Preference, read_files, to_jsonl
from tests.family_parts import Shape

FAMILY = "video_llava"
IMAGE, VIDEO = "<image>", "<video>"


@dataclass(frozen=True)
class Sizes:
    """Of the model, the clips and the pairs."""

    shape: Shape = Shape(  # noqa: RUF009 - frozen
        hidden=512,
        intermediate=1376,
        layers=8,
        heads=8,
        kv_heads=8,
        vocabulary=8000,
        context=4096,
        frames=8,
        pixels=224,
        vision_hidden=192,
        vision_intermediate=768,
        vision_layers=3,
        vision_heads=3,
    )
    pairs: int = 2
    """A step's; the same ones in every step."""
    prompt_words: int = 60
    response_words: tuple[int, int] = (100, 140)
    """Shortest and longest response, drawn uniformly."""

    @property
    def video_tokens(self) -> int:
        return self.shape.frames * ((self.shape.pixels // self.shape.patch) ** 2 + 1)


SMALL = Sizes(
    shape=Shape(hidden=64, intermediate=128, layers=2, heads=2, kv_heads=2, frames=2, pixels=28, vision_layers=2),
    prompt_words=6,
    response_words=(4, 9),
)


def write(folder: Path, sizes: Sizes, *, seed: int = 0, device: str | None = None, dtype: str = "float32") -> None:
    """Draws the model (`folder/policy`) and the pairs (`folder/pairs.jsonl`).

    `device`: where the weights are drawn; none: on a GPU where there is one, which is far faster at the real size.
    """
    import torch

    from tests.families import liven, parts

    torch.manual_seed(seed)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config, model_class, processor = parts(FAMILY, sizes.shape)
    config.vision_feature_select_strategy = processor.vision_feature_select_strategy = "full"
    with torch.device(device):
        model = model_class(config).to(getattr(torch, dtype))
        liven(model)
    model.model.image_tower.load_state_dict(model.model.video_tower.state_dict())
    model.save_pretrained(folder / "policy")
    processor.save_pretrained(folder / "policy")
    (folder / "sizes.json").write_text(json.dumps(asdict(sizes)), encoding="utf-8")
    (folder / "pairs.jsonl").write_bytes(to_jsonl(draw_pairs(sizes, seed=seed)))


def read_sizes(folder: Path) -> Sizes:
    values = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    response_words = tuple(values.pop("response_words"))
    return replace(Sizes(**values), shape=Shape(**values["shape"]), response_words=response_words)


def read_pairs(folder: Path) -> list[Preference]:
    return read_files(folder, ["pairs.jsonl"], Preference)


def draw_pairs(sizes: Sizes, *, seed: int = 0) -> list[Preference]:
    """Pairs of random words, each about its own clip."""
    draw = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(f"w{draw.randrange(sizes.shape.vocabulary // 2)}" for _ in range(words))

    return [
        Preference(
            id=f"pair-{i}",
            video=f"clip-{i}",
            prompt=text(sizes.prompt_words),
            chosen=text(draw.randint(*sizes.response_words)),
            rejected=text(draw.randint(*sizes.response_words)),
        )
        for i in range(sizes.pairs)
    ]


def clip(video: str, sizes: Sizes) -> np.ndarray:
    """Frames of a made-up clip, uint8 [F, H, W, 3], coarse blocks of colour, others for each name."""
    shape = sizes.shape
    draw, blocks = np.random.default_rng(list(video.encode())), shape.pixels // shape.patch
    coarse = draw.integers(0, 256, (shape.frames, blocks, blocks, 3), dtype=np.uint8)
    return coarse.repeat(shape.patch, axis=1).repeat(shape.patch, axis=2)
