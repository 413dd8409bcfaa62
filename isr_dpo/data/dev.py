"""A dev set cut from the training rows, by video: no clip of it stands in a test file, or stays in training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isr_dpo.data import rows as row_files
from isr_dpo.data.clips import clip_id
from isr_dpo.data.rows import Located, Named, TrainRow
from isr_dpo.errors import DataError
from isr_dpo.records import Row, Turn, to_jsonl
from isr_dpo.stores import join, write_bytes


class _Answered(TrainRow):
    """With the ground truth, which becomes the dev set's."""

    answer: str = ""


class _Captioned(Row):
    """A published caption: under its own key, or as the second turn of a conversation [C]."""

    video: str
    caption: str | None = None
    conversations: tuple[Turn, ...] = ()

    @property
    def text(self) -> str | None:
        return self.caption or (self.conversations[1].value if len(self.conversations) > 1 else None)


@dataclass(frozen=True)
class Cut:
    """What became of the training rows."""

    dev_uri: str
    train_uri: str
    dev_questions: int
    dev_clips: int
    train_rows: int
    shared_clips: int
    """Training clips that stand in a test file too: never in dev; training keeps them, as published."""


def cut_dev(
    train: str, *, against: Sequence[str], questions: int, out: str, seed: int = 0, captions: str | None = None
) -> Cut:
    """Writes `train.jsonl` (the rows that stay, as they were) and the dev set, in the published test schema: with
    `captions` dev.qa.jsonl, without dev.qa.official.jsonl, for the protocol that needs none.

    Whole clips are taken, in an order that the seed and their ids alone decide, until there are `questions` of them or
    a few more. The ground truth is the rows' `answer`. Clips are the same where their ids are (`clips.clip_id`).

    Raises:
        DataError: file and line of a bad row, or of one without an answer; too few clips outside the test files, or
            with captions; no row left to train on.
    """
    rows = list(row_files.unique(row_files.read(train, _Answered, key="TRAIN")))
    by_clip: dict[str, list[Located[_Answered]]] = {}
    for located in rows:
        by_clip.setdefault(clip_id(located.row.video), []).append(located)
    held_out = {clip_id(r.row.video) for uri in against for r in row_files.read(uri, Named, key="--against")}
    texts = _captions(captions, by_clip) if captions is not None else None
    free = [clip for clip in by_clip if clip not in held_out and (texts is None or clip in texts)]
    chosen = _choose(sorted(free, key=lambda clip: _draw(seed, clip)), by_clip, questions, captions)
    dev = [_test_row(each, texts) for each in rows if clip_id(each.row.video) in chosen]
    kept = [each.text.rstrip("\r\n") + "\n" for each in rows if clip_id(each.row.video) not in chosen]
    if not kept:
        raise DataError(f"{train}: {questions} questions leave no row to train on; ask for fewer")
    dev_uri, train_uri = join(out, f"dev.qa{'.official' if texts is None else ''}.jsonl"), join(out, "train.jsonl")
    write_bytes(dev_uri, to_jsonl(dev))
    write_bytes(train_uri, "".join(kept).encode())
    story = {"train": train, "against": list(against), "captions": captions, "seed": seed, "clips": sorted(chosen)}
    write_bytes(join(out, "dev.json"), (json.dumps(story, indent=1, ensure_ascii=False) + "\n").encode())
    return Cut(dev_uri, train_uri, len(dev), len(chosen), len(kept), len(held_out & by_clip.keys()))


def _choose(
    clips: Sequence[str], by_clip: Mapping[str, Sequence[Located[_Answered]]], questions: int, captions: str | None
) -> set[str]:
    chosen: set[str] = set()
    found = 0
    for clip in clips:
        if found >= questions:
            break
        chosen.add(clip)
        found += len(by_clip[clip])
    if found < questions:
        where = f"outside the test files{f' and with a caption in {captions}' if captions else ''}"
        raise DataError(f"{questions} questions were asked for; {len(clips)} clips {where} have {found}: ask for fewer")
    return chosen


def _draw(seed: int, clip: str) -> bytes:
    """The same whatever else there is to choose from."""
    return hashlib.sha256(f"{seed}\n{clip}".encode()).digest()


def _test_row(located: Located[_Answered], captions: Mapping[str, str] | None) -> dict[str, Any]:
    row = located.row
    if not row.answer.strip():
        raise DataError(f"{located.where}: row {row.id!r} has no answer, which a dev set needs as its ground truth")
    return {
        "id": row.id,
        "video": row.video,
        **({} if captions is None else {"caption": captions[clip_id(row.video)]}),
        "conversations": [
            {"from": "human", "value": "<video>\n" + row.prompt.replace("<video>", "").strip()},
            {"from": "gpt", "value": row.answer},
        ],
    }


def _captions(uri: str, wanted: Mapping[str, object]) -> dict[str, str]:
    """Clip id -> its first caption."""
    found: dict[str, str] = {}
    for row, where, _ in row_files.read(uri, _Captioned, key="--captions"):
        clip = clip_id(row.video)
        if clip in wanted and clip not in found:
            if not row.text:
                raise DataError(f"{where}: no caption: neither 'caption' nor a second turn in 'conversations'")
            found[clip] = row.text
    return found
