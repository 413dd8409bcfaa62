"""A tiny Video-LLaVA with random weights and the demo world's vocabulary, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def make_policy(folder: Path, *, seed: int = 0) -> Path:
    """Writes a random policy (about 1 M parameters) to `folder`."""
    import torch

    from isr_dpo.data.world.model import new_model, new_processor

    torch.manual_seed(seed)
    processor = new_processor()
    new_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def clip(key: str) -> np.ndarray:
    """Frames of a made-up clip, uint8 [8, 32, 32, 3], a different one for each key."""
    seed = int.from_bytes(key.encode()[-4:], "big")
    return np.random.default_rng(seed).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
