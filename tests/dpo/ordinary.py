"""The independent statement: one ordinary forward pass with pixels a response, twenty lines of DPO around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from isr_dpo import prompts
from isr_dpo.config import Train
from isr_dpo.models import Policy
from isr_dpo.models.common import batch_videos
from isr_dpo.records import Preference

ROWS = [
    Preference(id="a", video="v0", prompt="what colour is the object ?", chosen="red", rejected="the object is blue ."),
    Preference(id="b", video="v1", prompt="what is it ?", chosen="the object is red .", rejected="blue"),
    Preference(id="c", video="v0", prompt="and what shape ?", chosen="1 2", rejected="2 1 1 2"),
]
MORE = [
    Preference(
        id=f"q{i}", video=f"v{i % 3}", prompt=f"what colour {'is ' * (i % 3)}?", chosen=chosen, rejected=rejected
    )
    for i, (chosen, rejected) in enumerate(
        [("red", "the object is blue ."), ("the object is red .", "blue"), ("blue", "red red"), ("1", "2")] * 2
        + [("2 2", "1")]
    )
]
TEMPLATE = prompts.load("world").answer
Clips = Callable[[str], np.ndarray]


def logp(policy: Policy, row: Preference, text: str, clip: Clips) -> Tensor:
    """Summed log-probability of one response."""
    encoded = policy.encode([policy.chat(TEMPLATE.render(question=row.prompt))], [clip(row.video)])
    response = [*policy.tokenizer.encode(text, add_special_tokens=False), policy.tokenizer.eos_token_id]
    ids = torch.tensor([encoded.ids[0] + response])
    dtype = policy.model.dtype
    videos = {n: v.to(dtype) if v.is_floating_point() else v for n, v in batch_videos(encoded.videos).items()}
    inputs = policy.family.inputs(policy.model, ids)
    logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, **videos).logits[0]
    logps = logits[-len(response) - 1 : -1].log_softmax(-1)
    return logps.gather(1, torch.tensor(response)[:, None]).sum()


def both(policy: Policy, rows: Sequence[Preference], clip: Clips) -> Tensor:
    """[2, N]: chosen, rejected."""
    return torch.stack(
        [torch.stack([logp(policy, row, getattr(row, side), clip) for row in rows]) for side in ("chosen", "rejected")]
    )


def loop(
    policy: Policy, rows: Sequence[Preference], batches: Sequence[Sequence[int]], settings: Train, clip: Clips
) -> tuple[list[float], dict[str, Tensor]]:
    """Plain DPO: the losses by step, and the first step's gradient."""
    trained = {n: p for n, p in policy.model.named_parameters() if "language_model" in n or n.startswith("lm_head")}
    with torch.no_grad():
        reference = both(policy, rows, clip)
    optimizer = torch.optim.AdamW(trained.values(), weight_decay=0.0)
    warmup = math.ceil(len(batches) * settings.warmup_fraction)
    losses, first = [], {}
    for step, batch in enumerate(batches):
        up, down = (step + 1) / (warmup + 1), (len(batches) - step) / (len(batches) - warmup)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (up if step < warmup else down)
        ratio = both(policy, [rows[i] for i in batch], clip) - reference[:, batch]
        loss = torch.log(1 + torch.exp(-settings.beta * (ratio[0] - ratio[1]))).mean()
        optimizer.zero_grad()
        loss.backward()
        first = first or {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, first
