"""`isr-dpo world`: the demo's small world."""

from __future__ import annotations

import argparse
from pathlib import Path

from isr_dpo.cli.options import Commands, count
from isr_dpo.errors import RecipeError

WORLD = {"seed": 0, "train": 700, "dev": 300, "test": 300, "seed_preferences": 120}
"""The demo's world: its seed, and numbers of questions."""


def add(commands: Commands) -> None:
    world = commands.add_parser("world", help="the demo's small world: clips, questions, starting model")
    actions = world.add_subparsers(title="actions", metavar="ACTION", required=True)
    draw = actions.add_parser("draw", help="draw clips and questions into a folder")
    draw.add_argument("folder", type=Path)
    for option, number in WORLD.items():
        draw.add_argument(
            f"--{option.replace('_', '-')}", type=count, default=number, metavar="N", help="(default %(default)s)"
        )
    draw.set_defaults(run=_draw)
    build = actions.add_parser("build", help="train the starting model from a seed (minutes), print its gate")
    build.add_argument("folder", type=Path)
    build.add_argument("--seed", type=count, default=0, metavar="N")
    build.add_argument("--scale", type=float, default=1.0, help="share of the training steps; for trials (default 1)")
    build.set_defaults(run=_build)
    gate = actions.add_parser("gate", help="does a model's judge read its context? Its accuracy by kind of context")
    gate.add_argument("model", nargs="?", help="a policy folder (default: the start that the package brings)")
    gate.add_argument("--seed", type=count, default=0, metavar="N")
    gate.set_defaults(run=_gate)


def _draw(options: argparse.Namespace) -> None:
    from isr_dpo.data import world

    world.draw(
        options.folder,
        seed=options.seed,
        train=options.train,
        dev=options.dev,
        test=options.test,
        seed_preferences=options.seed_preferences,
        progress=print,
    )


def _build(options: argparse.Namespace) -> None:
    from isr_dpo.data import world

    if not 0 < options.scale <= 1:
        raise RecipeError(f"--scale {options.scale}: accepted: above 0, at most 1")
    print(world.build(options.folder, seed=options.seed, scale=options.scale, progress=print))


def _gate(options: argparse.Namespace) -> None:
    from isr_dpo.data import world

    print(world.gate(Path(options.model) if options.model else world.start(), seed=options.seed, progress=print))
