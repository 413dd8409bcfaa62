"""vLLM's offline engine: continuous batching over calls, and the keys and values of what prompts begin with are kept.

Each prompt begins with the fixed text and the video, so an answer's draws, a description and both orders of a judgement
run their video through the model once, as long as the cache holds it. Three choices:

- A request a draw, each with its own seed, rather than one with `n=2`: vLLM would give its draws the seeds s and s + 1,
  ours belong to rows. Their common prompt is computed once all the same, by the prefix cache, but for its last block.
- Prompts go in as token ids with one token for the video; vLLM's processor for the family makes its many of it. The
  frames are those of the store, resized already. An identifier from their content stands for them in vLLM's caches, so
  that a clip is processed once, and known again under another name.
- vLLM's core runs in this process (it would start one of its own): an engine dies with its process, and an error
  arrives as what it is. The core waits while a clip's pixels are prepared, once as long as vLLM keeps them.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isr_dpo import config, models
from isr_dpo.engines import Choice, Choose, Progress, Sample, Text
from isr_dpo.engines.tokens import TOO_LONG, Labels, Tokens
from isr_dpo.engines.vllm_loop import Loop, Request
from isr_dpo.engines.vllm_start import context_of, open_llm
from isr_dpo.models import common

log = logging.getLogger("isr_dpo")

COUNTERS = {
    "vllm:prefix_cache_queries": "prompt_tokens",
    "vllm:prefix_cache_hits": "prompt_tokens_kept",
    "vllm:mm_cache_queries": "videos",
    "vllm:mm_cache_hits": "videos_kept",
}
"""vLLM's counter -> ours: tokens of prompts, those of them that were not computed again; videos of prompts, those that
were not processed again."""
CLIPS_IN_HAND = 128
"""Whose frames are kept for the next request about them: 1.2 MB each at 8 x 224 px, 44 MB at 16 x 720p."""
EVERY_SECONDS = 10.0
"""Between two lines of the log about the caches."""


class VLLMEngine:
    """Runs the policy in `folder`. `frames` gives the uint8 [F, H, W, 3] frames of a video key."""

    deterministic = False
    """A row's logits depend, in their last bits, on what shares its batches; `batch_invariant` takes that away by
    vLLM's word, which nothing here has proved."""
    side_by_side = True
    """What calls ask runs in the same batches."""

    def __init__(
        self,
        folder: Path,
        frames: Callable[[str], np.ndarray],
        *,
        dtype: str,
        device: str,
        settings: config.VLLM,
        cpu_threads: int | None = None,
    ) -> None:
        family = models.family_of(folder)
        self._policy = models.Policy(model=None, processor=family.load_processor(folder), family=family)
        self._frames = functools.lru_cache(CLIPS_IN_HAND)(frames)
        self._identifiers: dict[str, str] = {}
        self._video_tokens: dict[tuple[int, ...], int] = {}
        self._context = context_of(folder, settings.context_tokens)
        self._llm = open_llm(
            folder,
            self._policy.processor,
            dtype=dtype,
            device=device,
            settings=settings,
            context=self._context,
            cpu_threads=cpu_threads,
        )
        self._loop = Loop(self._llm, idle=self._tell)
        self._tokens = Tokens(self._policy.tokenizer, self._ends())
        self._preparing = threading.Lock()  # a tokenizer is one thread's at a time
        self._at_start = self._counted()
        self._told = -EVERY_SECONDS

    def sample(self, requests: Sequence[Sample], progress: Progress = lambda _: None) -> list[list[Text]]:
        """One Text a seed of each request; a greedy one is drawn once."""
        results = [[Text("", 0, TOO_LONG)] * len(request.seeds) for request in requests]
        asks: dict[tuple[int, int], Request] = {}
        with self._preparing:
            for index, request in enumerate(requests):
                ids = self._ids(request.prompt)
                if self._room(ids, request.video) > 0:
                    for draw, seed in enumerate(request.seeds if request.temperature else request.seeds[:1]):
                        asks[index, draw] = Request(self._prompt(ids, request.video), _drawing(request, seed))
        progress(len(requests) - len({index for index, _ in asks}))

        def take(key: tuple[int, int], output: Any) -> None:
            index, draw = key
            text = self._tokens.text(list(output.token_ids))
            if requests[index].temperature:
                results[index][draw] = text
            else:
                results[index] = [text] * len(results[index])
            progress(draw == 0)

        self._loop.run(asks, take)
        return results

    def choose(self, requests: Sequence[Choose], progress: Progress = lambda _: None) -> list[Choice]:
        """Label probabilities of each request, read where the label would stand, one token being decoded there."""
        results = [Choice((0.0, 0.0), "", TOO_LONG)] * len(requests)
        asked: dict[int, _Asked] = {}
        with self._preparing:
            for index, request in enumerate(requests):
                ids, ends = self._ids(request.prompt), self._tokens.labels(request.cue, request.labels)
                if self._room(ids, request.video) > request.rationale_tokens + len(ends.cue):
                    asked[index] = _Asked(request, ids, ends)
        progress(len(requests) - len(asked))

        def write(index: int, output: Any) -> None:
            asked[index].rationale = self._tokens.rationale(list(output.token_ids), requests[index].cue)

        def read(index: int, output: Any) -> None:
            found = [round(float(np.exp(output.logprobs[0][id].logprob)), 6) for id in asked[index].ends.labels]
            results[index] = Choice((found[0], found[1]), self._tokens.decode(asked[index].rationale).strip())
            progress(1)

        writing = {index: one for index, one in asked.items() if one.request.rationale_tokens}
        self._loop.run({index: self._rationale(one) for index, one in writing.items()}, write)
        self._loop.run({index: self._label(one) for index, one in asked.items()}, read)
        return results

    def close(self) -> None:
        """Gives the memory back; the engine is of no use then."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm

    def counters(self) -> dict[str, int]:
        """What this engine's caches have spared, by the names in `COUNTERS`."""
        return {name: value - self._at_start[name] for name, value in self._counted().items()}

    def _prompt(self, ids: list[int], video: str) -> dict[str, Any]:
        frames = self._frames(video)
        if video not in self._identifiers:
            self._identifiers[video] = hashlib.sha256(repr(frames.shape).encode() + frames.tobytes()).hexdigest()
        times = self._policy.family.times(len(frames))
        return {
            "prompt_token_ids": ids,
            "multi_modal_data": {"video": [(frames, times) if times else frames]},
            "multi_modal_uuids": {"video": [self._identifiers[video]]},
            "mm_processor_kwargs": dict(common.FRAME_OPTIONS),
        }

    def _ids(self, prompt: str) -> list[int]:
        ids: list[int] = self._policy.family.prompt_ids(self._policy.processor, self._policy.chat(prompt))
        return ids

    def _room(self, ids: Sequence[int], video: str) -> int:
        """Tokens that fit the context after a prompt, its video's tokens counted."""
        frames = self._frames(video)
        if frames.shape not in self._video_tokens:
            (whole,) = self._policy.encode([self._policy.chat("")], [frames]).ids
            self._video_tokens[frames.shape] = len(whole) - len(self._ids(""))
        return self._context - len(ids) - self._video_tokens[frames.shape]

    def _rationale(self, asked: _Asked) -> Request:
        from vllm import SamplingParams

        stop = [asked.request.cue] if asked.request.cue else None
        params = SamplingParams(temperature=0, max_tokens=asked.request.rationale_tokens, stop=stop)
        return Request(self._prompt(asked.ids, asked.request.video), params)

    def _label(self, asked: _Asked) -> Request:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0, max_tokens=1, logprob_token_ids=list(asked.ends.labels), detokenize=False
        )
        return Request(self._prompt(asked.ids + asked.rationale + asked.ends.cue, asked.request.video), params)

    def _ends(self) -> set[int]:
        """Tokens that end a text: those of the policy's generation_config, at which vLLM stops too."""
        named = self._llm.llm_engine.model_config.try_get_generation_config().get("eos_token_id")
        return set(named) if isinstance(named, list) else {named, self._policy.tokenizer.eos_token_id} - {None}

    def _tell(self) -> None:
        """Logs what the caches have spared, now and then."""
        if time.monotonic() - self._told < EVERY_SECONDS:
            return
        self._told = time.monotonic()
        counts = self.counters()
        log.info(
            "vLLM: %d of %d prompt tokens and %d of %d videos were in its caches",
            *(counts[name] for name in ("prompt_tokens_kept", "prompt_tokens", "videos_kept", "videos")),
        )

    def _counted(self) -> dict[str, int]:
        found = dict.fromkeys(COUNTERS.values(), 0)
        for metric in self._llm.get_metrics():
            if metric.name in COUNTERS:
                found[COUNTERS[metric.name]] += metric.value
        return found


@dataclass
class _Asked:
    """A choice on its way."""

    request: Choose
    ids: list[int]
    ends: Labels
    rationale: list[int] = field(default_factory=list)


def _drawing(request: Sample, seed: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=seed if request.temperature else None,
        max_tokens=request.max_new_tokens,
        detokenize=False,
    )
