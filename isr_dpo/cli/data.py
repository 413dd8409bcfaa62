"""`isr-dpo data`: the published rows and videos, before a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isr_dpo.cli.options import Commands, count
from isr_dpo.errors import DataError, OutsideError

if TYPE_CHECKING:
    from isr_dpo.data.fetch import Fetched

SHOWN = 3
"""Of a list that may be long."""


def add(commands: Commands) -> None:
    data = commands.add_parser("data", help="bring published videos to a store, cut a dev set, see what is missing")
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_fetch(actions)
    _add_dev(actions)
    _add_check(actions)


def _add_fetch(actions: Commands) -> None:
    fetch = actions.add_parser(
        "fetch",
        help="bring the clips that rows name from published archives to a store, as a stream",
        description="Reads archives once, as a stream, and stores the clips that the rows name, each as one object: "
        "<clip id>.tar of frames, or the video file. Interrupted, the same command goes on.",
    )
    fetch.add_argument(
        "source",
        help="a folder or s3:// prefix of archives, https://server/folder/ (with --chunks), one URL, a .txt file "
        "with a URL a line, or hf://datasets/ORGANISATION/NAME[@REVISION]/FOLDER (HF_TOKEN and HF_ENDPOINT are read)",
    )
    fetch.add_argument("dest", help="a folder, or s3://bucket/prefix: the recipe's data.videos")
    fetch.add_argument(
        "--rows",
        action="append",
        required=True,
        metavar="FILE",
        help="JSONL whose rows name videos; also of a hub, hf://datasets/ORGANISATION/NAME/FILE; as often as needed",
    )
    fetch.add_argument(
        "--rows-to", metavar="FOLDER", help="copy these files there, too: a folder, or s3://bucket/prefix"
    )
    fetch.add_argument(
        "--chunks", nargs="+", default=[], metavar="NAME", help="these archives alone, such as 'chunk_{0..15}.tar.gz'"
    )
    fetch.add_argument("--workers", type=count, default=2, metavar="N", help="archives at a time (default %(default)s)")
    fetch.add_argument("--allow-missing", action="store_true", help="clips that are in no archive are no failure")
    fetch.set_defaults(run=_fetch)


def _add_dev(actions: Commands) -> None:
    dev = actions.add_parser(
        "dev",
        help="cut a dev set from the training rows or from others, disjoint by video from all test files",
        description="Writes FOLDER/train.jsonl, the rows that stay, and FOLDER/dev.qa.jsonl (with --captions) or "
        "dev.qa.official.jsonl (without), in the published schema. The same seed gives the same files.",
    )
    dev.add_argument("rows", help="rows with ground truths: training rows, or (--alone) published conversations")
    dev.add_argument(
        "--against",
        nargs="+",
        required=True,
        metavar="FILE",
        help="all test files; with --alone what is trained on too",
    )
    dev.add_argument(
        "--alone", action="store_true", help="nobody trains on these rows: write the dev set, and no train.jsonl"
    )
    dev.add_argument(
        "--answer-words", type=count, metavar="N", help="rows with longer ground truths, such as captions, are left out"
    )
    dev.add_argument("--questions", type=count, default=2000, metavar="N", help="(default %(default)s)")
    dev.add_argument("--out", required=True, metavar="FOLDER", help="a folder, or s3://bucket/prefix")
    dev.add_argument("--seed", type=count, default=0, metavar="N")
    dev.add_argument("--captions", metavar="FILE", help="JSONL: video, and caption or a published conversation")
    dev.set_defaults(run=_dev)


def _add_check(actions: Commands) -> None:
    check = actions.add_parser("check", help="list which of a recipe's videos are there, and which are missing")
    check.add_argument("recipe", help="a recipe file")
    check.add_argument("--list", type=Path, metavar="FILE", help="write every missing video there, as JSONL")
    check.set_defaults(run=_check)


def _fetch(options: argparse.Namespace) -> None:
    from isr_dpo.data.fetch import fetch

    fetched = fetch(
        options.source,
        options.dest,
        rows=options.rows,
        chunks=options.chunks,
        workers=max(1, options.workers),
    )
    print(_table(fetched))
    if options.rows_to is not None:
        _copy(options.rows, options.rows_to)
    failed = [outcome for outcome in fetched.outcomes if outcome.failure is not None]
    if failed:
        again = any(isinstance(outcome.failure, OutsideError) for outcome in failed)
        message = f"{len(failed)} of {len(fetched.outcomes)} chunks failed; run the same command again to go on:"
        lines = [message, *(f"  {outcome.failure}" for outcome in failed)]
        raise (OutsideError if again else DataError)("\n".join(lines))
    if fetched.missing and not options.allow_missing:
        first = ", ".join(fetched.missing[:SHOWN]) + (", ..." if len(fetched.missing) > SHOWN else "")
        raise DataError(
            f"{len(fetched.missing)} of {fetched.wanted} clips are in none of the chunks ({first}): "
            f"{options.dest}/missing.jsonl lists them; --allow-missing takes this for success"
        )


def _copy(files: Sequence[str], folder: str) -> None:
    from isr_dpo.stores import join, read_bytes, write_bytes

    for uri in files:
        place = join(folder, uri.rpartition("/")[2])
        if place != uri:
            write_bytes(place, read_bytes(uri))
            print(f"{place}: as {uri}")


def _table(fetched: Fetched) -> str:
    width = max(len(outcome.chunk) for outcome in fetched.outcomes)
    lines = [f"{'chunk':<{width}}  {'state':<10}  {'clips':>7}  {'stored':>7}  {'GB read':>8}"]
    lines += [
        f"{o.chunk:<{width}}  {o.state:<10}  {o.clips:>7}  {o.stored:>7}  {o.read_bytes / 1e9:>8.2f}"
        for o in fetched.outcomes
    ]
    there = fetched.wanted - len(fetched.missing)
    return "\n".join([*lines, f"{there} of {fetched.wanted} clips are there, {len(fetched.missing)} are missing"])


def _dev(options: argparse.Namespace) -> None:
    from isr_dpo.data.dev import cut_dev

    cut = cut_dev(
        options.rows,
        against=options.against,
        questions=options.questions,
        out=options.out,
        seed=options.seed,
        captions=options.captions,
        alone=options.alone,
        answer_words=options.answer_words,
    )
    print(
        f"{cut.dev_uri}: {cut.dev_questions} questions about {cut.dev_clips} clips, none of them in a file of --against"
    )
    if cut.train_uri is None:
        print(f"in the recipe: data.sets.dev: {cut.dev_uri}")
        return
    print(f"{cut.train_uri}: {cut.train_rows} rows")
    if cut.shared_clips:
        print(f"note: {cut.shared_clips} training clips stand in a test file too; training keeps them, as published")
    print(f"in the recipe: data.train: {cut.train_uri}, data.sets.dev: {cut.dev_uri}, data.videos: where the clips lie")


def _check(options: argparse.Namespace) -> None:
    from isr_dpo import config
    from isr_dpo.data.check import check_data
    from isr_dpo.records import to_jsonl
    from isr_dpo.stores import write_bytes

    recipe = config.load(options.recipe)
    found = check_data(recipe)
    for file in found.files:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(file.kinds.items()))
        print(f"{file.key}: {file.rows} rows, {file.videos} videos: {kinds}")
    for pair, number in found.shared.items():
        print(f"note: {pair} share {number} clips")
    if options.list:
        rows = ({"video": video, "looked_for": at} for video, at in found.missing.items())
        write_bytes(str(options.list), to_jsonl(rows))
    missing = f"{len(found.missing)} of {found.videos} videos are missing"
    if len(found.missing) > recipe.data.max_unreadable_fraction * found.videos:
        first = "".join(f"\n  {at}" for at in list(found.missing.values())[:SHOWN])
        raise DataError(
            f"{missing}, above data.max_unreadable_fraction {recipe.data.max_unreadable_fraction:g}; --list writes "
            f"them all:{first}"
        )
    print(missing)
