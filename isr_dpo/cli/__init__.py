"""The command line: `isr-dpo`. A module a topic; each adds its subcommands."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from isr_dpo.cli import (
    analyse,
    annotate,
    ask,
    compare,
    data,
    estimate,
    gc,
    models,
    registry,
    report,
    score,
    serve,
    steps,
    world,
)
from isr_dpo.errors import IsrDpoError

EPILOG = """\
examples:
  isr-dpo world draw runs/world                     draw the demo world's clips and questions
  isr-dpo models convert hf://ORG/NAME DEST         a published LLaVA-Hound or ISR-DPO checkpoint, made a policy
  isr-dpo ask CLIP.mp4 "what colour is the object ?" --model models:/isr-dpo-smoke@challenger
  isr-dpo report runs/demo                          write the report page again
  isr-dpo score answers.jsonl --rows msvd.qa.jsonl --out runs/msvd      score any system's predictions
  isr-dpo compare runs/demo:1 runs/demo:3           is policy-03 better than policy-01, question by question?
  isr-dpo estimate RECIPE --run runs/demo           what it will cost, beside what a run has taken
  isr-dpo promote isr-dpo-smoke --dry-run           would the challenger become champion?
  isr-dpo gc runs/demo --dry-run                    which large files nobody needs any more

A whole run is started with: python -m pipelines run RECIPE --run-uri URI
A benchmark of any model:    python -m pipelines evaluate RECIPE --model URI --run-uri URI
"""


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
    for topic in (
        ask,
        world,
        models,
        data,
        report,
        analyse,
        compare,
        score,
        annotate,
        registry,
        estimate,
        gc,
        serve,
        steps,
    ):
        topic.add(commands)
    return parser
