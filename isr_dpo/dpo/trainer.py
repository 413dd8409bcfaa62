"""The trainer: plain, correct DPO in fp32 on one device.

Reference log-probs are computed once, before the first step, so no second model is in memory. The order of the pairs
derives from (run seed, round, epoch); nothing else is random, dropout is off [C]: on a CPU the same pairs and policy
give the same weights, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isr_dpo.config import Train
from isr_dpo.dpo.loss import dpo_loss, response_logps
from isr_dpo.errors import DataError, ModelError
from isr_dpo.models import Policy
from isr_dpo.prompts import Template
from isr_dpo.records import Preference, seed_for

Frames = Callable[[str], np.ndarray]
"""Video key -> uint8 [F, H, W, 3]."""


class Reference(NamedTuple):
    """Summed log-probabilities under the reference, one a pair, in the pairs' order: each [N] fp32."""

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class Trained:
    """One line of `log` an optimiser step; `seconds` of the optimisation alone."""

    log: list[dict[str, float]]
    seconds: float


class Pairs:
    """Preferences as token sequences: [chat prompt with video tokens | response, end-of-text].

    The response is tokenised on its own and always ends with the end-of-text token, one cut at the limit too [O].
    """

    def __init__(self, rows: Sequence[Preference], *, template: Template, frames: Frames) -> None:
        """Raises DataError: no pairs, or a pair with an empty side."""
        if not rows:
            raise DataError("train: no preference pairs; the judge's metrics say why rows were dropped")
        for row in rows:
            if not row.chosen.strip() or not row.rejected.strip():
                raise DataError(
                    f"train: pair {row.id} has an empty side: chosen {row.chosen!r}, rejected {row.rejected!r}"
                )
        self._rows = rows
        self._template = template
        self._frames = frames

    def __len__(self) -> int:
        return len(self._rows)

    def logps(self, policy: Policy, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Summed response log-probs (nats) of the chosen and the rejected responses, each [B], from one forward pass
        over 2B ordinary sequences, padded on the right."""
        rows = [self._rows[i] for i in indices]
        texts = [policy.chat(self._template.render(question=row.prompt)) for row in rows]
        encoded = policy.encode(texts, [self._frames(row.video) for row in rows])
        responses = [_response_ids(policy, text) for text in (*(r.chosen for r in rows), *(r.rejected for r in rows))]
        prompts = encoded.ids + encoded.ids
        length = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
        ids = torch.zeros((len(prompts), length), dtype=torch.long)
        mask = torch.zeros_like(ids)
        responding = torch.zeros(ids.shape, dtype=torch.bool)
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            end = len(prompt) + len(response)
            ids[number, :end] = torch.tensor(prompt + response)
            mask[number, :end] = 1
            responding[number, len(prompt) : end] = True
        device = policy.model.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        inputs |= {name: torch.cat([pixels, pixels]).to(device) for name, pixels in encoded.pixels.items()}
        logits = policy.model(**inputs, use_cache=False).logits  # [2B, T, V]
        logps = response_logps(logits, inputs["input_ids"], responding.to(device))
        return logps[: len(rows)], logps[len(rows) :]


def reference_logps(
    policy: Policy, pairs: Pairs, *, micro_batch_pairs: int, progress: Callable[[int], None] = lambda _: None
) -> Reference:
    """Log-probs of all pairs under `policy`, without gradient."""
    chosen, rejected = [], []
    with torch.no_grad():
        for start in range(0, len(pairs), micro_batch_pairs):
            logps = pairs.logps(policy, range(start, min(start + micro_batch_pairs, len(pairs))))
            chosen.append(logps[0].cpu())
            rejected.append(logps[1].cpu())
            progress(len(logps[0]))
    return Reference(torch.cat(chosen), torch.cat(rejected))


def train(
    policy: Policy,
    pairs: Pairs,
    reference: Reference,
    *,
    settings: Train,
    epochs: int,
    seed: int,
    round_index: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Trained:
    """Updates the policy's language model in place: AdamW, linear schedule with warm-up, `batch_pairs` a step.

    Raises:
        ModelError: the loss is not finite; the policy must then not be kept.
    """
    parameters = list(_only_trainable(policy).values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    steps = epochs * math.ceil(len(pairs) / settings.batch_pairs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_schedule(steps, settings.warmup_fraction))
    log: list[dict[str, float]] = []
    started = time.perf_counter()
    for batch in _batches(len(pairs), settings.batch_pairs, epochs, seed, round_index):
        entry = _step(policy, pairs, reference, batch, settings)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf)
        if not math.isfinite(entry["loss"]) or not math.isfinite(float(norm)):
            raise ModelError(
                f"round {round_index}, step {len(log) + 1}: loss {entry['loss']}, gradient norm {float(norm)}; "
                f"lower train.learning_rate ({settings.learning_rate:g}) or set train.max_grad_norm"
            )
        log.append(
            {"step": len(log) + 1, **entry, "grad_norm": float(norm), "learning_rate": float(schedule.get_last_lr()[0])}
        )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress(len(batch))
    return Trained(log=log, seconds=time.perf_counter() - started)


def linear_schedule(steps: int, warmup_fraction: float) -> Callable[[int], float]:
    """Factor of the learning rate by step (from 0): up from 1/warm-up to 1, then linearly to 0 after the last step."""
    warmup = math.ceil(steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return factor


def metrics(log: Sequence[dict[str, float]], *, pairs: int, seconds: float) -> dict[str, float]:
    """A round's summary; reward accuracy and margin over the last quarter of the steps."""
    tail = log[-max(1, len(log) // 4) :]
    return {
        "pairs": pairs,
        "steps": len(log),
        "loss_first": log[0]["loss"],
        "loss_last": log[-1]["loss"],
        **{key: sum(e[key] for e in tail) / len(tail) for key in ("reward_accuracy", "margin", "grad_norm")},
        "seconds": round(seconds, 3),
    }


def _step(
    policy: Policy, pairs: Pairs, reference: Reference, batch: Sequence[int], settings: Train
) -> dict[str, float]:
    """Accumulates the gradient of the mean loss of one batch; the batch's means for the log."""
    sums = dict.fromkeys(("loss", "reward_accuracy", "margin", "chosen_logp", "rejected_logp"), 0.0)
    for start in range(0, len(batch), settings.micro_batch_pairs):
        rows = list(batch[start : start + settings.micro_batch_pairs])
        chosen, rejected = pairs.logps(policy, rows)
        device = chosen.device
        result = dpo_loss(
            chosen, rejected, reference.chosen[rows].to(device), reference.rejected[rows].to(device), beta=settings.beta
        )
        (result.loss.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
        margin = result.chosen_reward - result.rejected_reward
        sums["loss"] += float(result.loss.detach().sum())
        sums["reward_accuracy"] += float((margin > 0).sum())
        sums["margin"] += float(margin.sum())
        sums["chosen_logp"] += float(chosen.detach().sum())
        sums["rejected_logp"] += float(rejected.detach().sum())
    return {key: value / len(batch) for key, value in sums.items()}


def _response_ids(policy: Policy, text: str) -> list[int]:
    return [*policy.tokenizer.encode(text, add_special_tokens=False), policy.tokenizer.eos_token_id]


def _only_trainable(policy: Policy) -> dict[str, torch.nn.Parameter]:
    """Freezes what DPO does not train and turns dropout off."""
    trainable = policy.trainable()
    policy.model.eval()
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return trainable


def _batches(pairs: int, batch_pairs: int, epochs: int, seed: int, round_index: int) -> Iterator[list[int]]:
    """Indices of each optimiser step: every pair once an epoch, in a seeded order; the last batch may be smaller."""
    for epoch in range(epochs):
        order = np.random.Generator(np.random.Philox(seed_for(seed, "train", round_index, epoch))).permutation(pairs)
        for start in range(0, pairs, batch_pairs):
            yield order[start : start + batch_pairs].tolist()
