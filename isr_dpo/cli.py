"""The command line: `isr-dpo`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isr_dpo import config, layout
from isr_dpo.errors import DataError, IsrDpoError, RecipeError

if TYPE_CHECKING:
    from isr_dpo.registry import Promotion

EPILOG = """\
examples:
  isr-dpo world draw runs/world                     draw the demo world's clips and questions
  isr-dpo ask CLIP.mp4 "what colour is the object ?" --model models:/isr-dpo-smoke@challenger
  isr-dpo report runs/demo                          write the report page again
  isr-dpo promote isr-dpo-smoke --dry-run           would the challenger become champion?

A whole run is started with: python -m pipelines run RECIPE --run-uri URI
"""
WORLD = {"seed": 0, "train": 700, "dev": 300, "test": 300, "seed_preferences": 120}
"""The demo's world: its seed, and numbers of questions."""
STEPS = {
    "preflight": "find what would make a run fail",
    "prepare": "decode every video once, check all rows",
    "generate": "two responses to every question of a round",
    "retrospect": "describe every video, or refine the last round's description",
    "judge": "let the policy choose between its two responses",
    "prefer": "these three of a round with one engine, and the answers to the dev set",
    "train": "DPO on a round's preferences; round 0 is the seed DPO",
    "answer": "greedy answers of a policy to the evaluation sets",
    "evaluate": "grade a policy's answers",
    "register": "make a policy a version of the registered model",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; an error of ours is one clear message and the exit code that errors.py states."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
    except IsrDpoError as error:
        if options.debug:
            raise
        print(f"isr-dpo: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if options.debug:
            raise
        print(f"isr-dpo: {error.name} is not installed; pip install 'isr-dpo[local]' brings it", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("isr-dpo: interrupted; what is complete stands, run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="isr-dpo",
        description="Align a video LMM with its own judgement: iterative self-retrospective DPO.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_ask(commands)
    _add_world(commands)
    _add_report(commands)
    _add_registry(commands)
    for name, text in STEPS.items():
        step = commands.add_parser(name, help=text, description=f"One step of a run by hand: {text}.")
        step.add_argument("recipe", help="a recipe file, such as pipelines/recipes/smoke.yaml")
        step.add_argument("--run-uri", required=True, metavar="URI", help="a folder, or s3://bucket/prefix")
        step.add_argument("--index", type=_index, default=0, metavar="N", help="the round, or the policy (default 0)")
        step.set_defaults(run=_step, step=name)
    return parser


def _add_ask(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ask = commands.add_parser("ask", help="ask a policy about a video", description="Ask a policy about a video file.")
    ask.add_argument("video", type=Path, help="a video file")
    ask.add_argument("question", help="in plain words; the demo's model knows the words of its small world")
    ask.add_argument("--model", required=True, help="a policy folder, builtin:world or models:/NAME@ALIAS of MLflow")
    ask.add_argument("--tracking-uri", default=config.Tracking().uri, metavar="URI", help="of MLflow (%(default)s)")
    ask.set_defaults(run=_ask)


def _add_world(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    world = commands.add_parser("world", help="the demo's small world: clips, questions, starting model")
    actions = world.add_subparsers(title="actions", metavar="ACTION", required=True)
    draw = actions.add_parser("draw", help="draw clips and questions into a folder")
    draw.add_argument("folder", type=Path)
    for option, number in WORLD.items():
        draw.add_argument(
            f"--{option.replace('_', '-')}", type=_index, default=number, metavar="N", help="(default %(default)s)"
        )
    draw.set_defaults(run=_world_draw)
    build = actions.add_parser("build", help="train the starting model from a seed (minutes), print its gate")
    build.add_argument("folder", type=Path)
    build.add_argument("--seed", type=_index, default=0, metavar="N")
    build.add_argument("--scale", type=float, default=1.0, help="share of the training steps; for trials (default 1)")
    build.set_defaults(run=_world_build)
    gate = actions.add_parser("gate", help="does a model's judge read its context? Its accuracy by kind of context")
    gate.add_argument("model", nargs="?", help="a policy folder (default: the start that the package brings)")
    gate.add_argument("--seed", type=_index, default=0, metavar="N")
    gate.set_defaults(run=_world_gate)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="write a run's report page again, from its files alone")
    report.add_argument("run_uri", metavar="RUN", help="the run's URI")
    report.set_defaults(run=_report)


def _add_registry(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    promote = commands.add_parser("promote", help="make a registered version the champion")
    promote.add_argument("--version", help="a version's number (default: the alias challenger)")
    promote.add_argument("--force", action="store_true", help="even if worse than the champion, or not comparable")
    promote.set_defaults(run=_promote)
    rollback = commands.add_parser("rollback", help="make the previous champion the champion again")
    rollback.set_defaults(run=_rollback)
    for command in (promote, rollback):
        command.add_argument("name", help="the registered model")
        command.add_argument("--tracking-uri", default=config.Tracking().uri, metavar="URI", help="(%(default)s)")
        command.add_argument("--dry-run", action="store_true", help="say what would happen")


def _index(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _step(options: argparse.Namespace) -> None:
    from isr_dpo import steps
    from isr_dpo.steps.inputs import inputs_of
    from isr_dpo.stores.lock import owner

    recipe = config.load(options.recipe)
    run_id = steps.new_run_id()
    with owner(options.run_uri, run_id):
        inputs = inputs_of(options.step, recipe, options.run_uri, options.index)
        result = steps.run_step(options.step, recipe, inputs, options.run_uri, options.index, run_id=run_id)
    print(json.dumps({"uri": result.manifest.uri, "digest": result.manifest.digest, "metrics": dict(result.metrics)}))


def _ask(options: argparse.Namespace) -> None:
    if not options.video.is_file():
        raise DataError(f"{options.video}: no such file")
    from isr_dpo.ask import Answerer

    print(Answerer(_policy_folder(options.model, options.tracking_uri)).ask(options.video, options.question))


def _policy_folder(model: str, tracking_uri: str) -> Path:
    from isr_dpo import manifest

    if model.startswith("models:/"):
        from isr_dpo.registry import source_of

        model = source_of(model, uri=tracking_uri)
    standing = None if model.startswith(manifest.BUILTIN) else manifest.find(model)
    if standing is not None:
        return manifest.files(standing)
    folder = manifest.local_folder(model)
    if folder is None:
        raise DataError(f"{model}: no finished policy there")
    return folder


def _world_draw(options: argparse.Namespace) -> None:
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


def _world_build(options: argparse.Namespace) -> None:
    from isr_dpo.data import world

    if not 0 < options.scale <= 1:
        raise RecipeError(f"--scale {options.scale}: accepted: above 0, at most 1")
    print(world.build(options.folder, seed=options.seed, scale=options.scale, progress=print))


def _world_gate(options: argparse.Namespace) -> None:
    from isr_dpo.data import world

    print(world.gate(Path(options.model) if options.model else world.start(), seed=options.seed, progress=print))


def _report(options: argparse.Namespace) -> None:
    from isr_dpo import report
    from isr_dpo.stores import Missing, read_bytes

    try:
        tree = json.loads(read_bytes(layout.run_file(options.run_uri)))
    except Missing:
        raise DataError(f"{options.run_uri}: no run.json there, so no run") from None
    print(report.build(options.run_uri, config.parse(json.dumps(tree["recipe"]))))


def _promote(options: argparse.Namespace) -> None:
    from isr_dpo import registry

    print(
        _told(
            registry.promote(
                options.name,
                uri=options.tracking_uri,
                version=options.version,
                force=options.force,
                dry_run=options.dry_run,
            )
        )
    )


def _rollback(options: argparse.Namespace) -> None:
    from isr_dpo import registry

    print(_told(registry.rollback(options.name, uri=options.tracking_uri, dry_run=options.dry_run)))


def _told(promotion: Promotion) -> str:
    verb = "is now" if promotion.done else "would be"
    before = f", after version {promotion.previous}" if promotion.previous else ""
    return f"{promotion.name}: version {promotion.champion} {verb} the champion{before} ({promotion.reason})"


if __name__ == "__main__":
    sys.exit(main())
