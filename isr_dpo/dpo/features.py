"""What the frozen vision tower gave for a video, kept on disk: computed once, read ever after.

The tower never trains, so its outputs hold for every round. The folder's name is a digest of the tower (its weights,
and what a policy's config.json says about their use) and of the frames they were computed from; files are written whole
or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from isr_dpo.errors import CorruptOutput
from isr_dpo.models import Policy
from isr_dpo.scratch import scratch

log = logging.getLogger("isr_dpo")

KEPT_FREE_BYTES = 2**33
"""Disk space that the cache leaves to others; once it is used up, towers run again instead."""
SETTINGS = ("vision_feature_layer", "vision_feature_select_strategy", "video_class_token")
TOWER_SETTINGS = ("hidden_act", "layer_norm_eps", "num_attention_heads")
"""Keys of config.json, and of its `vision_config`, that change what comes of the same weights and frames."""


class Features:
    """Tower outputs by video key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unfinished = folder / "unfinished"  # apart: who puts looks through it, and there may be many videos
        self._unfinished.mkdir(parents=True, exist_ok=True)
        self._full = False

    def get(self, video: str) -> dict[str, Tensor] | None:
        """None where the tower has not run over `video` yet.

        Raises:
            CorruptOutput: the file is there and cannot be read.
        """
        path = self._path(video)
        try:
            return load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            raise CorruptOutput(
                f"features of video {video!r}: {path}: {error}; delete the file and run again"
            ) from error

    def put(self, video: str, values: dict[str, Tensor]) -> None:
        """Keeps the tower's outputs for `video`; with too little disk space left it does nothing, and says so once."""
        if self._full:
            return
        if shutil.disk_usage(self._folder).free < KEPT_FREE_BYTES:
            log.warning("features: less than %d GiB free at %s; no more are kept", KEPT_FREE_BYTES >> 30, self._folder)
            self._full = True
            return
        with scratch(self._unfinished) as folder:
            path = folder / "features.safetensors"
            save_file({name: value.detach().contiguous().cpu() for name, value in values.items()}, path)
            os.replace(path, self._path(video))

    def _path(self, video: str) -> Path:
        return self._folder / f"{hashlib.sha256(video.encode()).hexdigest()[:32]}.safetensors"


def tower_digest(policy: Policy) -> str:
    """sha256 of the parameters that DPO never trains, by name and value: towers (and, where frozen, projectors); and of
    the settings that say how they are used."""
    config = policy.model.config
    settings = [getattr(config, key, None) for key in SETTINGS]
    settings += [getattr(config.vision_config, key, None) for key in TOWER_SETTINGS]
    digest = hashlib.sha256(repr(settings).encode())
    trained = policy.trainable(projector=True)
    for name, parameter in policy.model.named_parameters():
        if name not in trained:
            digest.update(name.encode())
            digest.update(parameter.detach().contiguous().flatten().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()
