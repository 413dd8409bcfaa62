"""The embedded engine: transformers, batched.

Each row draws from its own random stream, and each batch has a shape that depends on its rows alone: rows are padded
on the left to the next multiple of `BUCKET` tokens and share a batch only with rows of that length and clips of one
size, and a batch is filled up to its fixed size. So a row's result does not depend on its neighbours, on part sizes or
on restarts: on a CPU in fp32 the bytes are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from isr_dpo import models
from isr_dpo.engines import Choice, Choose, Progress, Sample, Text
from isr_dpo.errors import ModelError
from isr_dpo.models.common import batch_videos, place

BUCKET = 16
"""Tokens. Costs at most 15 padded positions a row."""


@dataclass(frozen=True)
class _Prompt:
    """Token ids, and a clip whose frames are of `shape`."""

    ids: list[int]
    video: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Row:
    """One sequence to run: the request it answers and where its result goes."""

    index: int
    draw: int
    prompt: _Prompt

    def longer(self, ids: list[int]) -> _Row:
        """The row with `ids` after its own."""
        return replace(self, prompt=replace(self.prompt, ids=self.prompt.ids + ids))


class HFEngine:
    """Runs the policy in `folder`. `frames` gives the uint8 [F, H, W, 3] frames of a video key."""

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
        self._device = self._policy.model.device
        self.deterministic = self._device.type == "cpu" and dtype == "float32"

    def sample(self, requests: Sequence[Sample], progress: Progress = lambda _: None) -> list[list[Text]]:
        """One Text a seed of each request."""
        prompts = self._prompts(requests)
        results: list[list[Text]] = [[Text("", 0, "stop")] * len(r.seeds) for r in requests]
        groups: dict[tuple[float, float, int], list[_Row]] = defaultdict(list)
        for index, request in enumerate(requests):
            key = (request.temperature, request.top_p, request.max_new_tokens)
            groups[key] += [_Row(index, draw, prompts[index]) for draw in range(len(request.seeds))]
        for (temperature, top_p, limit), rows in groups.items():
            for batch in self._batches(rows):
                uniforms = np.stack([_uniforms(requests[r.index].seeds[r.draw], limit) for r in batch])
                sampler = _SeededDraw(uniforms, temperature=temperature, top_p=top_p) if temperature else None
                for row, ids in zip(batch, self._generate(batch, limit=limit, sampler=sampler), strict=False):
                    results[row.index][row.draw] = self._text(ids)
                progress(sum(row.draw == 0 for row in batch))
        return results

    def choose(self, requests: Sequence[Choose], progress: Progress = lambda _: None) -> list[Choice]:
        """Label probabilities of each request."""
        prompts = self._prompts(requests)
        results: list[Choice] = [Choice((0.0, 0.0), "")] * len(requests)
        groups: dict[tuple[tuple[str, str], int, str], list[_Row]] = defaultdict(list)
        for index, request in enumerate(requests):
            key = (request.labels, request.rationale_tokens, request.cue)
            groups[key].append(_Row(index, 0, prompts[index]))
        for (labels, rationale_tokens, cue), rows in groups.items():
            cue_ids, label_ids = self._label_ids(cue, labels)
            rationales: dict[int, list[int]] = defaultdict(list)
            if rationale_tokens:
                for batch in self._batches(rows):
                    for row, ids in zip(
                        batch, self._generate(batch, limit=rationale_tokens, stop=cue_ids), strict=False
                    ):
                        rationales[row.index] = self._until(ids, cue_ids)
            asked = [row.longer(rationales[row.index] + cue_ids) for row in rows]
            for batch in self._batches(asked):
                for row, probabilities in zip(batch, self._next_token(batch, label_ids), strict=False):
                    rationale = self._policy.tokenizer.decode(rationales[row.index], skip_special_tokens=True)
                    results[row.index] = Choice(probabilities, rationale.strip())
                progress(len(batch))
        return results

    def _prompts(self, asked: Sequence[Sample | Choose]) -> list[_Prompt]:
        limit = self._policy.model.config.get_text_config().max_position_embeddings
        prompts = []
        for request in asked:
            frames = self._frames(request.video)
            (ids,) = self._policy.encode([self._policy.chat(request.prompt)], [frames]).ids
            if len(ids) >= limit:
                raise ModelError(f"video {request.video}: a prompt of {len(ids)} tokens exceeds the context of {limit}")
            prompts.append(_Prompt(ids, request.video, frames.shape))
        return prompts

    def _batches(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Rows of one padded length and clip size at a time, longest first, so that running out of memory shows at
        once."""
        buckets: dict[tuple[int, tuple[int, ...]], list[_Row]] = defaultdict(list)
        for row in rows:
            buckets[_padded(len(row.prompt.ids)), row.prompt.shape].append(row)
        for key in sorted(buckets, reverse=True):
            bucket = buckets[key]
            for start in range(0, len(bucket), self._batch_rows):
                yield bucket[start : start + self._batch_rows]

    def _inputs(self, batch: list[_Row]) -> dict[str, torch.Tensor]:
        """Model inputs of a batch filled up to the fixed number of rows by repeating its first."""
        filled = [row.prompt for row in batch + [batch[0]] * (self._batch_rows - len(batch))]
        length = _padded(len(filled[0].ids))
        ids = torch.full((len(filled), length), self._pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, prompt in enumerate(filled):
            ids[number, length - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[number, length - len(prompt.ids) :] = 1
        names = list(dict.fromkeys(prompt.video for prompt in filled))
        encoded = self._policy.encode([self._policy.chat("")] * len(names), [self._frames(name) for name in names])
        videos = dict(zip(names, encoded.videos, strict=True))
        policy, ids = self._policy, ids.to(self._device)
        return {
            "input_ids": ids,
            "attention_mask": mask.to(self._device),
            **policy.family.inputs(policy.model, ids),
            **place(policy.model, batch_videos([videos[prompt.video] for prompt in filled])),
        }

    @torch.inference_mode()
    def _generate(
        self, batch: list[_Row], *, limit: int, sampler: _SeededDraw | None = None, stop: list[int] | None = None
    ) -> list[list[int]]:
        inputs = self._inputs(batch)
        out = _guard_memory(
            self._policy.model.generate,
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=limit,
            logits_processor=[sampler] if sampler else [],
            stopping_criteria=[_Stop(stop, inputs["input_ids"].shape[1])] if stop else [],
            pad_token_id=self._pad,
        )
        new: list[list[int]] = out[:, inputs["input_ids"].shape[1] :].tolist()
        return new

    @torch.inference_mode()
    def _next_token(self, batch: list[_Row], label_ids: tuple[int, int]) -> list[tuple[float, float]]:
        out = _guard_memory(self._policy.model, **self._inputs(batch), logits_to_keep=1, use_cache=False)
        probabilities = out.logits[:, -1].double().softmax(-1)[:, list(label_ids)]
        return [(float(first), float(second)) for first, second in probabilities.round(decimals=6).tolist()]

    def _label_ids(self, cue: str, labels: tuple[str, str]) -> tuple[list[int], tuple[int, int]]:
        """The cue's ids and the one id by which each label goes on from it, as the tokenizer splits `cue label`."""
        first, second = (
            self._policy.tokenizer.encode(f"{cue} {label}".strip(), add_special_tokens=False) for label in labels
        )
        if len(first) != len(second) or first[:-1] != second[:-1] or first[-1] == second[-1]:
            raise ModelError(f"judge: labels {labels} are not single tokens after the cue {cue!r} in this tokenizer")
        return first[:-1], (first[-1], second[-1])

    def _until(self, ids: list[int], cue: list[int]) -> list[int]:
        """The rationale: ids before the end of the text or the cue. A media placeholder in it would ask for pixels."""
        special = set(self._policy.tokenizer.all_special_ids)
        ends = [i for i, token in enumerate(ids) if token in (*self._eos, self._pad)]
        ids = ids[: ends[0]] if ends else ids
        cuts = [i for i in range(len(ids) - len(cue) + 1) if cue and ids[i : i + len(cue)] == cue]
        return [token for token in (ids[: cuts[0]] if cuts else ids) if token not in special]

    def _text(self, ids: list[int]) -> Text:
        ends = [i for i, token in enumerate(ids) if token in self._eos]
        kept = ids[: ends[0]] if ends else ids
        text = self._policy.tokenizer.decode(kept, skip_special_tokens=True).strip()
        return Text(text=text, tokens=len(kept), finish="stop" if ends else "length")

    @property
    def _eos(self) -> tuple[int, ...]:
        eos = self._policy.model.generation_config.eos_token_id
        return tuple(eos) if isinstance(eos, list) else (eos,)

    @property
    def _pad(self) -> int:
        pad = self._policy.tokenizer.pad_token_id
        return int(self._eos[0] if pad is None else pad)


class _SeededDraw(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy decoding into sampling: keeps, in every row, the token that the row's own uniform number picks from
    the cumulated distribution (temperature first, then top-p)."""

    def __init__(self, uniforms: np.ndarray, *, temperature: float, top_p: float) -> None:
        self._uniforms = torch.from_numpy(uniforms)  # [rows, steps] float64
        self._temperature = temperature
        self._top_p = top_p
        self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        probabilities = (scores.double() / self._temperature).softmax(-1)  # [B, vocabulary]
        ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
        cumulated = ordered.cumsum(-1)
        kept = (cumulated - ordered) < self._top_p  # the smallest set that reaches top_p
        cumulated = torch.where(kept, cumulated, torch.inf)
        total = (ordered * kept).sum(-1)
        drawn = self._uniforms[:, self._step].to(scores.device)  # [filled rows are the last ones]
        drawn = torch.cat([drawn, drawn.new_zeros(len(scores) - len(drawn))]) * total
        rank = (cumulated <= drawn[:, None]).sum(-1).clamp(max=scores.shape[-1] - 1)
        rank = torch.minimum(rank, kept.sum(-1) - 1)
        self._step += 1
        picked = tokens.gather(1, rank[:, None])
        return torch.full_like(scores, -torch.inf).scatter(1, picked, 0.0)


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """A row is done when its new tokens end with `sequence`."""

    def __init__(self, sequence: list[int], prompt_tokens: int) -> None:
        self._sequence = torch.tensor(sequence)
        self._first = prompt_tokens + len(sequence)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if input_ids.shape[1] < self._first:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        sequence = self._sequence.to(input_ids.device)
        return (input_ids[:, -len(sequence) :] == sequence).all(-1)


def _guard_memory(call: Callable[..., Any], **inputs: Any) -> Any:
    try:
        return call(**inputs)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"out of memory: lower engine.batch_rows, data.frames or max_new_tokens ({error})") from error


def _padded(length: int) -> int:
    return -(-length // BUCKET) * BUCKET


def _uniforms(seed: int, steps: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).random(steps)
