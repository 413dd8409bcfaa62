"""`isr-dpo STEP`: one step of a run by hand."""

from __future__ import annotations

import argparse
import json

from isr_dpo import config
from isr_dpo.cli.options import Commands, count

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


def add(commands: Commands) -> None:
    for name, text in STEPS.items():
        step = commands.add_parser(name, help=text, description=f"One step of a run by hand: {text}.")
        step.add_argument("recipe", help="a recipe file, such as pipelines/recipes/smoke.yaml")
        step.add_argument("--run-uri", required=True, metavar="URI", help="a folder, or s3://bucket/prefix")
        step.add_argument("--index", type=count, default=0, metavar="N", help="the round, or the policy (default 0)")
        step.set_defaults(run=_step, step=name)


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
