"""A dev set cut by video from the training rows, or from others: no clip of it stands in a test file, or is trained
on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict

from isr_dpo.data import rows as row_files
from isr_dpo.data.clips import clip_id
from isr_dpo.data.rows import Located, Named
from isr_dpo.errors import DataError
from isr_dpo.records import Published, Row, Turn, to_jsonl
from isr_dpo.stores import join, write_bytes


class _Answered(Published):
    """A question with its ground truth, which becomes the dev set's: flat, or the first two turns of a conversation
    [C]."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str = ""
    answer: str = ""
    conversations: tuple[Turn, ...] = ()

    @property
    def question(self) -> str:
        asked = self.prompt or (self.conversations[0].value if self.conversations else "")
        return asked.replace("<video>", "").strip()

    @property
    def truth(self) -> str:
        return (self.answer or (self.conversations[1].value if len(self.conversations) > 1 else "")).strip()


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
    """What became of the rows."""

    dev_uri: str
    train_uri: str | None
    """None: what they leave is not trained on."""
    dev_questions: int
    dev_clips: int
    train_rows: int
    shared_clips: int
    """Clips of the rows that stand in a file of `against` too: never in dev; training keeps them, as published."""


def cut_dev(
    rows_uri: str,
    *,
    against: Sequence[str],
    questions: int,
    out: str,
    seed: int = 0,
    captions: str | None = None,
    alone: bool = False,
    answer_words: int | None = None,
) -> Cut:
    """Writes `train.jsonl` (the rows that stay, as they were) and the dev set, in the published test schema: with
    `captions` dev.qa.jsonl, without dev.qa.official.jsonl, for the protocol that needs none.

    `alone`: the dev set is all, of rows that nobody trains on; of several with an id the first is taken.
    `answer_words`: rows with longer ground truths are no questions, such as captions, and are never in dev.

    Whole clips are taken, in an order that the seed and their ids alone decide, until there are `questions` of them or
    a few more. Clips are the same where their ids are (`clips.clip_id`).

    Raises:
        DataError: file and line of a bad row, or of one without an answer; too few clips outside the test files, or
            with captions; no row left to train on.
    """
    rows, asked = _rows(rows_uri, alone=alone), dict[str, list[Located[_Answered]]]()
    for located in rows:
        if answer_words is None or len(located.row.truth.split()) <= answer_words:
            asked.setdefault(clip_id(located.row.video), []).append(located)
    held_out = {clip_id(r.row.video) for uri in against for r in row_files.read(uri, Named, key="--against")}
    texts = _captions(captions, asked) if captions is not None else None
    free = [clip for clip in asked if clip not in held_out and (texts is None or clip in texts)]
    chosen = _choose(sorted(free, key=lambda clip: _draw(seed, clip)), asked, questions, captions)
    dev = [_test_row(each, texts) for clip, found in asked.items() if clip in chosen for each in found]
    kept = [each.text.rstrip("\r\n") + "\n" for each in rows if clip_id(each.row.video) not in chosen]
    if not alone and not kept:
        raise DataError(f"{rows_uri}: {questions} questions leave no row to train on; ask for fewer")
    dev_uri, train_uri = join(out, f"dev.qa{'.official' if texts is None else ''}.jsonl"), join(out, "train.jsonl")
    write_bytes(dev_uri, to_jsonl(dev))
    if not alone:
        write_bytes(train_uri, "".join(kept).encode())
    story = {"rows": rows_uri, "against": list(against), "captions": captions, "seed": seed, "clips": sorted(chosen)}
    write_bytes(join(out, "dev.json"), (json.dumps(story, indent=1, ensure_ascii=False) + "\n").encode())
    return Cut(
        dev_uri=dev_uri,
        train_uri=None if alone else train_uri,
        dev_questions=len(dev),
        dev_clips=len(chosen),
        train_rows=0 if alone else len(kept),
        shared_clips=len(held_out & {clip_id(each.row.video) for each in rows}),
    )


def _rows(uri: str, *, alone: bool) -> list[Located[_Answered]]:
    found = row_files.read(uri, _Answered, key="ROWS")
    if not alone:
        return list(row_files.unique(found))
    first: dict[str, Located[_Answered]] = {}
    for located in found:
        first.setdefault(located.row.id, located)
    return list(first.values())


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
    for what, text in (("question", row.question), ("answer", row.truth)):
        if not text:
            raise DataError(f"{located.where}: row {row.id!r} has no {what}, which a dev set needs")
    return {
        "id": row.id,
        "video": row.video,
        **({} if captions is None else {"caption": captions[clip_id(row.video)]}),
        "conversations": [
            {"from": "human", "value": "<video>\n" + row.question},
            {"from": "gpt", "value": row.truth},
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
