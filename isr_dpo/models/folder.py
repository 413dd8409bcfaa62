"""Is a whole policy in this folder? Looks at names, sizes and headers: no torch, no weights read, milliseconds.

A policy is config.json, safetensors (one file, or shards with their index), a tokenizer and a processor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isr_dpo.errors import ModelError
from isr_dpo.manifest import MANIFEST
from isr_dpo.outputs import UNFINISHED

FAMILIES: Mapping[str, str] = {
    "VideoLlavaForConditionalGeneration": "video_llava",
    "LlavaNextVideoForConditionalGeneration": "llava_next_video",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
}
"""transformers class -> module of isr_dpo.models."""

ORIGINAL = "LlavaLlamaForCausalLM"
"""Architecture that isr_dpo.models.convert reads, and no library loads."""

WEIGHTS = "model.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


def check(folder: Path) -> None:
    """Refuses what is no policy, a policy of another kind, and one that was not written to its end.

    Raises:
        ModelError: naming the file, and what is wrong with it.
    """
    architecture(folder)
    if (folder / UNFINISHED).exists() and not (folder / MANIFEST).exists():
        raise ModelError(f"{folder}: half-written: the step that makes this policy has not finished; run it to its end")
    held = {name: _tensors(folder / name) for name in _weight_files(folder)}
    for tensor, name in _index(folder).items():
        if tensor not in held[name]:
            raise ModelError(f"{folder}/{name}: lacks {tensor}, which the index of the weights places there")
    for what, names in (("tokenizer", TOKENIZERS), ("processor", PROCESSORS)):
        if not any((folder / name).is_file() for name in names):
            raise ModelError(f"{folder}: no {what}; one of {', '.join(names)} belongs to a policy")


def architecture(folder: Path) -> str:
    """The supported transformers class that config.json names. Raises ModelError."""
    try:
        (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{folder}: no config.json, so no model lies there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}/config.json: names no single architecture ({error})") from error
    if name == ORIGINAL:
        raise ModelError(
            f"{folder}: is in the original layout of LLaVA ({name}), which is not loaded as it is; "
            f"`isr-dpo models convert {folder} NEW_FOLDER` makes a policy of it"
        )
    if name not in FAMILIES:
        raise ModelError(f"{folder}: architecture {name} is not supported; supported: {', '.join(FAMILIES)}")
    return str(name)


def _weight_files(folder: Path) -> list[str]:
    names = sorted(set(_index(folder).values())) or [WEIGHTS]
    for name in names:
        if not (folder / name).is_file():
            others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
            hint = f" ({', '.join(others)} there: only safetensors are read)" if others else ""
            raise ModelError(f"{folder}: {name} is missing{hint}")
    return names


def _index(folder: Path) -> dict[str, str]:
    """Tensor -> shard; empty where the weights are one file."""
    path = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).is_file() or not path.is_file():
        return {}
    try:
        tree: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not an index of weights ({error})") from error
    return tree


def _tensors(path: Path) -> set[str]:
    return set(safetensors_header(path))


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: 8 bytes of its length (little endian), JSON, then the data to which every
    tensor's `data_offsets` point. The file must have all of it.

    Returns `dtype`, `shape` and `data_offsets` of each tensor. Raises ModelError: cut off, or no such file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ModelError(f"{path}: not a safetensors file, or cut off in its header ({size} bytes)")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            tensors = {name: dict(entry) for name, entry in header.items() if name != "__metadata__"}
            ends = [int(entry["data_offsets"][1]) for entry in tensors.values()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: its header is not safetensors' ({error})") from error
    whole = 8 + length + max(ends, default=0)
    if size != whole:
        raise ModelError(f"{path}: has {size} bytes, its header says {whole}: not written or copied to its end")
    return tensors
