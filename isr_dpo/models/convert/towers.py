"""Vision towers. Shapes come from the weights; heads, activation and epsilon stand in no weight and in no checkpoint's
config, which only names its towers: they come from the table of known towers, or from a tower's own config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isr_dpo.errors import ModelError
from isr_dpo.models.convert.names import IMAGE_TOWER, VIDEO_TOWER
from isr_dpo.models.convert.source import Source

_LANGUAGE_BIND = {"num_attention_heads": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
"""ViT-L/14 with gelu, not CLIP's quick_gelu [C]."""

KNOWN: Mapping[str, Mapping[str, Any]] = dict.fromkeys(
    ("LanguageBind_Video_merge", "LanguageBind_Video_FT", "LanguageBind_Video", "LanguageBind_Image"), _LANGUAGE_BIND
)
"""Last part of the name that a checkpoint's config gives -> what its weights do not say."""

_UNSHAPED = ("num_attention_heads", "hidden_act", "layer_norm_eps")
_TIMES = "encoder.layers.0.temporal_embedding"


def vision_config(source: Source, tower: Path | None) -> dict[str, Any]:
    """Fields of CLIPVisionConfig for the source's towers, and of ours: `add_time_attn`, `num_frames` where there is
    attention over time. `tower` is a tower's own config.json.

    Raises:
        ModelError: a tower that nobody knows, one without weights, two of different shapes, a file that does not fit.
    """
    shapes = _shapes(source, VIDEO_TOWER)
    stated = None if tower is None else _stated(tower)
    known = _known(source, "mm_video_tower", stated)
    if has_image_tower(source):
        if _shapes(source, IMAGE_TOWER) != shapes:
            raise ModelError(
                f"{source.folder}: its image tower has other shapes than its video tower; one shape is had"
            )
        if source.config.get("mm_image_tower") and _known(source, "mm_image_tower", stated) != known:
            raise ModelError(f"{source.folder}: its image tower is of another kind than its video tower; one is had")
    for key, value in (stated or {}).items():
        if shapes.get(key, value) != value:
            raise ModelError(f"--tower {tower}: {key} is {value}, the weights in {source.folder} say {shapes[key]}")
    width, heads = shapes["hidden_size"], known["num_attention_heads"]
    if width % heads:
        raise ModelError(f"{source.folder}: a tower {width} wide does not divide into {heads} heads; --tower FILE says")
    return {**shapes, **known, **_time(source)}


def has_image_tower(source: Source) -> bool:
    return any(name.startswith(IMAGE_TOWER) for name in source.tensors)


def _time(source: Source) -> dict[str, Any]:
    name = VIDEO_TOWER + _TIMES
    return {"add_time_attn": True, "num_frames": source.shape(name, 3)[1]} if name in source.tensors else {}


def _shapes(source: Source, prefix: str) -> dict[str, int]:
    tower = [name.removeprefix(prefix) for name in source.tensors if name.startswith(prefix)]
    if not tower:
        raise ModelError(
            f"{source.folder}: its weights lack the video tower ({prefix}...): the tower was to be loaded from "
            f"{source.config['mm_video_tower']}; save the whole model with the code that trained it"
        )
    layers = {int(name.split(".")[2]) for name in tower if name.startswith("encoder.layers.")}
    width, channels, patch, _ = source.shape(f"{prefix}embeddings.patch_embedding.weight", 4)
    places = source.shape(f"{prefix}embeddings.position_embedding.weight", 2)[0]
    side = round((places - 1) ** 0.5)
    if side * side != places - 1:
        raise ModelError(f"{source.folder}: {places} positions of its tower are no square of patches and a class token")
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
        "intermediate_size": source.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": len(layers),
    }


def _known(source: Source, key: str, stated: Mapping[str, Any] | None) -> dict[str, Any]:
    if stated is not None:
        return {name: stated[name] for name in _UNSHAPED}
    name = str(source.config[key])
    found = KNOWN.get(name.rstrip("/").rpartition("/")[2])
    if found is None:
        raise ModelError(
            f"{source.folder}/config.json: {key} {name} is unknown; known: {', '.join(KNOWN)}. Give the tower's own "
            "config.json by --tower FILE: its heads, activation and epsilon stand in no weight"
        )
    return dict(found)


def _stated(path: Path) -> dict[str, Any]:
    """What a tower's own config.json says: a CLIP model's, whose tower is `vision_config`, or the tower's alone."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        tree = tree.get("vision_config", tree)
        heads = int(tree["num_attention_heads"])
        act, epsilon = str(tree["hidden_act"]), float(tree.get("layer_norm_eps", 1e-5))
    except OSError as error:
        raise ModelError(f"--tower {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"--tower {path}: not the configuration of a CLIP vision tower ({error!r})") from error
    shaped = {key: tree[key] for key in ("hidden_size", "patch_size", "image_size", "num_hidden_layers") if key in tree}
    return {**shaped, "num_attention_heads": heads, "hidden_act": act, "layer_norm_eps": epsilon}
