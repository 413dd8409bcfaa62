"""A side of the generation benchmark in its own process: opens its engine, warms up, and runs whole rounds."""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isr_dpo import prompts
from isr_dpo.config import Recipe
from isr_dpo.engines import Choice, Choose, Engine, Progress, Sample, Text
from isr_dpo.generate import generate
from isr_dpo.judge import LABELS, judge
from isr_dpo.models import Policy, family_of
from isr_dpo.prefer import Earlier, by_video, prefer
from isr_dpo.records import Question
from isr_dpo.retrospect import retrospect
from tests.bench import generate_setup
from tests.bench.generate_setup import Sizes

LMM = prompts.load("lmm")


@dataclass
class Noting:
    """An engine that notes what it is asked and how many tokens it writes."""

    engine: Any
    asked: list[Sample | Choose] = field(default_factory=list)
    written: int = 0
    mutex: threading.Lock = field(default_factory=threading.Lock)

    @property
    def deterministic(self) -> bool:
        return bool(self.engine.deterministic)

    @property
    def side_by_side(self) -> bool:
        return bool(self.engine.side_by_side)

    def sample(self, requests: Sequence[Sample], progress: Progress = lambda _: None) -> list[list[Text]]:
        drawn: list[list[Text]] = self.engine.sample(requests, progress)
        with self.mutex:
            self.asked += requests
            self.written += sum(text.tokens for texts in drawn for text in texts)
        return drawn

    def choose(self, requests: Sequence[Choose], progress: Progress = lambda _: None) -> list[Choice]:
        self.asked += requests
        choices: list[Choice] = self.engine.choose(requests, progress)
        return choices


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["batch1", "hf", "vllm", "fused"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    sizes = generate_setup.read(options.folder)
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    engine = _engine(options.side, options.folder / "policy", sizes, device=options.device, dtype=dtype)
    facts = {"check": _check(engine)}
    rounds = [_measured(options.side, engine, sizes, options.folder, repeat) for repeat in range(options.repeats + 1)]
    out.write(json.dumps({**facts, "rounds": rounds[1:]}) + "\n")
    out.flush()


def _engine(side: str, folder: Path, sizes: Sizes, *, device: str, dtype: str) -> Any:
    def frames(video: str) -> np.ndarray:
        return generate_setup.clip(video, sizes)

    if side == "batch1":
        from tests.bench.generate_batch1 import Batch1Engine

        return Batch1Engine(folder, frames, device=device, dtype=dtype)
    from isr_dpo.engines import open_engine

    kind = "hf" if side == "hf" else "vllm"
    recipe = generate_setup.recipe_for(sizes, kind=kind)
    model = recipe.model.model_copy(update={"device": device, "dtype": dtype})
    engine: Any = open_engine(recipe.engine, model, folder, frames)
    if side == "hf":
        _count_prefill(engine)
    return engine


def _count_prefill(engine: Any) -> None:
    """Counts in `engine.prefilled` the prompt positions that pass through its model, padding and filling included."""
    engine.prefilled = 0

    def count(_: Any, __: Any, inputs: Mapping[str, Any]) -> None:
        ids = inputs["input_ids"]
        engine.prefilled += ids.numel() if ids.shape[1] > 1 else 0

    engine._policy.model.register_forward_pre_hook(count, with_kwargs=True)


def _check(engine: Engine) -> dict[str, Any]:
    """A greedy text and a choice, which all sides must agree on."""
    prompt = "what is in the video ?"
    ((text,),) = engine.sample([Sample("check", prompt, (0,), 0.0, 1.0, 4)])
    (choice,) = engine.choose([Choose("check", prompt, LABELS, 0, LMM.judge.cue)])
    return {"text": text.text, "probabilities": choice.probabilities}


def _measured(side: str, engine: Any, sizes: Sizes, folder: Path, repeat: int) -> dict[str, Any]:
    """One round; repeat 0 is the warm-up, of a few rows."""
    rows = generate_setup.questions(sizes, repeat=repeat)
    rows = rows[: 2 if repeat == 0 else sizes.rows_of(side)]
    recipe = generate_setup.recipe_for(sizes, fused_videos=sizes.fused_videos)
    for row in rows:
        generate_setup.clip(row.video, sizes)  # drawing it is no engine's work
    noting = Noting(engine)
    before = _prefilled(side, engine)
    started = time.perf_counter()
    if side == "fused":
        prefer(by_video(rows), noting, earlier=Earlier({}, None), recipe=recipe, prompts=LMM, round_index=1)
    else:
        _three_stages(rows, noting, recipe)
    seconds = time.perf_counter() - started
    asked = _prompts(folder / "policy", sizes, noting.asked)
    return {
        "seconds": seconds,
        "rows": len(rows),
        "written": noting.written,
        "computed": _prefilled(side, engine) - before,
        "needed": generate_setup.needed_tokens(asked),
    }


def _three_stages(rows: Sequence[Question], engine: Engine, recipe: Recipe) -> None:
    responses = generate(rows, engine, template=LMM.answer, settings=recipe.generate, seed=recipe.seed, round_index=1)
    held: dict[str, Any] = {"prompts": LMM, "seed": recipe.seed, "round_index": 1}
    videos = list(dict.fromkeys(row.video for row in rows))
    described = retrospect(videos, engine, previous={}, settings=recipe.retrospect, **held)
    judge(responses, engine, contexts={row.video: row.context for row in described}, settings=recipe.judge, **held)


def _prefilled(side: str, engine: Any) -> int:
    """Prompt tokens computed so far."""
    if side in ("batch1", "hf"):
        return int(engine.prefilled)
    counts = engine.counters()
    return int(counts["prompt_tokens"] - counts["prompt_tokens_kept"])


def _prompts(folder: Path, sizes: Sizes, asked: Sequence[Sample | Choose]) -> list[tuple[str, list[int]]]:
    """Video and ids of each request, as the family's processor makes them."""
    family = family_of(folder)
    policy = Policy(model=None, processor=family.load_processor(folder), family=family)
    found = []
    for request in asked:
        (ids,) = policy.encode([policy.chat(request.prompt)], [generate_setup.clip(request.video, sizes)]).ids
        cue = policy.tokenizer.encode(request.cue, add_special_tokens=False) if isinstance(request, Choose) else []
        found.append((request.video, ids + cue))
    return found


if __name__ == "__main__":
    main()
