"""`isr-dpo ask`: a policy's answer about a video."""

from __future__ import annotations

import argparse
from pathlib import Path

from isr_dpo import config
from isr_dpo.cli.options import Commands
from isr_dpo.errors import DataError


def add(commands: Commands) -> None:
    ask = commands.add_parser("ask", help="ask a policy about a video", description="Ask a policy about a video.")
    ask.add_argument("video", type=Path, help="a video file, a folder of frames, or a tar of these")
    ask.add_argument("question", help="in plain words; the demo's model knows the words of its small world")
    ask.add_argument("--model", required=True, help="a policy folder, builtin:world or models:/NAME@ALIAS of MLflow")
    ask.add_argument("--tracking-uri", default=config.Tracking().uri, metavar="URI", help="of MLflow (%(default)s)")
    ask.set_defaults(run=_ask)


def _ask(options: argparse.Namespace) -> None:
    if not options.video.exists():
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
