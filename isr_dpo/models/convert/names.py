"""Where each tensor of the original layout goes: the names that `VideoLlavaForConditionalGeneration` is saved with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

RULE = 1
"""Version of the mapping, for the provenance: raised whenever the same source would give another model."""

PREFIXES = (
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.video_tower.video_tower.", "video_tower."),
    ("model.image_tower.image_tower.", "image_tower."),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
"""Source prefix -> target prefix; the first that fits. What comes after it stays."""

LEFT_OUT = (
    (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "a buffer: computed from rope_theta"),
    (r"model\.(video|image)_tower\.\1_tower\.embeddings\.position_ids", "a buffer: 0, 1, 2 ... to the last patch"),
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WITH_VOCABULARY = (EMBEDDING, HEAD)
"""Source tensors with a row for each token."""
VIDEO_TOWER, IMAGE_TOWER = PREFIXES[2][0], PREFIXES[3][0]

_IN_MEMORY = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", ""),
)
_LAYER = re.compile(r"(.*\.layers\.)(\d+)(\..*)")


class Group(NamedTuple):
    """Tensors that differ in the number of their layer alone, as one: `model.layers.{0..31}.mlp.up_proj.weight`."""

    source: str
    target: str


def target_of(source: str) -> str | None:
    """The saved name of a source tensor; None where no rule knows it."""
    return next((new + source[len(old) :] for old, new in PREFIXES if source.startswith(old)), None)


def left_out(source: str) -> str | None:
    """Why a source tensor has no place in the target; None where it has one."""
    return next((reason for pattern, reason in LEFT_OUT if re.fullmatch(pattern, source)), None)


def saved(name: str) -> str:
    """The saved name of a parameter of the model in memory."""
    return next((new + name[len(old) :] for old, new in _IN_MEMORY if name.startswith(old)), name)


def grouped(pairs: Mapping[str, str]) -> list[Group]:
    """Pairs of names, those of a stack of layers as one, in order."""
    layers: dict[Group, list[int]] = {}
    for source, target in pairs.items():
        old, new = _LAYER.fullmatch(source), _LAYER.fullmatch(target)
        if old is None:
            layers.setdefault(Group(source, target), [])
            continue
        shown = new[1] + "{}" + new[3] if new else target
        layers.setdefault(Group(old[1] + "{}" + old[3], shown), []).append(int(old[2]))
    return [Group(*(name.replace("{}", _range(numbers)) for name in group)) for group, numbers in layers.items()]


def _range(numbers: Iterable[int]) -> str:
    known = sorted(numbers)
    if len(known) < 2 or known != list(range(known[0], known[-1] + 1)):
        return ",".join(map(str, known))
    return f"{{{known[0]}..{known[-1]}}}"
