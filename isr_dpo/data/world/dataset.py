"""The world on disk: H.264 clips, training rows, and held-out questions in the published row formats."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isr_dpo.data.world.lessons import response
from isr_dpo.data.world.pixels import FPS, SIZE_PX, render
from isr_dpo.data.world.scene import QUESTIONS, SLOTS, Scene, caption, claim, sample_scene
from isr_dpo.errors import DataError

VERSION = 2
"""Raised when the same arguments would draw something else."""
_SETS = ("train", "dev", "test")
_FILES = ("train.jsonl", "dev.qa.jsonl", "test.qa.jsonl", "test.qa.official.jsonl")
_TRAIN_PER_CLIP = 2
Row = dict[str, Any]


def draw(
    folder: Path,
    *,
    seed: int,
    train: int,
    dev: int,
    test: int,
    seed_preferences: int,
    progress: Callable[[str], None] = lambda message: None,
) -> None:
    """Draw the world into `folder`: `videos/*.mp4`, `train.jsonl`, `dev.qa.jsonl`, `test.qa.jsonl` and
    `test.qa.official.jsonl`; then `world.json` with the arguments and the digest of the rows.

    `train`, `dev` and `test` are numbers of questions; a training clip has two questions, a held-out clip all six, and
    no clip is in two sets. The first `seed_preferences` training rows carry `chosen` and `rejected` (mostly a concise
    true answer over one with a false extra claim). A folder that is complete for the same arguments is left as it is;
    one that was left half-written is drawn again.

    Raises:
        DataError: a number is out of range, or the folder holds a world of other arguments, or something else.
    """
    numbers = {"seed": seed, "train": train, "dev": dev, "test": test, "seed_preferences": seed_preferences}
    arguments = {"version": VERSION, **numbers}
    _check(**numbers)
    if _is_complete(folder, arguments):
        progress(f"world in {folder} is complete")
        return
    shutil.rmtree(folder / "videos", ignore_errors=True)
    (folder / "videos").mkdir(parents=True)
    rows: dict[str, list[Row]] = {name: [] for name in _FILES}
    clips = {name: _clip_scenes(seed, name, numbers[name]) for name in _SETS}
    total, done = sum(map(len, clips.values())), 0
    for name, scenes in clips.items():
        for i, scene in enumerate(scenes):
            write_video(folder / "videos" / f"{name}-{i:05d}.mp4", scene)
            done += 1
            if done % 100 == 0 or done == total:
                progress(f"drew {done} of {total} clips")
    rows["train.jsonl"] = list(_train_rows(clips["train"], train, seed_preferences, seed))
    rows["dev.qa.jsonl"] = list(_test_rows(clips["dev"], "dev", dev))
    rows["test.qa.jsonl"] = list(_test_rows(clips["test"], "test", test))
    rows["test.qa.official.jsonl"] = [{k: v for k, v in row.items() if k != "caption"} for row in rows["test.qa.jsonl"]]
    for name, content in rows.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    done_mark = {"arguments": arguments, "digest": _digest(folder)}
    (folder / "world.json").write_text(json.dumps(done_mark, indent=1) + "\n", encoding="utf-8")


def write_video(path: Path, scene: Scene) -> None:
    """The scene's clip as H.264 in an mp4 file; single-threaded, so that the bytes depend on the scene alone."""
    import av

    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "20", "threads": "1"})
        stream.width = stream.height = SIZE_PX
        stream.pix_fmt = "yuv420p"
        for frame in render(scene):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _check(*, seed: int, train: int, dev: int, test: int, seed_preferences: int) -> None:
    for name, value in {"seed": seed, "train": train, "dev": dev, "test": test}.items():
        if value < (0 if name == "seed" else 1):
            raise DataError(f"world: {name} is {value}; it must be {'0 or more' if name == 'seed' else 'at least 1'}")
    if not 0 <= seed_preferences <= train:
        raise DataError(f"world: seed_preferences is {seed_preferences}; it must lie between 0 and train ({train})")


def _is_complete(folder: Path, arguments: dict[str, int]) -> bool:
    """Whether the folder holds this very world; False also for an empty or half-written one."""
    mark = folder / "world.json"
    if mark.is_file():
        found = json.loads(mark.read_text(encoding="utf-8"))
        if found["arguments"] != arguments:
            raise DataError(f"world: {folder} holds another world ({found['arguments']}); delete it or choose another")
        if any(not (folder / name).is_file() for name in _FILES) or found["digest"] != _digest(folder):
            raise DataError(f"world: the rows in {folder} were altered after it was drawn; delete it and draw again")
        return True
    strangers = {entry.name for entry in folder.iterdir()} - {"videos", *_FILES} if folder.exists() else set()
    if strangers:
        raise DataError(f"world: {folder} is neither empty nor a world (it holds {min(strangers)}); choose another")
    return False


def _digest(folder: Path) -> str:
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in _FILES)).hexdigest()


def _clip_scenes(seed: int, name: str, questions: int) -> list[Scene]:
    per_clip = _TRAIN_PER_CLIP if name == "train" else len(SLOTS)
    rng = np.random.default_rng([seed, _SETS.index(name)])
    return [sample_scene(rng) for _ in range(-(-questions // per_clip))]


def _train_rows(scenes: list[Scene], count: int, seed_preferences: int, seed: int) -> Iterator[Row]:
    rng = np.random.default_rng([seed, len(_SETS)])
    asked = [rng.permutation(list(SLOTS))[:_TRAIN_PER_CLIP] for _ in scenes]
    for i in range(count):
        clip, slot = i // _TRAIN_PER_CLIP, str(asked[i // _TRAIN_PER_CLIP][i % _TRAIN_PER_CLIP])
        facts = scenes[clip].facts
        row: Row = {
            "id": f"train-{clip:05d}_{i % _TRAIN_PER_CLIP}",
            "video": f"videos/train-{clip:05d}.mp4",
            "prompt": QUESTIONS[slot],
            "answer": claim(slot, facts[slot]),
        }
        if i < seed_preferences:
            row |= _seed_preference(slot, facts, rng)
        yield row


def _seed_preference(slot: str, facts: dict[str, str], rng: np.random.Generator) -> Row:
    """A preference from the ground truth. Three in four are about conciseness (the true answer with and without a false
    extra claim), so that the policy after seed DPO keeps something to learn."""
    chosen = claim(slot, facts[slot])
    wrong = str(rng.choice([value for value in SLOTS[slot] if value != facts[slot]]))
    other = str(rng.choice([name for name in SLOTS if name != slot]))
    false = str(rng.choice([value for value in SLOTS[other] if value != facts[other]]))
    rejected = f"{chosen} {claim(other, false)}" if rng.random() < 0.75 else response(slot, wrong, facts, rng)
    return {"chosen": chosen, "rejected": rejected, "chosen_score": 5, "rejected_score": 2}


def _test_rows(scenes: list[Scene], name: str, count: int) -> Iterator[Row]:
    for i in range(count):
        clip, slot = i // len(SLOTS), list(SLOTS)[i % len(SLOTS)]
        facts = scenes[clip].facts
        yield {
            "id": f"{name}-{clip:05d}_{slot}",
            "video": f"videos/{name}-{clip:05d}.mp4",
            "caption": caption(facts),
            "conversations": [
                {"from": "human", "value": f"<video>\n{QUESTIONS[slot]}"},
                {"from": "gpt", "value": claim(slot, facts[slot])},
            ],
        }
