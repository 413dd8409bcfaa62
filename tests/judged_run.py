"""A run's files as annotators and the agreement meet them: frames and one judged round, made up here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isr_dpo import layout
from isr_dpo.data.frames import FrameWriter, encode
from isr_dpo.manifest import Origin
from isr_dpo.outputs import Output, begin
from isr_dpo.records import Judged, to_jsonl

CONTEXT = "own description, which no annotator may see"


def judged_row(number: int, **changes: Any) -> Judged:
    """A judged row; two rows a video, response 0 chosen with both orders agreeing."""
    video = f"clip-{number // 2:03d}"
    values: dict[str, Any] = {
        "id": f"{video}_{number % 2}",
        "video": video,
        "prompt": f"what happens in {number} ?",
        "responses": (f"a ball rolls {number}", f"a dog runs {number}"),
        "probabilities": ((0.8, 0.1), (0.7, 0.2)),
        "rationales": ("the judge's reasons", "more of them"),
        "outcome": "preferred",
        "winner": 0,
        "context": CONTEXT,
    }
    return Judged(**(values | changes))


def write(run_uri: str, judged: Sequence[Judged], *, index: int = 1) -> None:
    """Frames of the rows' videos, and the rows as those of round `index`."""
    finish(layout.round_output(run_uri, index, "preferences"), {"judged-00000.jsonl": to_jsonl(judged)})
    with tempfile.TemporaryDirectory() as folder:
        writer = FrameWriter(Path(folder), number=0)
        for number, video in enumerate(sorted({row.video for row in judged})):
            writer.add(video, encode(_clip(number), sha256="0" * 64))
        writer.finish()
        finish(layout.frames(run_uri), {path.name: path.read_bytes() for path in Path(folder).iterdir()})


def finish(uri: str, files: dict[str, bytes]) -> None:
    """A complete output of these files."""
    output = begin(uri, Origin("test", "test", {}, "", ""))
    if isinstance(output, Output):
        for name, content in files.items():
            output.write(name, content)
        output.seal(rows=1, deterministic=True)


def _clip(number: int) -> np.ndarray:
    frames = np.full((8, 48, 64, 3), 232, np.uint8)
    for i, frame in enumerate(frames):
        frame[20:32, 6 * i : 6 * i + 12] = (40 + 20 * (number % 8), 80, 160)
    return frames
