"""`python -m pipelines compile | submit | run | evaluate`: the loop, or a benchmark, on a cluster or here."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isr_dpo.config import Recipe
from isr_dpo.errors import IsrDpoError, RecipeError
from isr_dpo.outputs import STRICT_CODE
from pipelines import recipe_files

RECIPE = "a recipe file, the name of a packaged recipe (smoke), or the URI of a run, whose recipe it is then"
PLACEMENT = "where tasks run: a placement file, or the name of a packaged one (local, gke, eks, aks; default: local)"
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
    compile_.add_argument("--placement", default="local", metavar="PLACEMENT", help=PLACEMENT)
    compile_.add_argument(
        "-o", "--output", type=Path, help="the package's file (default: build/<recipe>-<placement>.yaml)"
    )
    compile_.add_argument(
        "--kubernetes-manifest",
        action="store_true",
        help="write it as Pipeline and PipelineVersion objects, for kubectl apply --server-side",
    )
    compile_.add_argument("--namespace", metavar="NAME", help="of these objects")
    compile_.set_defaults(command=_compile)
    run = commands.add_parser("run", help="run the pipeline on this machine; run it again to go on or to verify")
    run.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    run.set_defaults(command=_run)
    _add_submit(commands)
    evaluate = commands.add_parser("evaluate", help="benchmark a model on the recipe's sets: train nothing")
    evaluate.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    evaluate.add_argument(
        "--model", metavar="URI", help="a model folder, s3://, hf:// or models:/NAME@ALIAS (default: the recipe's)"
    )
    evaluate.set_defaults(command=_evaluate)
    for command in (run, evaluate):
        command.add_argument(
            "--run-uri", required=True, metavar="URI", help="where the run lies: a folder, or s3://bucket/prefix"
        )
        command.add_argument("--run-id", metavar="ID", help="who holds the run's lock (default: a new one)")
        command.add_argument("--strict-code", action="store_true", help="refuse finished work that other code has made")
    for command in commands.choices.values():
        command.add_argument("--variant", metavar="NAME", help="of those in the recipe file, such as an ablation")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change a key of the recipe, as often as needed",
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_submit(commands: Any) -> None:
    submit = commands.add_parser(
        "submit", help="run the pipeline on a cluster: everything it needs is checked first; submit again to go on"
    )
    submit.add_argument("recipe", nargs="?", metavar="RECIPE", help=RECIPE + "; with --fork by default that run's")
    submit.add_argument("--placement", default="local", metavar="PLACEMENT", help=PLACEMENT)
    submit.add_argument("--run-uri", required=True, metavar="URI", help="where the run lies: s3://bucket/prefix")
    submit.add_argument("--host", metavar="URL", help="of Kubeflow Pipelines (default: by the kubeconfig)")
    submit.add_argument("--namespace", metavar="NAME", help="of the run's pods (default: the kubeconfig's)")
    submit.add_argument("--experiment", default="isr-dpo", metavar="NAME", help="in KFP (default: isr-dpo)")
    submit.add_argument("--fork", metavar="POLICY", help="start from another run's policy: s3://bucket/run/policy-03")
    submit.add_argument("--follow", action="store_true", help="stay until the run has ended, with its exit code")
    submit.add_argument("--dry-run", action="store_true", help="check everything, start nothing")
    submit.add_argument(
        "--without-kubernetes", action="store_true", help="check nothing that only Kubernetes itself can tell"
    )
    submit.set_defaults(command=_submit)


def _submit(options: argparse.Namespace) -> int:
    from pipelines import placement as placements

    place = placements.load(options.placement)
    if options.fork is not None:
        from pipelines.fork import fork

        recipe, reuses = fork(options.fork, recipe=options.recipe, variant=options.variant, changes=options.set)
    elif options.recipe is None:
        raise RecipeError("submit: a RECIPE, or --fork POLICY")
    else:
        recipe, reuses = _recipe(options), None
    recipe = placements.fitted(recipe, place)
    from pipelines.submit import Target, submit

    target = Target(options.host, options.namespace, options.experiment, not options.without_kubernetes)
    return submit(
        recipe,
        place,
        options.run_uri.rstrip("/"),
        target,
        reuses=reuses,
        dry_run=options.dry_run,
        followed=options.follow,
    )


def _compile(options: argparse.Namespace) -> int:
    from pipelines import placement as placements

    placement = placements.load(options.placement)
    recipe = placements.fitted(_recipe(options), placement)
    from pipelines.package import write

    output = options.output or Path("build") / f"{recipe.name}-{placement.name}.yaml"
    write(recipe, output, placement, as_objects=options.kubernetes_manifest, namespace=options.namespace)
    what = f"{len(recipe.data.sets)} sets" if recipe.is_benchmark else f"{recipe.iterations} policies"
    print(f"{output}: {what}, recipe {recipe.digest()[:12]}")
    if options.kubernetes_manifest:  # otherwise kubectl keeps a copy in an annotation, which takes 256 KiB
        print(f"kubectl apply --server-side -f {output}")
    return 0


def _run(options: argparse.Namespace) -> int:
    return _through(_recipe(options), options)


def _evaluate(options: argparse.Namespace) -> int:
    changes = ["iterations=0"]
    if options.model is not None:
        model = options.model
        if model.startswith("models:/"):
            from isr_dpo.mlflow_client import tracking_uri
            from isr_dpo.registry import source_of

            model = source_of(model, uri=tracking_uri(_recipe(options)))
        changes.append(f"model.start={json.dumps(model)}")
    return _through(_recipe(options, *changes), options)


def _recipe(options: argparse.Namespace, *changes: str) -> Recipe:
    return recipe_files.load(options.recipe, variant=options.variant, changes=[*options.set, *changes])


def _through(recipe: Recipe, options: argparse.Namespace) -> int:
    if options.strict_code:
        os.environ[STRICT_CODE] = "1"  # the steps' processes inherit it
    from pipelines.local import run

    return run(recipe, options.run_uri, run_id=options.run_id)


if __name__ == "__main__":
    sys.exit(main())
