"""A run's files without a model: what the report reads, with figures and texts made up here."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from isr_dpo import layout
from isr_dpo.config import Recipe
from isr_dpo.data.frames import FrameWriter, encode
from isr_dpo.manifest import Origin, Output, begin
from isr_dpo.records import Context, Judged, to_jsonl
from isr_dpo.stores import join

MADE = "2025-01-01 12:00 UTC"
HOSTILE = "<script>alert(1)</script></style></p>\"'<img src=x onerror=alert(2)> {{ 7*7 }}"


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "smoke",
            "iterations": 3,
            "model": {"start": "builtin:world", "registered_name": "smoke"},
            "data": {"train": "train.jsonl", "sets": {"dev": "dev.qa.jsonl", "test": "test.qa.jsonl"}},
            **changes,
        }
    )


def finish(uri: str, files: dict[str, bytes]) -> None:
    """A complete output of these files."""
    output = begin(uri, Origin("test", "test", {}, "", ""))
    assert isinstance(output, Output)
    for name, content in files.items():
        output.write(name, content)
    output.seal(rows=1, deterministic=True)


def metrics(**values: float) -> dict[str, bytes]:
    return {"metrics.json": json.dumps(values).encode()}


def write(run_uri: str, *, text: str = "a red square moves left", rounds: int = 2, evaluated: int = 3) -> None:
    """A run with `rounds` finished rounds after the seed DPO and `evaluated` graded policies; `text` stands in every
    text that a model wrote."""
    finish(layout.dataset(run_uri), metrics(train_rows=40, seed_rows=40, videos=10, unreadable_videos=0))
    write_frames(run_uri)
    write_training(run_uri, 0)
    for index in range(1, rounds + 1):
        write_round(run_uri, index, text)
    for index in range(1, evaluated + 1):
        write_evaluation(run_uri, index)


def write_frames(run_uri: str, *, videos: int = 10, side: int = 32) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = FrameWriter(Path(folder), number=0)
        for video in range(videos):
            writer.add(f"clip-{video:03d}", encode(_clip(video, side), sha256="0" * 64))
        writer.finish()
        finish(layout.frames(run_uri), {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())})


def _clip(video: int, side: int) -> np.ndarray:
    draw = random.Random(video)
    frames = np.full((8, side, side, 3), 232, np.uint8)
    size = side // 4
    for _ in range(2):
        colour, y, step = [draw.randrange(40, 220) for _ in range(3)], draw.randrange(side - size), draw.choice((-1, 1))
        for number, frame in enumerate(frames):
            x = (number if step > 0 else 7 - number) * (side - size) // 7
            frame[y : y + size, x : x + size] = colour
    return frames


def write_training(run_uri: str, index: int) -> None:
    draw = random.Random(index)
    steps = 30 if index == 0 else 12
    log = [
        {
            "step": i,
            "loss": 0.69 - 0.3 * i / steps + draw.uniform(-0.04, 0.04),
            "reward_accuracy": 0.5 + 0.4 * i / steps,
            "margin": 0.9 * i / steps + draw.uniform(-0.1, 0.1),
        }
        for i in range(steps)
    ]
    figures = metrics(
        pairs=300,
        steps=steps,
        reward_accuracy=0.78 + 0.04 * index,
        margin=0.8,
        loss_first=0.69,
        loss_last=0.4,
        **({"update_kept": 0.43, "pairs_per_second": 12.3456, "mfu": 0.52, "floor_ratio": 1.92} if index else {}),
    )
    finish(layout.round_output(run_uri, index, "training"), {**figures, "log.jsonl": to_jsonl(log)})


def write_round(run_uri: str, index: int, text: str) -> None:
    contexts = [
        Context(
            video=f"clip-{v:03d}",
            context=f"{text} on a plain ground, in round {index}, followed by a {'blue disc' if index > 1 else 'disc'}",
        )
        for v in range(10)
    ]
    finish(
        layout.round_output(run_uri, index, "contexts"), {"part-00000.jsonl": to_jsonl(contexts), **metrics(rows=10)}
    )
    judged = [judged_row(number, index, text, contexts[number % 10].context) for number in range(40)]
    drops = {f"dropped_{r}": sum(row.outcome == r for row in judged) for r in ("identical", "empty", "tie", "unparsed")}
    figures = metrics(
        rows=40,
        pairs=sum(row.outcome == "preferred" for row in judged),
        **drops,
        dropped_inconsistent=0,
        order_consistency=0.7 + 0.1 * index,
        tie_rate=drops["dropped_tie"] / 40,
        label_mass=0.9,
        first_position_rate=0.56,
        chosen_words=9.0 + index,
        rejected_words=8.5,
        response_words=9,
    )
    finish(
        layout.round_output(run_uri, index, "preferences"),
        {"judged-00000.jsonl": to_jsonl(judged), "part-00000.jsonl": b"", **figures},
    )
    write_training(run_uri, index)


def judged_row(number: int, index: int, text: str, context: str) -> Judged:
    row = {
        "id": f"clip-{number % 10:03d}-q{number}",
        "video": f"clip-{number % 10:03d}",
        "prompt": f"what does {text} do after the disc, in round {index}?",
        "responses": (f"{text} .", f"{text} and then turns round ."),
        "context": context,
    }
    share = 0.03 + 0.94 * (number % 20) / 19
    outcome = {3: "identical", 7: "empty", 11: "tie", 15: "unparsed"}.get(number % 20, "preferred")
    if outcome == "identical":
        row["responses"] = (text, text)
    if outcome == "empty":
        row["responses"] = (text, "  ")
    if outcome in ("identical", "empty"):
        return Judged(**row, outcome=outcome)
    if outcome == "tie":
        return Judged(**row, outcome=outcome, probabilities=((0.7, 0.2), (0.2, 0.7)), rationales=("", ""))
    if outcome == "unparsed":
        return Judged(**row, outcome=outcome, probabilities=((0.01, 0.01), (0.0, 0.0)), rationales=("", ""))
    probabilities = ((0.9 * share, 0.9 * (1 - share)), (0.8 * share, 0.8 * (1 - share)))
    winner = 0 if share > 0.5 else 1
    return Judged(**row, outcome=outcome, probabilities=probabilities, winner=winner, rationales=(text, text))


def write_evaluation(run_uri: str, index: int, *, grader: str = "rule-based", model: str | None = None) -> None:
    accuracy = (0.482, 0.574, 0.611)[index - 1]
    protocol = {"protocol": "caption", "grader": grader, "model": model, "prompt_digest": None}
    for name in ("dev", "test") if index != 2 else ("dev",):
        figures = metrics(
            accuracy=accuracy,
            accuracy_low=accuracy - 0.031,
            accuracy_high=accuracy + 0.03,
            score=1 + 4 * accuracy,
            score_low=1 + 4 * accuracy - 0.12,
            score_high=1 + 4 * accuracy + 0.12,
            words=8.2 + index,
            rows=400,
            scored=397,
            unscored=3,
        )
        uri = join(layout.evaluation(run_uri, index), f"caption-{name}")
        finish(uri, {**figures, "protocol.json": json.dumps(protocol).encode()})
