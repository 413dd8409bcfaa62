"""The embedded engine: transformers, batched.

Each draw has its own random stream, and each batch has a shape that depends on its rows alone: rows are padded on the
left to the next multiple of `BUCKET` tokens and share a batch only with rows of that length, clips of one size and as
many draws, and a batch is filled up to its fixed size. So a row's result does not depend on its neighbours, on part
sizes or on restarts: on a CPU in fp32 the bytes are the same. The draws of a row go on from one run of its prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from isr_dpo import models
from isr_dpo.engines import Choice, Choose, Progress, Sample, Text
from isr_dpo.engines.decoding import Pick, as_taken, decode, ends_with, greedy, seeded
from isr_dpo.engines.tokens import TOO_LONG, Tokens
from isr_dpo.errors import ModelError
from isr_dpo.models.common import batch_videos, place

BUCKET = 16
"""Tokens. Costs at most 15 padded positions a row."""
READ_TOKENS = 4096
"""Tokens of a forward pass that only reads what comes next: enough to keep a device busy. A judge's prompts are of
many lengths, so larger batches would be filled up in vain."""


@dataclass(frozen=True)
class _Prompt:
    """Token ids, and a clip whose frames are of `shape`."""

    ids: list[int]
    video: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Row:
    """One prompt to run: the request it answers, and the seeds of its draws, of which `draw` is the first."""

    index: int
    draw: int
    prompt: _Prompt
    seeds: tuple[int, ...] = (0,)

    def longer(self, ids: list[int]) -> _Row:
        """The row with `ids` after its own."""
        return replace(self, prompt=replace(self.prompt, ids=self.prompt.ids + ids))


class _Batch(NamedTuple):
    """Rows of one padded length and clip size, to be filled up to `size` prompts."""

    rows: list[_Row]
    size: int


@dataclass(frozen=True)
class _Inputs:
    """A forward pass's keyword inputs of a batch of prompts, and the positions [A, prompts, T] of their tokens."""

    model: dict[str, torch.Tensor]
    positions: torch.Tensor


class HFEngine:
    """Runs the policy in `folder`. `frames` gives the uint8 [F, H, W, 3] frames of a video key."""

    side_by_side = False

    def __init__(
        self,
        folder: Path,
        frames: Callable[[str], np.ndarray],
        *,
        dtype: str,
        device: str,
        batch_rows: int,
        cpu_threads: int | None = None,
    ) -> None:
        self._policy = models.load(folder, dtype=dtype, device=device, cpu_threads=cpu_threads)
        self._frames = frames
        self._batch_rows = batch_rows
        self._tokens = Tokens(self._policy.tokenizer, self._eos)
        self._device = self._policy.model.device
        self.deterministic = self._device.type == "cpu" and dtype == "float32"

    def sample(self, requests: Sequence[Sample], progress: Progress = lambda _: None) -> list[list[Text]]:
        """One Text a seed of each request."""
        prompts = self._prompts(requests)
        results = [[Text("", 0, TOO_LONG)] * len(request.seeds) for request in requests]
        groups: dict[tuple[float, float, int, int], list[_Row]] = defaultdict(list)
        for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            draws = min(len(request.seeds), self._batch_rows)
            if self._room(prompt) > 0:
                groups[request.temperature, request.top_p, request.max_new_tokens, draws] += [
                    _Row(index, first, prompt, request.seeds[first : first + draws])
                    for first in range(0, len(request.seeds), draws)
                ]
        progress(sum(self._room(prompt) <= 0 for prompt in prompts))
        for (temperature, top_p, limit, draws), rows in groups.items():
            for batch in self._batches(rows, draws):
                pick: Pick = greedy
                if temperature:
                    seeds = [row.seeds[min(i, len(row.seeds) - 1)] for row in batch.rows for i in range(draws)]
                    pick = seeded(seeds, steps=limit, temperature=temperature, top_p=top_p)
                for number, new in enumerate(self._decode(batch, draws=draws, limit=limit, pick=pick)):
                    row, draw = batch.rows[number // draws], number % draws
                    if draw < len(row.seeds):
                        results[row.index][row.draw + draw] = self._tokens.text(new[: self._room(row.prompt)])
                progress(sum(row.draw == 0 for row in batch.rows))
        return results

    def choose(self, requests: Sequence[Choose], progress: Progress = lambda _: None) -> list[Choice]:
        """Label probabilities of each request."""
        prompts = self._prompts(requests)
        results = [Choice((0.0, 0.0), "", TOO_LONG)] * len(requests)
        groups: dict[tuple[tuple[str, str], int, str], list[_Row]] = defaultdict(list)
        for index, request in enumerate(requests):
            key = (request.labels, request.rationale_tokens, request.cue)
            groups[key].append(_Row(index, 0, prompts[index]))
        for (labels, rationale_tokens, cue), asked in groups.items():
            cue_ids, label_ids = self._tokens.labels(cue, labels)
            rows = [row for row in asked if self._room(row.prompt) > rationale_tokens + len(cue_ids)]
            progress(len(asked) - len(rows))
            rationales: dict[int, list[int]] = defaultdict(list)
            if rationale_tokens:
                for batch in self._batches(rows):
                    written = self._decode(batch, draws=1, limit=rationale_tokens, pick=greedy, stop=cue_ids)
                    for row, new in zip(batch.rows, written, strict=True):
                        rationales[row.index] = self._tokens.rationale(new, cue)
            whole = [row.longer(rationales[row.index] + cue_ids) for row in rows]
            for batch in self._batches(whole, tokens=READ_TOKENS):
                for row, probabilities in zip(batch.rows, self._next_token(batch, label_ids), strict=False):
                    results[row.index] = Choice(probabilities, self._tokens.decode(rationales[row.index]).strip())
                progress(len(batch.rows))
        return results

    def _prompts(self, asked: Sequence[Sample | Choose]) -> list[_Prompt]:
        prompts = []
        for request in asked:
            frames = self._frames(request.video)
            (ids,) = self._policy.encode([self._policy.chat(request.prompt)], [frames]).ids
            prompts.append(_Prompt(ids, request.video, frames.shape))
        return prompts

    def _room(self, prompt: _Prompt) -> int:
        """Tokens that fit the context after the prompt."""
        return int(self._policy.model.config.get_text_config().max_position_embeddings) - len(prompt.ids)

    def _batches(self, rows: list[_Row], draws: int = 1, tokens: int | None = None) -> Iterator[_Batch]:
        """Longest rows first, so that running out of memory shows at once. A batch's size depends on its rows' length
        alone: engine.batch_rows sequences, or `tokens` where those are fewer."""
        buckets: dict[tuple[int, tuple[int, ...]], list[_Row]] = defaultdict(list)
        for row in rows:
            buckets[_padded(len(row.prompt.ids)), row.prompt.shape].append(row)
        for key in sorted(buckets, reverse=True):
            length, bucket = key[0], buckets[key]
            size = self._batch_rows // draws
            if tokens is not None:
                size = min(size, max(tokens // length, 1))
            for start in range(0, len(bucket), size):
                yield _Batch(bucket[start : start + size], size)

    def _inputs(self, batch: _Batch) -> _Inputs:
        """Model inputs of a batch, filled up by repeating its first row."""
        policy = self._policy
        filled = [row.prompt for row in batch.rows + [batch.rows[0]] * (batch.size - len(batch.rows))]
        length = _padded(len(filled[0].ids))
        ids = torch.full((len(filled), length), self._pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, prompt in enumerate(filled):
            ids[number, length - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[number, length - len(prompt.ids) :] = 1
        names = list(dict.fromkeys(prompt.video for prompt in filled))
        encoded = policy.encode([policy.chat("")] * len(names), [self._frames(name) for name in names])
        videos = dict(zip(names, encoded.videos, strict=True))
        positions = [policy.family.positions(policy.model, torch.tensor(p.ids), videos[p.video]) for p in filled]
        padded = [torch.nn.functional.pad(found, (length - found.shape[-1], 0)) for found in positions]
        ids = ids.to(self._device)
        model_inputs = {
            "input_ids": ids,
            "attention_mask": mask.to(self._device),
            **policy.family.inputs(policy.model, ids),
            **place(policy.model, batch_videos([videos[prompt.video] for prompt in filled])),
        }
        return _Inputs(model_inputs, torch.stack(padded, dim=1).to(self._device))

    def _decode(
        self, batch: _Batch, *, draws: int, limit: int, pick: Pick, stop: Sequence[int] = ()
    ) -> list[list[int]]:
        """New ids of each draw of each row, `draws` a row."""
        inputs = self._inputs(batch)
        new = _guard_memory(
            decode,
            model=self._policy.model,
            inputs=inputs.model,
            positions=inputs.positions,
            draws=draws,
            wanted=len(batch.rows) * draws,
            limit=limit,
            pad=self._pad,
            pick=pick,
            ended=ends_with(self._eos, stop),
        )
        found: list[list[int]] = new[: len(batch.rows) * draws].tolist()
        return found

    @torch.inference_mode()
    def _next_token(self, batch: _Batch, label_ids: tuple[int, int]) -> list[tuple[float, float]]:
        inputs = self._inputs(batch)
        out = _guard_memory(
            self._policy.model,
            **inputs.model,
            position_ids=as_taken(inputs.positions),
            logits_to_keep=1,
            use_cache=False,
        )
        probabilities = out.logits[:, -1].double().softmax(-1)[:, list(label_ids)]
        return [(float(first), float(second)) for first, second in probabilities.round(decimals=6).tolist()]

    @property
    def _eos(self) -> tuple[int, ...]:
        eos = self._policy.model.generation_config.eos_token_id
        return tuple(eos) if isinstance(eos, list) else (eos,)

    @property
    def _pad(self) -> int:
        pad = self._policy.tokenizer.pad_token_id
        return int(self._eos[0] if pad is None else pad)


def _guard_memory(call: Callable[..., Any], **inputs: Any) -> Any:
    try:
        return call(**inputs)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"out of memory: lower engine.batch_rows, data.frames or max_new_tokens ({error})") from error


def _padded(length: int) -> int:
    return -(-length // BUCKET) * BUCKET
