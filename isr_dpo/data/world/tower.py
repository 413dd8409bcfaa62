"""First lesson: the video tower learns to see, with attribute heads on every token, and is frozen afterwards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import VideoLlavaForConditionalGeneration

from isr_dpo.data.world.clips import SEEN, Clips
from isr_dpo.data.world.model import FRAMES_SEEN, WIDTH
from isr_dpo.data.world.pixels import place_at
from isr_dpo.data.world.scene import SLOTS, Scene

# What each head tells apart; value 0 of the first five means "not in this patch".
_HEADS = {"colour": 7, "shape": 7, "landmark": 7, "size": 4, "quadrant": 5, "place": 6, "pattern": 5}


def train_tower(
    model: VideoLlavaForConditionalGeneration, clips: Clips, *, steps: int, progress: Callable[[str], None]
) -> float:
    """Train `model`'s video tower on single frames, 256 a step; returns the heads' accuracy over the last steps."""
    tower = model.model.video_tower
    heads = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(_HEADS.values())))
    labels = torch.stack([_labels(scene) for scene in clips.scenes])  # [clip, frame, token, head]
    weights = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    accuracy = 0.0
    for step in range(steps):
        rows = torch.randint(len(clips.scenes), (256,))
        frames = torch.randint(FRAMES_SEEN, (256,))
        pixels = clips.pixels(rows)[torch.arange(256), frames]
        states = tower(pixels, output_hidden_states=True).hidden_states[-1]  # [frame, token, WIDTH]
        truth = labels[rows, frames]
        parts = heads(states).split(list(_HEADS.values()), dim=-1)
        loss = sum(F.cross_entropy(part.flatten(0, 1), truth[..., i].flatten()) for i, part in enumerate(parts))
        assert isinstance(loss, torch.Tensor)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        right = torch.stack([(part.argmax(-1) == truth[..., i]).float().mean() for i, part in enumerate(parts)])
        accuracy = 0.95 * accuracy + 0.05 * float(right.mean()) if step else float(right.mean())
        if step % 100 == 99:
            progress(f"tower {step + 1}/{steps}: loss {float(loss.detach()):.2f}, heads {accuracy:.3f}")
    return accuracy


def _labels(scene: Scene) -> torch.Tensor:
    """[frame, token, head]; token 0 is the class token and knows the whole frame."""
    labels = torch.zeros(FRAMES_SEEN, 5, len(_HEADS), dtype=torch.long)
    index = {slot: SLOTS[slot].index(scene.facts[slot]) for slot in SLOTS}
    labels[..., 5], labels[..., 6] = index["place"], index["pattern"]
    labels[:, [0, 1 + scene.corner], 2] = 1 + index["landmark"]
    for i, step in enumerate(SEEN):
        x, y, radius = place_at(scene, int(step))
        if radius:
            quadrant = int(x > 0.5) + 2 * int(y > 0.5)
            size = 1 + int(radius > 0.1) + int(radius > 0.15)
            seen = torch.tensor([1 + index["colour"], 1 + index["shape"], size, 1 + quadrant])
            for token in (0, 1 + quadrant):
                labels[i, token, [0, 1, 3, 4]] = seen
    return labels
