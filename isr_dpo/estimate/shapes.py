"""A model's sizes from its config.json alone: no weights, no torch, no transformers.

Published configurations leave out what their transformers class has as default, so those defaults stand here too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isr_dpo import manifest
from isr_dpo.errors import ModelError
from isr_dpo.flops import Shape
from isr_dpo.models.folder import FAMILIES
from isr_dpo.stores import Missing, join, read_bytes

TEXT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "video_llava": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000},
    "llava_next_video": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000},
    "llava_onevision": {"hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "vocab_size": 151936},
    "qwen2_5_vl": {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "vocab_size": 152064},
    "qwen3_vl": {"hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "vocab_size": 151936},
}
_HEADS = {"qwen2_5_vl": 64}
_GRID_TOKENS_A_PAIR = 768
"""Of two frames of 720p or more at the Qwen processors' default size; smaller clips have fewer [D]."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a policy. Weights are counts, `kv_bytes` is of one token in bf16, `tower_flops` of one clip."""

    family: str
    text: Shape
    trained: int
    """With embeddings and output head, of which DPO trains both."""
    weights: int
    """All of them."""
    kv_bytes: int
    activations: int
    """Numbers that a backward pass needs of one token, about: what enters each linear layer and norm."""
    linear_sides: int
    """Inputs and outputs of all linear layers of the language model together: LoRA's weights are rank times these."""
    video_tokens: int
    pixels: int
    """Of a clip as the frame store keeps it."""
    tower_flops: float


def read_config(start: str) -> dict[str, Any]:
    """config.json of the model at `start` (a folder, builtin:, s3://, hf://; of a run's policy where its files lie).

    Raises:
        ModelError: there is none.
        OutsideError, StoreError: the store is away.
    """
    folder = manifest.local_folder(start)
    if folder is None or not (folder / "config.json").is_file():
        made = None if start.startswith(("hf://", manifest.BUILTIN)) else manifest.find(start)
        start = start if made is None else made.uri  # policy-00, or policy-01 without a seed: its files lie elsewhere
        folder = manifest.local_folder(start)
    uri = join(start, "config.json") if folder is None else str(folder / "config.json")
    try:
        return parsed(read_bytes(uri), uri)
    except Missing:
        raise ModelError(f"model.start: there is no {uri}; --model-config names a copy of the model's own") from None


def parsed(content: bytes, where: str) -> dict[str, Any]:
    """config.json as a tree. Raises ModelError: no JSON, or of no supported family."""
    try:
        tree = json.loads(content)
        (name,) = tree["architectures"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{where}: names no single architecture ({error})") from error
    if name not in FAMILIES:
        raise ModelError(f"{where}: architecture {name} is not supported; supported: {', '.join(FAMILIES)}")
    found: dict[str, Any] = tree
    return found


def read_config_file(path: Path) -> dict[str, Any]:
    """`parsed` of a file. Raises ModelError."""
    try:
        return parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


def shape_of(config: Mapping[str, Any], *, frames: int, video_tokens: int | None = None) -> ModelShape:
    """The sizes that a config.json says, for clips of `frames`; `video_tokens` replaces the family's number of them."""
    family = FAMILIES[config["architectures"][0]]
    nested = config.get("text_config") or config  # Qwen2.5-VL was published with the language model's keys on top
    text = {**TEXT_DEFAULTS[family], **{key: value for key, value in nested.items() if value is not None}}
    hidden, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    heads = text.get("num_attention_heads", _HEADS.get(family, 32))
    keys = text.get("num_key_value_heads", 8 if family == "qwen2_5_vl" else heads)
    head = text.get("head_dim") or (128 if family == "qwen3_vl" else hidden // heads)
    queries, values = heads * head, keys * head
    matrices = 2 * hidden * queries + 2 * hidden * values + 3 * hidden * inner
    weights = layers * (matrices + _vectors(family, text, queries, values, head)) + hidden
    vocabulary = text["vocab_size"] * hidden
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    trained = weights + vocabulary * (1 if tied else 2)
    tower = _Tower.of(family, config, frames=frames)
    towers = 2 if family == "video_llava" and config.get("image_tower", True) else 1  # that for images never runs
    sides = 2 * (hidden + queries) + 2 * (hidden + values) + 3 * (hidden + inner)
    return ModelShape(
        family=family,
        text=Shape(weights=weights, trained=weights, layers=layers, width=queries),
        trained=trained,
        weights=trained + tower.weights * towers + hidden * (tower.width + hidden),
        kv_bytes=2 * layers * values * 2,
        activations=layers * (6 * hidden + 2 * values + 4 * inner),
        linear_sides=layers * sides,
        video_tokens=video_tokens or tower.video_tokens,
        pixels=tower.pixels,
        tower_flops=tower.flops,
    )


def _vectors(family: str, text: Mapping[str, Any], queries: int, values: int, head: int) -> int:
    """A layer's norms and biases."""
    found: int = 2 * text["hidden_size"]
    if family == "qwen3_vl":
        found += 2 * head
    biased = text.get("attention_bias", False) or family == "qwen2_5_vl" or text.get("model_type") == "qwen2"
    if biased:
        found += queries + 2 * values
    if text.get("attention_bias", False):
        found += text["hidden_size"]
    return found


@dataclass(frozen=True)
class _Tower:
    weights: int
    width: int
    """Of what enters the projector, a token."""
    flops: float
    video_tokens: int
    pixels: int

    @classmethod
    def of(cls, family: str, config: Mapping[str, Any], *, frames: int) -> _Tower:
        """One vision tower, which sees each frame (or pair of frames) by itself, but where Video-LLaVA's has attention
        over time."""
        vision = config.get("vision_config") or {}
        if family.startswith("qwen"):
            return cls._of_grids(family, vision, frames=frames)
        size = {"video_llava": (224, 14, 1024, 4096, 24), "llava_next_video": (336, 14, 1024, 4096, 24)}
        image, patch, width, inner, layers = size.get(family, (384, 14, 1152, 4304, 26))
        image, patch = vision.get("image_size", image), vision.get("patch_size", patch)
        width, inner = vision.get("hidden_size", width), vision.get("intermediate_size", inner)
        layers = vision.get("num_hidden_layers", layers)
        side = image // patch
        classes = 0 if family == "llava_onevision" else 1
        seen = side**2 + classes
        over_time = family == "video_llava" and vision.get("add_time_attn", False)
        weights = layers * ((8 if over_time else 4) * width**2 + 2 * width * inner)
        kept = seen if config.get("video_class_token", True) else side**2
        tokens = {
            "video_llava": frames * kept,
            "llava_next_video": frames * (side // 2) ** 2,
            "llava_onevision": frames * (-(-side // 2)) ** 2 + 1,
        }[family]
        others = seen + frames if over_time else seen  # tokens that a token attends to, in its frame and over time
        flops = frames * (2.0 * weights * seen + 4.0 * width * layers * seen * others)
        return cls(weights, width, flops, tokens, frames * image**2)

    @classmethod
    def _of_grids(cls, family: str, vision: Mapping[str, Any], *, frames: int) -> _Tower:
        """Attention, most of it in windows, is not counted."""
        first = family == "qwen2_5_vl"
        width, layers = vision.get("hidden_size", 1280 if first else 1152), vision.get("depth", 32 if first else 27)
        inner = vision.get("intermediate_size", 3420 if first else 4304)
        weights = layers * (4 * width**2 + (3 if first else 2) * width * inner)
        tokens = -(-frames // 2) * _GRID_TOKENS_A_PAIR
        merged = vision.get("spatial_merge_size", 2) ** 2
        pixels = 2 * tokens * merged * vision.get("patch_size", 14 if first else 16) ** 2
        return cls(weights, width * merged, 2.0 * weights * tokens * merged, tokens, pixels)
