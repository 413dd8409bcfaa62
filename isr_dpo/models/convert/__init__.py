"""From the original layout of LLaVA-Hound, ISR-DPO and Video-LLaVA to a policy that everything here loads.

    source.py       a checkpoint as it was published: config, index, headers; fetched.py brings one from a hub or S3
    names.py        which tensor becomes which
    towers.py       what the weights do not say of a vision tower
    tokenizer.py    SentencePiece's ids, from a tokenizer that transformers and vLLM load
    target.py       the policy's configuration, processor and tensors, compared with its class
    shards.py       weights, a tensor at a time
    destination.py  a folder or a prefix in S3 that is complete or absent

All is checked before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from isr_dpo.digests import code_version, hash_file
from isr_dpo.models.convert import names, shards
from isr_dpo.models.convert.destination import check_free, check_room, staged
from isr_dpo.models.convert.fetched import fetched as fetched
from isr_dpo.models.convert.source import CONFIG, TOKENIZER, Source, open_source
from isr_dpo.models.convert.target import Target, target
from isr_dpo.models.convert.tokenizer import ADDED, convert_tokenizer
from isr_dpo.models.convert.tokenizer import CONFIG as TOKENIZER_CONFIG
from isr_dpo.models.convert.towers import vision_config
from isr_dpo.progress import Progress

ClassToken = Literal["keep", "drop"]
"""Of each frame: among the video tokens (Hugging Face's form, PKU's models), or not (LLaVA-Hound, ISR-DPO)."""

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Plan:
    """A conversion that has been checked."""

    source: Source
    target: Target
    options: Mapping[str, Any]


def plan(folder: Path, *, class_token: ClassToken | None = None, tower: Path | None = None) -> Plan:
    """Checks a source and works out what becomes of it; reads headers alone.

    `class_token` None: as LLaVA-Hound reads the source's `mm_vision_select_feature` [C]: `patch` drops it. PKU's code
    keeps it for videos whatever that says, with the same config: "keep" is for their models. `tower` is a vision
    tower's own config.json.

    Raises:
        ModelError: naming the file or tensor that cannot be converted, and why.
    """
    source = open_source(folder)
    vocabulary = convert_tokenizer(folder, source.config)
    keep = source.config["mm_vision_select_feature"] == "cls_patch" if class_token is None else class_token == "keep"  # noqa: S105
    vision = vision_config(source, tower)
    made = target(source, vision, vocabulary, keep_class_token=keep)
    stated = None if tower is None else json.loads(tower.read_text(encoding="utf-8"))
    return Plan(source, made, {"class_token": "keep" if keep else "drop", "tower": stated})


def convert(plan: Plan, destination: str, *, named: str | None = None) -> None:
    """Writes the policy to `destination`, a folder or an s3:// prefix; `named` is the source's name in its provenance.

    Raises:
        ModelError: something is there already, or the disk has too little space.
        RunBusy: another process converts to the same destination.
        StoreError: it cannot be written.
    """
    check_free(destination)
    check_room(destination, plan.target.bytes)
    with staged(destination) as folder:
        made = plan.target
        digests = _write_weights(plan, folder)
        made.processor.save_pretrained(folder)
        made.generation.save_pretrained(folder)
        (folder / PROVENANCE).write_text(json.dumps(_provenance(plan, digests, named), indent=1), encoding="utf-8")
        made.config.save_pretrained(folder)


def _write_weights(plan: Plan, folder: Path) -> dict[Path, str]:
    """Writes shards and index; returns the digest of each source shard, hashed while it is in the page cache."""
    made, digests = plan.target, dict[Path, Future[str]]()
    progress = Progress("convert", made.bytes >> 20, "MiB")
    told = _Rounded(progress)
    with ThreadPoolExecutor(1) as hashing:
        for shard in plan.source.shards:
            digests[shard.path] = hashing.submit(hash_file, shard.path)
            for written in (found for found in made.shards if found.source == shard.path):
                with shards.opened(shard.path) as read:
                    shards.write(folder / written.name, written.entries, read, told)
            digests[shard.path].result()
    if len(made.shards) > 1:
        places = {entry.target: shard.name for shard in made.shards for entry in shard.entries}
        index = {"metadata": {"total_size": made.bytes}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return {path: digest.result() for path, digest in digests.items()}


class _Rounded:
    """Bytes, told as whole MiB."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._rest = progress, 0

    def __call__(self, done: int) -> None:
        whole, self._rest = divmod(self._rest + done, 1 << 20)
        if whole:
            self._progress(whole)


def _provenance(plan: Plan, digests: Mapping[Path, str], named: str | None) -> dict[str, Any]:
    folder = plan.source.folder
    others = [folder / name for name in (CONFIG, TOKENIZER, TOKENIZER_CONFIG, ADDED) if (folder / name).is_file()]
    known = {**{path: hash_file(path) for path in others}, **digests}
    return {
        "source": named or folder.name,
        "files": {path.name: {"size": path.stat().st_size, "sha256": digest} for path, digest in sorted(known.items())},
        "options": dict(plan.options),
        "left_out": dict(plan.target.left_out),
        "rule": names.RULE,
        "code_version": code_version(),
    }
