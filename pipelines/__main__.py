"""`python -m pipelines compile | run`: the loop as a package for a cluster, or on this machine."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from isr_dpo.errors import IsrDpoError
from isr_dpo.manifest import STRICT_CODE
from pipelines import recipe_files

RECIPE = "a recipe file, or the name of a packaged recipe (smoke)"
STOPPED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (isr_dpo/errors.py lists them)."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except IsrDpoError as error:
        if options.debug:
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if options.debug:
            raise
        print("stopped; the same command goes on from what is finished", file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description="The ISR-DPO loop as a pipeline.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compile_ = commands.add_parser("compile", help="write the pipeline package, which then needs only a run URI")
    compile_.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    compile_.add_argument("--placement", choices=["local"], default="local", help="where tasks run (default: local)")
    compile_.add_argument(
        "-o", "--output", type=Path, help="the package's file (default: build/<recipe>-<placement>.yaml)"
    )
    compile_.set_defaults(command=_compile)
    run = commands.add_parser("run", help="run the pipeline on this machine; run it again to go on or to verify")
    run.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    run.add_argument(
        "--run-uri", required=True, metavar="URI", help="where the run lies: a folder, or s3://bucket/prefix"
    )
    run.add_argument("--run-id", metavar="ID", help="who holds the run's lock (default: a new one)")
    run.add_argument("--strict-code", action="store_true", help="refuse finished work that other code has made")
    run.set_defaults(command=_run)
    for command in (compile_, run):
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change a key of the recipe, as often as needed",
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _compile(options: argparse.Namespace) -> int:
    recipe = recipe_files.load(options.recipe, changes=options.set)
    from pipelines.package import write

    output = options.output or Path("build") / f"{recipe.name}-{options.placement}.yaml"
    write(recipe, output)
    print(f"{output}: {recipe.iterations} policies, recipe {recipe.digest()[:12]}")
    return 0


def _run(options: argparse.Namespace) -> int:
    recipe = recipe_files.load(options.recipe, changes=options.set)
    if options.strict_code:
        os.environ[STRICT_CODE] = "1"  # the steps' processes inherit it
    from pipelines.local import run

    return run(recipe, options.run_uri, run_id=options.run_id)


if __name__ == "__main__":
    sys.exit(main())
