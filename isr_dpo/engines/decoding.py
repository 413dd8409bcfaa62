"""Token by token: a batch of prompts is run once, and each of its draws goes on from the prompt's keys and values.

The tokens come from the policy's own distribution: what a checkpoint's generation_config asks for besides its end
(penalties, top-k) would make them another policy's [O].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Pick = Callable[[Tensor, int], Tensor]
"""Logits [B, vocabulary] and the step's number -> token ids [B]."""
Ended = Callable[[Tensor], Tensor]
"""New ids [B, steps] -> bool [B], at the end of the newest."""


@torch.inference_mode()
def decode(
    model: Any,
    inputs: Mapping[str, Tensor],
    positions: Tensor,
    *,
    draws: int,
    wanted: int,
    limit: int,
    pad: int,
    pick: Pick,
    ended: Ended,
) -> Tensor:
    """New ids [prompts x draws, steps], `pad` after a row's end; at most `limit` steps.

    `inputs` are a forward pass's, ids and mask [prompts, T] padded on the left; `positions` [A, prompts, T], A = 3 with
    M-RoPE: what follows a prompt stands one after its highest position. Only the first `wanted` rows are waited for:
    the others fill the batch up.
    """
    out = model(**inputs, position_ids=as_taken(positions), logits_to_keep=1, use_cache=True)
    cache = out.past_key_values
    if draws > 1:
        cache.batch_repeat_interleave(draws)
    mask = inputs["attention_mask"].repeat_interleave(draws, 0)
    logits = out.logits[:, -1].repeat_interleave(draws, 0)
    position = positions.amax((0, 2)).repeat_interleave(draws, 0)  # [B]
    new = mask[:, :0]
    done = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    for step in range(limit):
        tokens = torch.where(done, pad, pick(logits.float(), step))
        new = torch.cat([new, tokens[:, None]], dim=1)
        done |= ended(new)
        if bool(done[:wanted].all()) or step == limit - 1:
            break
        position = position + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=as_taken(position.expand(len(positions), -1)[..., None]),
            past_key_values=cache,
            use_cache=True,
        )
        logits = out.logits[:, -1]
    return new


def greedy(logits: Tensor, step: int) -> Tensor:
    """The likeliest token of each row."""
    return logits.argmax(-1)


def seeded(seeds: Sequence[int], *, steps: int, temperature: float, top_p: float) -> Pick:
    """Draws: in every row the token that the row's own uniform number picks from the cumulated distribution
    (temperature first, then top-p). A row's random stream is its seed's; rows beyond the seeds have none."""
    streams = [np.random.Generator(np.random.Philox(seed)).random(steps) for seed in seeds]
    uniforms = torch.from_numpy(np.stack(streams))  # [seeds, steps] float64

    def pick(logits: Tensor, step: int) -> Tensor:
        probabilities = (logits.double() / temperature).softmax(-1)  # [B, vocabulary]
        ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
        cumulated = ordered.cumsum(-1)
        kept = (cumulated - ordered) < top_p  # the smallest set that reaches top_p
        cumulated = torch.where(kept, cumulated, torch.inf)
        uniform = uniforms[:, step].to(logits.device)
        uniform = torch.cat([uniform, uniform.new_zeros(len(logits) - len(uniform))]) * (ordered * kept).sum(-1)
        rank = torch.minimum((cumulated <= uniform[:, None]).sum(-1), kept.sum(-1) - 1)
        return tokens.gather(1, rank[:, None])[:, 0]

    return pick


def ends_with(tokens: Sequence[int], sequence: Sequence[int] = ()) -> Ended:
    """A row has ended at one of `tokens`, or when its new ids end with `sequence`."""

    def ended(new: Tensor) -> Tensor:
        last = torch.isin(new[:, -1], torch.tensor(list(tokens), device=new.device))
        if not sequence or new.shape[1] < len(sequence):
            return last
        return last | (new[:, -len(sequence) :] == torch.tensor(list(sequence), device=new.device)).all(-1)

    return ended


def as_taken(positions: Tensor) -> Tensor:
    """[A, B, T] as a model takes them: [B, T] where there is one dimension."""
    return positions[0] if len(positions) == 1 else positions
