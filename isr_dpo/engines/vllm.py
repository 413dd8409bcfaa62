"""vLLM's offline engine: continuous batching, and the keys and values of what prompts begin with are kept.

Each prompt begins with the fixed text and the video, so an answer's draws, a description and both orders of a judgement
run their video through the model once, as long as the cache holds it. Three choices:

- A request a draw, each with its own seed, rather than one with `n=2`: vLLM would give its draws the seeds s and s + 1,
  ours belong to rows. Their common prompt is computed once all the same, by the prefix cache, but for its last block.
- Prompts go in as token ids with one token for the video; vLLM's processor for the family makes its many of it. The
  frames are those of the store, resized already. An identifier from their content stands for them in vLLM's caches, so
  that a clip is processed once, and known again under another name.
- vLLM's core runs in this process (it would start one of its own): an engine dies with its process, and an error
  arrives as what it is. What the core then waits for, a clip's pixels, takes some 30 ms once a stage.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isr_dpo import config, models
from isr_dpo.engines import Choice, Choose, Progress, Sample, Text
from isr_dpo.engines.vllm_start import context_of, open_llm, translated
from isr_dpo.errors import ModelError
from isr_dpo.models import common

log = logging.getLogger("isr_dpo")

TOO_LONG = "too_long"
COUNTERS = {
    "vllm:prefix_cache_queries": "prompt_tokens",
    "vllm:prefix_cache_hits": "prompt_tokens_kept",
    "vllm:mm_cache_queries": "videos",
    "vllm:mm_cache_hits": "videos_kept",
}
"""vLLM's counter -> ours: tokens of prompts, those of them that were not computed again; videos of prompts, those that
were not processed again."""
CLIPS_IN_HAND = 64
"""Frames kept for the next request about the same video, 1.2 MB a clip at 8 x 224 px."""


class _Ask(NamedTuple):
    """A sequence to run: prompt ids with one token for the video, a video key, vLLM's sampling parameters."""

    ids: list[int]
    video: str
    params: Any


class VLLMEngine:
    """Runs the policy in `folder`. `frames` gives the uint8 [F, H, W, 3] frames of a video key."""

    deterministic = False
    """A row's logits depend, in their last bits, on what shares its batches; `batch_invariant` takes that away by
    vLLM's word, which nothing here has proved."""

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
        self._llm = open_llm(folder, dtype, device, settings, self._context, cpu_threads)
        self._at_start = self._counted()

    def sample(self, requests: Sequence[Sample], progress: Progress = lambda _: None) -> list[list[Text]]:
        """One Text a seed of each request; a greedy one is drawn once."""
        results = [[Text("", 0, TOO_LONG)] * len(request.seeds) for request in requests]
        asks: dict[tuple[int, int], _Ask] = {}
        for index, request in enumerate(requests):
            ids = self._ids(request.prompt)
            if self._room(ids, request.video) > 0:
                for draw, seed in enumerate(request.seeds if request.temperature else request.seeds[:1]):
                    asks[index, draw] = _Ask(ids, request.video, self._drawing(request, seed))
        progress(len(requests) - len({index for index, _ in asks}))

        def take(key: tuple[int, int], output: Any) -> None:
            index, draw = key
            text = self._text(list(output.token_ids))
            if requests[index].temperature:
                results[index][draw] = text
            else:
                results[index] = [text] * len(results[index])
            progress(draw == 0)

        self._run(asks, take)
        return results

    def choose(self, requests: Sequence[Choose], progress: Progress = lambda _: None) -> list[Choice]:
        """Label probabilities of each request, read where the label would stand, one token being decoded there."""
        from vllm import SamplingParams

        results = [Choice((0.0, 0.0), "", TOO_LONG)] * len(requests)
        rationales: dict[int, list[int]] = {}
        ends = {index: self._label_ids(request.cue, request.labels) for index, request in enumerate(requests)}
        prompts = {index: self._ids(request.prompt) for index, request in enumerate(requests)}
        asked = {
            index: request
            for index, request in enumerate(requests)
            if self._room(prompts[index], request.video) > request.rationale_tokens + len(ends[index].cue)
        }
        progress(len(requests) - len(asked))
        writing = {
            index: _Ask(prompts[index], request.video, self._writing(request))
            for index, request in asked.items()
            if request.rationale_tokens
        }
        self._run(
            writing,
            lambda index, output: rationales.update({index: self._until(list(output.token_ids), requests[index].cue)}),
        )
        reading = {
            index: _Ask(
                prompts[index] + rationales.get(index, []) + ends[index].cue,
                request.video,
                SamplingParams(
                    temperature=0, max_tokens=1, logprob_token_ids=list(ends[index].labels), detokenize=False
                ),
            )
            for index, request in asked.items()
        }

        def take(index: int, output: Any) -> None:
            found = [round(float(np.exp(output.logprobs[0][label].logprob)), 6) for label in ends[index].labels]
            rationale = self._policy.tokenizer.decode(rationales.get(index, []), skip_special_tokens=True)
            results[index] = Choice((found[0], found[1]), rationale.strip())
            progress(1)

        self._run(reading, take)
        return results

    def close(self) -> None:
        """Gives the memory back; the engine is of no use then."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm

    def counters(self) -> dict[str, int]:
        """What this engine's caches have spared, by the names in `COUNTERS`."""
        return {name: value - self._at_start[name] for name, value in self._counted().items()}

    def _run(self, asks: Mapping[Any, _Ask], take: Callable[[Any, Any], None]) -> None:
        """Runs all of `asks` together; `take` gets each one's key and output as it ends."""
        if not asks:
            return
        core = self._llm.llm_engine
        unfinished: dict[str, Any] = {}
        try:
            prompts = [self._prompt(ask) for ask in asks.values()]
            names = self._llm.enqueue(prompts, [ask.params for ask in asks.values()], use_tqdm=False)
            unfinished = {name.partition("-")[0]: key for name, key in zip(names, asks, strict=True)}  # "17-0a1b2c3d"
            while core.has_unfinished_requests():
                for finished in core.step():
                    if finished.finished:
                        take(unfinished.pop(finished.request_id), finished.outputs[0])
        except (RuntimeError, ValueError) as error:
            raise translated(error, "while it runs") from error
        assert not unfinished
        counts = self.counters()
        log.info(
            "vLLM: %d of %d prompt tokens and %d of %d videos were in its caches",
            *(counts[name] for name in ("prompt_tokens_kept", "prompt_tokens", "videos_kept", "videos")),
        )

    def _prompt(self, ask: _Ask) -> dict[str, Any]:
        frames = self._frames(ask.video)
        if ask.video not in self._identifiers:
            self._identifiers[ask.video] = hashlib.sha256(repr(frames.shape).encode() + frames.tobytes()).hexdigest()
        times = getattr(self._policy.family, "times", None)
        return {
            "prompt_token_ids": ask.ids,
            "multi_modal_data": {"video": [(frames, times(len(frames))) if times else frames]},
            "multi_modal_uuids": {"video": [self._identifiers[ask.video]]},
            "mm_processor_kwargs": dict(common.FRAME_OPTIONS),
        }

    def _ids(self, prompt: str) -> list[int]:
        ids: list[int] = self._policy.tokenizer(self._policy.chat(prompt))["input_ids"]
        return ids

    def _room(self, ids: Sequence[int], video: str) -> int:
        """Tokens that fit the context after a prompt, its video's tokens counted."""
        frames = self._frames(video)
        if frames.shape not in self._video_tokens:
            (whole,) = self._policy.encode([self._policy.chat("")], [frames]).ids
            self._video_tokens[frames.shape] = len(whole) - len(self._ids(""))
        return self._context - len(ids) - self._video_tokens[frames.shape]

    def _drawing(self, request: Sample, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            seed=seed if request.temperature else None,
            max_tokens=request.max_new_tokens,
            detokenize=False,
        )

    def _writing(self, request: Choose) -> Any:
        from vllm import SamplingParams

        stop = [request.cue] if request.cue else None
        return SamplingParams(temperature=0, max_tokens=request.rationale_tokens, stop=stop)

    def _label_ids(self, cue: str, labels: tuple[str, str]) -> _Ends:
        """How the tokenizer splits `cue label`."""
        first, second = (
            self._policy.tokenizer.encode(f"{cue} {label}".strip(), add_special_tokens=False) for label in labels
        )
        if len(first) != len(second) or first[:-1] != second[:-1] or first[-1] == second[-1]:
            raise ModelError(f"judge: labels {labels} are not single tokens after the cue {cue!r} in this tokenizer")
        return _Ends(first[:-1], (first[-1], second[-1]))

    def _until(self, ids: list[int], cue: str) -> list[int]:
        """The rationale: ids before the end of the text or the cue. A media placeholder in it would ask for pixels."""
        tokenizer = self._policy.tokenizer
        special = set(tokenizer.all_special_ids)
        ids = ids[: next((i for i, token in enumerate(ids) if token in self._ends), len(ids))]
        while cue and cue in tokenizer.decode(ids, skip_special_tokens=True):
            ids = ids[:-1]
        return [token for token in ids if token not in special]

    def _text(self, ids: list[int]) -> Text:
        end = next((i for i, token in enumerate(ids) if token in self._ends), None)
        text = self._policy.tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
        return Text(text=text, tokens=len(ids[:end]), finish="length" if end is None else "stop")

    @functools.cached_property
    def _ends(self) -> set[int]:
        """Tokens that end a text: those of the policy's generation_config, at which vLLM stops too."""
        named = self._llm.llm_engine.model_config.try_get_generation_config().get("eos_token_id")
        return set(named) if isinstance(named, list) else {named, self._policy.tokenizer.eos_token_id} - {None}

    def _counted(self) -> dict[str, int]:
        found = dict.fromkeys(COUNTERS.values(), 0)
        for metric in self._llm.get_metrics():
            if metric.name in COUNTERS:
                found[COUNTERS[metric.name]] += metric.value
        return found


class _Ends(NamedTuple):
    """What stands before a label, and the one token by which each label goes on from it."""

    cue: list[int]
    labels: tuple[int, int]
