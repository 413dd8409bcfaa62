"""Prepare: the recipe's rows and videos become a frame store and dataset files, the only data that later steps read.

    sources = read_sources(recipe.data)                                               (sources.py)
    prepare_frames(sources, output, ...)    frames/   shards and indexes              origin: frames_section
    prepare_dataset(sources, output, ...)   dataset/  rows without ground truth       origin: dataset_section

Every distinct video is decoded once. A shard covers a fixed slice of the sorted videos, so that a killed prepare
repeats only the shard in hand.
"""

from __future__ import annotations

import functools
import json
import logging
import queue
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from isr_dpo.data import frames as frame_files
from isr_dpo.data import video as video_files
from isr_dpo.data.clips import hash_clip, local_copy
from isr_dpo.data.decoder import Decoder
from isr_dpo.data.frames import Encoded, FrameStore, FrameWriter, Indexed, encode, index_name
from isr_dpo.data.sources import Sources
from isr_dpo.data.video import Unreadable
from isr_dpo.digests import canonical_digest
from isr_dpo.errors import DataError, StoreError
from isr_dpo.outputs import Output
from isr_dpo.records import Preference, Question, TestRow, read_rows, to_jsonl
from isr_dpo.stores import Missing

Resize = Callable[[np.ndarray], np.ndarray]
"""uint8 [F, H, W, 3] -> uint8 [F, h, w, 3]: the model processor's own resize and crop. Called from several threads."""
Progress = Callable[[int, int], None]
"""(videos done, videos in all)."""

VIDEOS_PER_SHARD = 256
"""Of 8 frames at 224 x 224, about 90 MB a shard [O]: few objects to fetch, and at most some minutes lost to a kill."""

R = TypeVar("R", Question, Preference, TestRow)

log = logging.getLogger(__name__)


def frames_section(sources: Sources, *, frames: int, processor: str) -> str:
    """Digest of all that the pixels depend on: the recipe_section_digest of the frames' Origin. `processor` stands for
    `resize` and its size."""
    return canonical_digest(
        {
            "sampler": video_files.SAMPLER,
            "format": frame_files.FORMAT,
            "videos_per_shard": VIDEOS_PER_SHARD,
            "frames": frames,
            "processor": processor,
            "videos": sources.identities,
        }
    )


def dataset_section(sources: Sources) -> str:
    """Digest of all rows that later steps see: the recipe_section_digest of the dataset's Origin."""
    rows = {"train": sources.questions, "seed": sources.seeds, **{f"set-{n}": rows for n, rows in sources.sets.items()}}
    return canonical_digest({name: to_jsonl(content).decode() for name, content in rows.items()})


def prepare_frames(
    sources: Sources,
    output: Output,
    *,
    frames: int,
    resize: Resize,
    workers: int,
    max_unreadable_fraction: float,
    progress: Progress = lambda done, total: None,
    new_decoder: Callable[[], Decoder] = Decoder,
) -> None:
    """Decodes every distinct video once into `output`: `frames-*.tar`, `index-*.jsonl`. The caller seals it.

    `workers` videos at a time, each in a decoding process of its own.

    Raises:
        DataError: more than `max_unreadable_fraction` of the videos are unreadable. Missing ones are counted before
            anything is decoded, the rest after every shard.
    """
    names = list(sources.videos)
    reasons = {name: _no_file(sources, name) for name in names if sources.identities[name] is None}
    _check_unreadable(reasons, total=len(names), limit=max_unreadable_fraction)
    with _decode_pool(sources, frames=frames, resize=resize, workers=workers, new_decoder=new_decoder) as read_all:
        for number, start in enumerate(range(0, len(names), VIDEOS_PER_SHARD)):
            members = names[start : start + VIDEOS_PER_SHARD]
            if index_name(number) not in output.done:
                _write_shard(
                    number,
                    zip(members, read_all(members), strict=True),
                    output,
                    advance=functools.partial(_advance, progress, start, len(names)),
                )
            progress(start + len(members), len(names))
            reasons |= _set_aside(output.read(index_name(number)))
            _check_unreadable(reasons, total=len(names), limit=max_unreadable_fraction)


def _write_shard(
    number: int,
    results: Iterable[tuple[str, Encoded | Unreadable]],
    output: Output,
    *,
    advance: Callable[[int], None],
) -> None:
    with _scratch() as folder:
        shard = FrameWriter(folder, number=number)
        for done, (name, result) in enumerate(results, start=1):
            if isinstance(result, Encoded):
                shard.add(name, result)
            else:
                shard.set_aside(name, str(result))
            advance(done)
        shard.finish()
        output.put(shard.shard.name, shard.shard)
        output.put(shard.index.name, shard.index)  # last: it says that the shard is complete


def prepare_dataset(
    sources: Sources, output: Output, *, store: FrameStore | None, max_unreadable_fraction: float
) -> dict[str, float]:
    """Writes the rows whose videos have frames into `output`, in their order; returns the metrics. The caller seals it.
    Without a `store` no video is looked at and all rows are written.

    Files: `train-00000.jsonl` (Question), `seed-00000.jsonl` (Preference, `answer` empty), `set-<name>.jsonl` (TestRow
    as published), `videos.jsonl`, `unreadable.jsonl`, `metrics.json`.

    Raises:
        DataError: too many videos are unreadable, or no training row is left.
    """
    unreadable = {} if store is None else store.unreadable()
    _check_unreadable(unreadable, total=len(sources.videos), limit=max_unreadable_fraction)
    questions, seeds = _with_frames(sources.questions, unreadable), _with_frames(sources.seeds, unreadable)
    sets = {name: _with_frames(rows, unreadable) for name, rows in sources.sets.items()}
    for name, kept in {"data.train": questions, **{f"data.sets.{n}": rows for n, rows in sets.items()}}.items():
        if not kept and (name != "data.train" or sources.questions):
            raise DataError(f"{name}: no row is left, the videos of all are unreadable")
    output.write("train-00000.jsonl", to_jsonl(questions))
    output.write("seed-00000.jsonl", to_jsonl(seeds))
    for name, rows in sets.items():
        output.write(f"set-{name}.jsonl", to_jsonl(rows))
    described = [] if store is None else [store.describe(video) for video in store.videos()]
    output.write(
        "videos.jsonl",
        to_jsonl(
            {"video": v.video, "sha256": v.sha256, "frames": len(v.spans), "height": v.height, "width": v.width}
            for v in described
        ),
    )
    missing = [video for video in unreadable if sources.identities[video] is None]
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        log.warning("%d of %d videos are missing: %s", len(missing), len(sources.videos), first)
    output.write("unreadable.jsonl", to_jsonl({"video": v, "reason": why} for v, why in unreadable.items()))
    before = len(sources.questions) + sum(len(rows) for rows in sources.sets.values())
    after = len(questions) + sum(len(rows) for rows in sets.values())
    metrics = {
        "train_rows": float(len(questions)),
        "seed_rows": float(len(seeds)),
        "videos": float(len(described)),
        "unreadable_videos": float(len(unreadable)),
        "missing_videos": float(len(missing)),
        "unreadable_rows": float(before - after),
        **{f"{name}_rows": float(len(rows)) for name, rows in sets.items()},
    }
    output.write("metrics.json", json.dumps(metrics, indent=1).encode())
    return metrics


@contextmanager
def _decode_pool(
    sources: Sources, *, frames: int, resize: Resize, workers: int, new_decoder: Callable[[], Decoder]
) -> Iterator[Callable[[Sequence[str]], Iterable[Encoded | Unreadable]]]:
    """A function that decodes, resizes and encodes videos by name, several at once, results in order."""
    decoders = [new_decoder() for _ in range(workers)]
    free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
    for decoder in decoders:
        free.put(decoder)

    def read(name: str) -> Encoded | Unreadable:
        if sources.identities[name] is None:
            return Unreadable(_no_file(sources, name))
        decoder = free.get()
        try:
            with local_copy(sources.videos[name]) as path:
                decoded = decoder.decode(path, frames=frames)
                sha256 = hash_clip(path)
        except Missing:
            return Unreadable(_no_file(sources, name))
        except Unreadable as error:
            return error
        finally:
            free.put(decoder)
        return encode(_checked(resize(decoded.frames), frames), sha256=sha256)

    executor = ThreadPoolExecutor(workers)
    try:
        yield lambda names: executor.map(read, names)
    finally:
        executor.shutdown(cancel_futures=True)
        for decoder in decoders:
            decoder.close()


def _advance(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _no_file(sources: Sources, name: str) -> str:
    return f"no such file: {sources.videos[name]}"


def _checked(resized: np.ndarray, frames: int) -> np.ndarray:
    if resized.dtype != np.uint8 or resized.ndim != 4 or resized.shape[0] != frames or resized.shape[3] != 3:
        raise ValueError(f"resize gave {resized.dtype} {resized.shape}, expected uint8 ({frames}, h, w, 3)")
    return resized


def _check_unreadable(reasons: Mapping[str, str], *, total: int, limit: float) -> None:
    if len(reasons) <= limit * total:
        return
    first = "".join(f"\n  {video}: {reasons[video]}" for video in sorted(reasons)[:10])
    more = f"\n  ... and {len(reasons) - 10} more" if len(reasons) > 10 else ""
    raise DataError(
        f"{len(reasons)} of {total} videos are unreadable, above data.max_unreadable_fraction {limit:g}; "
        f"mend them, drop their rows, or raise the limit:{first}{more}"
    )


def _set_aside(index: bytes) -> dict[str, str]:
    rows = read_rows(index.decode().split("\n"), Indexed, where="index")
    return {row.video: row.reason for row in rows if row.reason is not None}


def _with_frames(rows: Sequence[R], unreadable: Mapping[str, str]) -> list[R]:
    return [row for row in rows if row.video not in unreadable]


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except OSError as error:
            raise StoreError(f"{folder}: {error.strerror}; free some space or point TMPDIR to another disk") from error
