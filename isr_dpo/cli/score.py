"""`isr-dpo score`: any system's predictions, in the published format."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from isr_dpo import config
from isr_dpo.cli.options import Commands
from isr_dpo.errors import RecipeError
from isr_dpo.records import UNSCORED

if TYPE_CHECKING:
    from rich.table import Table

_SET = "predictions"


def add(commands: Commands) -> None:
    score = commands.add_parser(
        "score",
        help="score a prediction file, whoever made it",
        description="Scores predictions in the published format (id, modal_path, query, answer, model_prediction) "
        "against the rows of their test file. Run again, it goes on from what stands.",
    )
    score.add_argument("predictions", metavar="PREDICTIONS.jsonl", help="a path or s3:// URI")
    score.add_argument("--rows", required=True, metavar="SET.qa.jsonl", help="the test file: *.qa[.official].jsonl")
    score.add_argument("--out", required=True, metavar="FOLDER", help="takes grades/, and what was paid for it")
    score.add_argument("--protocol", choices=("caption", "official"), help="default: as the test file's name says")
    score.add_argument("--reading", choices=("strict", "compat"), default="strict", help="default: strict")
    score.add_argument("--grader", choices=("rules", "openai"), default="rules", help="default: rules, which is free")
    score.add_argument("--model", metavar="NAME", help="of the grader openai")
    score.add_argument("--base-url", metavar="URL", help="of another OpenAI-compatible server")
    score.add_argument(
        "--replies",
        metavar="GRADES",
        help="ask nobody: read the replies again that stand in this evaluation (a folder), or in a public script's "
        "result file (JSONL of id and response)",
    )
    score.add_argument(
        "--evaluate",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another key of the recipe's section evaluate, such as max_requests=500; as often as needed",
    )
    score.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    from rich.console import Console

    from isr_dpo.steps.score import read_replies, score

    replies = None if options.replies is None else read_replies(options.replies)
    result = score(_recipe(options), options.out, replies=replies)
    console = Console()
    console.print(_table(result.metrics, _said(result.manifest.uri)))
    for line in _below(result.metrics):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(result.manifest.uri, highlight=False, markup=False, soft_wrap=True)


def _recipe(options: argparse.Namespace) -> config.Recipe:
    """The benchmark of one set that the options describe, so that all keys have their one meaning."""
    if options.grader == "rules" and (options.model or options.base_url):
        raise RecipeError("--model and --base-url are of --grader openai; the rules ask no model")
    given = {"grader": options.grader, "reading": options.reading, "model": options.model, "base_url": options.base_url}
    evaluate = {key: value for key, value in given.items() if value is not None}
    if options.protocol is not None:
        evaluate["protocols"] = {_SET: options.protocol}
    tree = {
        "name": "score",
        "iterations": 0,
        "data": {"sets": {_SET: options.rows}},
        "answer": {"predictions": {_SET: options.predictions}},
        "evaluate": evaluate,
    }
    changes = [f"evaluate.{change}" for change in options.evaluate]
    return config.parse(json.dumps(tree), where="isr-dpo score", changes=changes)


def _said(uri: str) -> Mapping[str, str | None]:
    from isr_dpo.stores import join, read_bytes

    said: dict[str, str | None] = json.loads(read_bytes(join(uri, "protocol.json")))
    return said


def _table(metrics: Mapping[str, float], said: Mapping[str, str | None]) -> Table:
    from rich.table import Table

    model = f" {said['model']}" if said["model"] not in (None, said["grader"]) else ""
    title = f"graded by {said['grader']}{model}, {said['protocol']} protocol; * the headline"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for name in ("reading", "accuracy %", "score", "scored", "of"):
        table.add_column(name, justify="left" if name == "reading" else "right")
    for how in ("strict", "compat"):
        chosen = how == said["reading"]
        accuracy = _figure(metrics, how, "accuracy", 100, 2, chosen=chosen)
        points = _figure(metrics, how, "score", 1, 2, chosen=chosen)
        scored, rows = f"{metrics[f'{how}_scored']:.0f}", f"{metrics['rows']:.0f}"
        table.add_row(f"{how}{' *' if chosen else ''}", accuracy, points, scored, rows)
    return table


def _figure(metrics: Mapping[str, float], how: str, name: str, scale: float, digits: int, *, chosen: bool) -> str:
    """The headline's with its 95 % interval."""
    value = metrics.get(f"{how}_{name}")
    if value is None:
        return "-"
    shown = f"{scale * value:.{digits}f}"
    if not chosen:
        return shown
    low, high = (f"{scale * metrics[f'{name}_{end}']:.{digits}f}" for end in ("low", "high"))
    return f"{shown} [{low}, {high}]"


def _below(metrics: Mapping[str, float]) -> list[str]:
    lines = [
        f"{metrics[f'unscored_{reason}']:.0f} unscored: {why}"
        for reason, why in UNSCORED.items()
        if metrics[f"unscored_{reason}"]
    ]
    if metrics["bought"]:
        lines.append(f"{metrics['bought']:.0f} grades bought for {metrics['cost_usd']:.4f} USD")
    return lines
