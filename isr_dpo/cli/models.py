"""`isr-dpo models`: published checkpoints, before a run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from isr_dpo.cli.options import Commands

if TYPE_CHECKING:
    from isr_dpo.models.convert import Plan


def add(commands: Commands) -> None:
    models = commands.add_parser("models", help="bring a published checkpoint to the layout that runs start from")
    actions = models.add_subparsers(title="actions", metavar="ACTION", required=True)
    convert = actions.add_parser(
        "convert",
        help="from the original layout of LLaVA-Hound, ISR-DPO and Video-LLaVA",
        description="Makes a policy (safetensors, processor, chat template) of a checkpoint in the original layout. "
        "Everything is checked before anything is written: every tensor is used, or left out with a printed reason. "
        "The destination is complete or absent; an interrupted conversion is begun again by the same command.",
    )
    convert.add_argument("source", help="a folder, s3://bucket/prefix, or hf://ORGANISATION/NAME[@REVISION]")
    convert.add_argument("dest", help="a folder, or s3://bucket/prefix: a recipe's model.start")
    convert.add_argument(
        "--class-token",
        choices=("keep", "drop"),
        help="of each frame, among the video tokens or not (default: as LLaVA-Hound reads mm_vision_select_feature: "
        "patch drops it, 2048 tokens for 8 frames; Video-LLaVA's own models want keep, 2056)",
    )
    convert.add_argument("--tower", type=Path, metavar="FILE", help="config.json of a vision tower that is not known")
    convert.add_argument("--dry-run", action="store_true", help="show what would be done, write nothing")
    convert.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> None:
    from isr_dpo.models import convert
    from isr_dpo.models.convert.destination import check_free, check_room

    check_free(options.dest)
    with convert.fetched(options.source, keep=options.dry_run) as found:
        plan = convert.plan(found.folder, class_token=options.class_token, tower=options.tower)
        print("\n".join(_mapping(plan) if options.dry_run else _left_out(plan)))
        print("\n".join(_summary(plan, options.dest)))
        if options.dry_run:
            check_room(options.dest, plan.target.bytes)
            print("nothing was written: --dry-run")
            return
        convert.convert(plan, options.dest, named=found.uri)
    print(f"{options.dest}: converted; in a recipe: model.start: {options.dest}")


def _mapping(plan: Plan) -> Iterator[str]:
    from isr_dpo.models.convert.names import grouped

    groups = sorted(grouped(plan.target.pairs), key=lambda group: group.target)
    width = max(len(group.source) for group in groups)
    yield from (f"{group.source:<{width}} -> {group.target}" for group in groups)
    yield from _left_out(plan)


def _left_out(plan: Plan) -> Iterator[str]:
    from isr_dpo.models.convert.names import grouped

    if plan.target.left_out:
        yield "left out:"
        yield from (f"  {name}: {why}" for name, why in grouped(plan.target.left_out))
    yield from (f"not read: {name}, no part of the model by its index" for name in plan.source.unread)


def _summary(plan: Plan, dest: str) -> Iterator[str]:
    made, source = plan.target, plan.source
    config, vision = made.config, made.config.vision_config
    over_time = f"attention over {vision.num_frames} frames" if getattr(vision, "add_time_attn", False) else "no time"
    words, tokens = config.text_config.vocab_size, config.video_seq_length
    yield (
        f"{len(source.tensors)} tensors in {len(source.shards)} files, {source.bytes / 1e9:.2f} GB: "
        f"{len(made.pairs)} used, {len(made.left_out)} left out"
    )
    yield f"towers: {vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.hidden_act}, {over_time}"
    yield f"class token: {plan.options['class_token']}, {tokens} tokens a video; vocabulary {words}"
    dtype = str(config.dtype).removeprefix("torch.")
    yield f"to write: {dest}, {len(made.shards)} files of weights, {made.bytes / 1e9:.2f} GB, {dtype}:"
    for shard in made.shards:
        size = sum(entry.bytes for entry in shard.entries)
        yield f"  {shard.name}  {size / 1e9:.2f} GB, of {shard.source.name}"
    yield "  config, generation config, processor, tokenizer, chat template, provenance.json"
