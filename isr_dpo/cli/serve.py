"""`isr-dpo fetch-model`, `isr-dpo serving-patch`: how manifests/serving serves the registry's champion."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from isr_dpo import config
from isr_dpo.cli.options import Commands
from isr_dpo.errors import DataError

ANNOTATION = "isr-dpo/policy"
"""Of a serving pod: the URI of the policy that it serves."""


def add(commands: Commands) -> None:
    fetch = commands.add_parser("fetch-model", help="bring a policy to this machine, its files verified")
    fetch.add_argument("model", help="models:/NAME@ALIAS of MLflow, or the folder or s3:// URI of a finished policy")
    fetch.add_argument("folder", type=Path, help="becomes a link to the policy in the cache (ISR_DPO_CACHE)")
    fetch.add_argument("--pinned", default="", metavar="URI", help="fetch this policy instead, unless it is empty")
    fetch.set_defaults(run=_fetch)
    patch = commands.add_parser("serving-patch", help="the patch that makes a Deployment serve what an alias means now")
    patch.add_argument("model", help="models:/NAME@ALIAS of MLflow")
    patch.add_argument("file", type=Path, help="is written, for kubectl patch --patch-file")
    patch.set_defaults(run=_patch)
    for command in (fetch, patch):
        command.add_argument("--tracking-uri", default=config.Tracking().uri, metavar="URI", help="(%(default)s)")


def _fetch(options: argparse.Namespace) -> None:
    from isr_dpo import manifest

    wanted = options.pinned or options.model
    uri = _source(wanted, options.tracking_uri)
    standing = manifest.find(uri)
    if standing is None or standing.kind != "policy":
        raise DataError(f"{uri}: no finished policy there")
    _link(options.folder, manifest.files(standing))
    print(f"{options.folder}: {uri}")


def _patch(options: argparse.Namespace) -> None:
    policy = _source(options.model, options.tracking_uri)
    patch = {"spec": {"template": {"metadata": {"annotations": {ANNOTATION: policy}}}}}
    options.file.write_text(json.dumps(patch), encoding="utf-8")
    print(f"{options.model} is {policy}")


def _source(model: str, tracking_uri: str) -> str:
    if not model.startswith("models:/"):
        return model
    from isr_dpo.registry import source_of

    return source_of(model, uri=tracking_uri)


def _link(link: Path, folder: Path) -> None:
    """A relative link, so that it holds wherever the volume of both is mounted."""
    if link.exists() and not link.is_symlink():
        raise DataError(f"{link} is there already, and not a link of this command's: name another folder")
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f"{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(folder, link.parent))
    os.replace(new, link)
