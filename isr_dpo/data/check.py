"""Which of a recipe's videos are there, before a run spends time on the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from isr_dpo import config
from isr_dpo.data.clips import FRAMES_TAR, clip_id
from isr_dpo.data.sources import Sources, read_sources

Kind = Literal["video file", "folder of frames", "tar of frames", "missing"]


@dataclass(frozen=True)
class Checked:
    """A JSONL file of the recipe."""

    key: str
    rows: int
    kinds: Counter[Kind]
    """Distinct videos by what they are."""

    @property
    def videos(self) -> int:
        return self.kinds.total()


@dataclass(frozen=True)
class Check:
    """All of them."""

    files: tuple[Checked, ...]
    missing: dict[str, str]
    """`video` value -> where it was looked for."""
    videos: int
    shared: dict[str, int]
    """`data.train and data.sets.msvd` -> clips that both have, of the training rows with each set and of dev with each
    other set; pairs without any are left out."""


def check_data(recipe: config.Recipe) -> Check:
    """Reads all rows, with captions where the protocol needs them; looks every video up, opens none.

    Raises:
        DataError: as `read_sources` does.
    """
    captioned = [name for name in recipe.data.sets if recipe.protocol(name) == "caption"]
    sources = read_sources(recipe.data, captioned=captioned)
    videos = {f"data.sets.{name}": [row.video for row in rows] for name, rows in sources.sets.items()}
    if recipe.data.train is not None:
        videos = {"data.train": [question.video for question in sources.questions], **videos}
    clips = {key: {clip_id(video) for video in each} for key, each in videos.items()}
    return Check(
        files=tuple(Checked(key, len(each), _kinds(sources, each)) for key, each in videos.items()),
        missing={video: at for video, at in sources.videos.items() if sources.identities[video] is None},
        videos=len(sources.videos),
        shared=_shared(clips, f"data.sets.{recipe.evaluate.dev}"),
    )


def _kinds(sources: Sources, videos: Iterable[str]) -> Counter[Kind]:
    return Counter(_kind(sources, video) for video in set(videos))


def _kind(sources: Sources, video: str) -> Kind:
    if sources.identities[video] is None:
        return "missing"
    location = sources.videos[video]
    if location.endswith("/"):
        return "folder of frames"
    return "tar of frames" if location.endswith(FRAMES_TAR) else "video file"


def _shared(clips: dict[str, set[str]], dev: str) -> dict[str, int]:
    """What is held out must be neither trained on nor selected by."""
    pairs = [(one, other) for one in ("data.train", dev) for other in clips if one in clips and other != one]
    return {
        f"{one} and {other}": len(clips[one] & clips[other])
        for one, other in pairs
        if clips[one] & clips[other] and (one, other) != (dev, "data.train")
    }
