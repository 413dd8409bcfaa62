"""A folder in the original layout of LLaVA and Video-LLaVA: what its config, its index and the headers of its shards
say. No weights are read."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from isr_dpo.errors import ModelError
from isr_dpo.models.convert import shards
from isr_dpo.models.folder import ORIGINAL

CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
MODEL_TYPES = ("llava", "llava_llama")
KINDS = (
    ("model.safetensors", r"model-\d+-of-\d+\.safetensors"),
    ("pytorch_model.bin", r"pytorch_model-\d+-of-\d+\.bin"),
)
"""One file, which `.index.json` after its name makes shards; how shards are named. The first that is there is read."""
SPECIAL_TOKENS = ("mm_use_x_start_end", "mm_use_x_patch_token", "mm_use_im_start_end", "mm_use_im_patch_token")
PARTIAL = ("adapter_config.json", "adapter_model.bin", "adapter_model.safetensors", "non_lora_trainables.bin")
"""Files of checkpoints that hold a part of the weights, to be put upon those of another model (`model_base`)."""


class Tensor(NamedTuple):
    """What a header says of one tensor; `dtype` as safetensors writes it ("F16", "BF16", "F32", "I64")."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * shards.BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """A file of weights and what it holds, in its own order."""

    path: Path
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A checkpoint in the original layout whose files are whole and agree with one another."""

    folder: Path
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for shard in self.shards for name, tensor in shard.tensors.items()}

    @property
    def bytes(self) -> int:
        return sum(shard.path.stat().st_size for shard in self.shards)

    @property
    def unread(self) -> list[str]:
        """Files beside the shards that look like weights."""
        read = {shard.path.name for shard in self.shards}
        kinds = (".bin", ".safetensors", ".pt", ".pth")
        return sorted(p.name for p in self.folder.iterdir() if p.suffix in kinds and p.name not in read)

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Raises ModelError: no such tensor, or one of another number of dimensions."""
        found = self.tensors.get(name)
        if found is None:
            raise ModelError(
                f"{self.folder}: its weights lack {name}; a whole checkpoint in the original layout has it"
            )
        if len(found.shape) != dimensions:
            raise ModelError(
                f"{self.folder}: {name} has shape {list(found.shape)}, not {dimensions} dimensions; a whole checkpoint "
                "has it so: one that DeepSpeed's ZeRO-3 saved in pieces is gathered first (zero_to_fp32.py beside it)"
            )
        return found.shape


def is_part(name: str) -> bool:
    """Whether a conversion looks at a file of this name: there may be large others beside a model, its optimiser's."""
    small = "/" not in name and name.endswith((".json", ".model"))
    return small or name in PARTIAL or any(name == whole or re.fullmatch(shard, name) for whole, shard in KINDS)


def open_source(folder: Path) -> Source:
    """Opens `folder` and checks config, index and the header of every shard.

    Raises:
        ModelError: not this layout, or a part, an adapter, a quantised model; a shard that is cut off, missing, or
            holds anything but tensors; an index that does not fit its shards.
    """
    config = _config(folder)
    partial = [name for name in PARTIAL if (folder / name).is_file()]
    if partial or config.get("model_base"):
        raise ModelError(
            f"{folder}: has no full weights ({', '.join(partial) or 'model_base in its config'}: LoRA or a part); "
            "merge it into its base model with the code that trained it, then convert what that saves"
        )
    if config.get("quantization_config"):
        raise ModelError(f"{folder}: quantised weights are not converted; convert the fp16, bf16 or fp32 checkpoint")
    return Source(folder, config, _shards(folder))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name = (config.get("architectures") or [""])[0]
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{folder}: no {CONFIG}, so no model lies there") from None
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise ModelError(f"{path}: not a model's configuration ({error})") from error
    if name == "VideoLlavaForConditionalGeneration" or config.get("model_type") == "video_llava":
        raise ModelError(f"{folder}: is converted already ({name or 'video_llava'}): use it as it is")
    if name != ORIGINAL and (name or config.get("model_type") not in MODEL_TYPES):
        raise ModelError(f"{path}: architecture {name or None!r} is not in the original layout; {ORIGINAL} is")
    if not config.get("mm_video_tower"):
        raise ModelError(f"{path}: names no mm_video_tower: a model of images alone, not Video-LLaVA's layout")
    return _checked(path, dict(config))


def _checked(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Refuses what the target model has no place for."""
    projector = config.get("mm_projector_type")
    if projector != "mlp2x_gelu":
        raise ModelError(f"{path}: mm_projector_type {projector!r} is unknown; known: 'mlp2x_gelu'")
    for key in SPECIAL_TOKENS:
        if config.get(key):
            raise ModelError(f"{path}: {key} is true: such tokens around or for a video are not supported; false is")
    for key in ("mm_vision_select_layer", "max_position_embeddings"):
        if type(config.get(key)) is not int:
            raise ModelError(f"{path}: {key} is {config.get(key)!r}; accepted: a whole number")
    feature = config.setdefault("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise ModelError(f"{path}: mm_vision_select_feature {feature!r} is unknown; known: 'patch', 'cls_patch'")
    if config.get("tie_word_embeddings"):
        raise ModelError(f"{path}: tie_word_embeddings is true; this layout has an lm_head of its own")
    return config


def _shards(folder: Path) -> tuple[Shard, ...]:
    for whole, pattern in KINDS:
        index = folder / f"{whole}.index.json"
        if index.is_file():
            return _indexed(folder, index, re.compile(pattern))
        if (folder / whole).is_file():
            return (_opened(folder / whole),)
        if stray := _matching(folder, re.compile(pattern)):
            raise ModelError(f"{folder}: {stray[0]} is a shard, but their index {index.name} is missing")
    wanted = " or ".join(name for name, _ in KINDS)
    raise ModelError(f"{folder}: no weights: {wanted}, or shards with their index")


def _indexed(folder: Path, path: Path, pattern: re.Pattern[str]) -> tuple[Shard, ...]:
    try:
        index: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in index.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not an index of weights ({error})") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{path}: names the shard {name}, which is not there: fetch it, or the index again")
    if stray := sorted(set(_matching(folder, pattern)) - set(names)):
        raise ModelError(f"{path}: lacks the shard {stray[0]}, which is there: fetch the index again")
    found = tuple(_opened(folder / name) for name in names)
    for shard in found:
        placed = {tensor for tensor, name in index.items() if name == shard.path.name}
        if extra := sorted(shard.tensors.keys() - placed):
            raise ModelError(f"{path}: has no entry for {extra[0]} of {shard.path.name}: fetch the index again")
        if lost := sorted(placed - shard.tensors.keys()):
            raise ModelError(f"{shard.path}: lacks {lost[0]}, which {path.name} places there: fetch both again")
    return found


def _opened(path: Path) -> Shard:
    held = {name: Tensor(dtype, shape) for name, (dtype, shape) in shards.header(path).items()}
    return Shard(path, held)


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if pattern.fullmatch(path.name))
