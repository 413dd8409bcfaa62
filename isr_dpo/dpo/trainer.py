"""The training loop: DPO over packed shared-prefix rows, the same for one laptop core and for many GPUs.

The order of the pairs derives from (run seed, round, epoch); nothing else is random, dropout is off [C]: on a CPU the
same pairs and policy give the same weights, bit for bit, however often the run was interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isr_dpo.config import Train
from isr_dpo.dpo import floor
from isr_dpo.dpo.ahead import ahead
from isr_dpo.dpo.backend import Backend
from isr_dpo.dpo.batch import Batch, Pairs
from isr_dpo.dpo.floor import Lengths, Peak, Shape
from isr_dpo.dpo.forward import Logps
from isr_dpo.dpo.loss import dpo_loss
from isr_dpo.dpo.plan import linear_schedule, micro_batches, optimiser_batches
from isr_dpo.dpo.reference import Reference
from isr_dpo.errors import ModelError

Entry = dict[str, float]
"""One optimiser step in the log: step (from 1), pairs, tokens, loss, reward_accuracy, margin, chosen_logp,
rejected_logp (means over the batch), grad_norm, learning_rate, seconds, and the names of `floor.Speed`."""
_SUMMED = ("loss", "reward_accuracy", "margin", "chosen_logp", "rejected_logp")


@dataclass(frozen=True)
class Round:
    """One round's place in the run."""

    index: int
    epochs: int
    seed: int


@dataclass(frozen=True)
class Hardware:
    """What speed is measured against: the language model's shape and one device's peak."""

    shape: Shape
    peak: Peak


def train(
    backend: Backend,
    pairs: Pairs,
    reference: Reference,
    *,
    settings: Train,
    round_: Round,
    hardware: Hardware,
    done: int = 0,
    on_step: Callable[[Entry], None] = lambda _: None,
) -> None:
    """Updates the backend's policy: AdamW, linear schedule with warm-up, `batch_pairs` a step over all ranks.

    `done` optimiser steps were taken already, by what the backend started from. `on_step` is called on every rank after
    each.

    Raises:
        ModelError: the loss or the gradient is not finite; the policy must then not be kept.
    """
    batches = optimiser_batches(
        reference.pairs(),
        batch_pairs=settings.batch_pairs,
        epochs=round_.epochs,
        seed=round_.seed,
        round_index=round_.index,
    )
    factor = linear_schedule(len(batches), settings.warmup_fraction)
    plans = [
        micro_batches(b, reference.tokens, budget_tokens=settings.micro_batch_tokens, ranks=backend.ranks)
        for b in batches[done:]
    ]
    packed = ahead(_packed(pairs, plans, backend.rank))
    for step, (batch, plan) in enumerate(zip(batches[done:], plans, strict=True), start=done + 1):
        started = time.perf_counter()
        sums: list[Tensor] = []
        for number, places in enumerate(plan):
            mine = places[backend.rank]
            logps = backend.module(next(packed))
            loss, logged = _loss(logps, reference, mine, beta=settings.beta)
            sums.append(logged)
            backend.backward(loss / len(batch), last=number == len(plan) - 1)
        total = backend.sum(torch.stack(sums).sum(0).cpu())  # the first look at the device since the step began
        means = dict(zip(_SUMMED, (total / len(batch)).tolist(), strict=True))
        rate = settings.learning_rate * factor(step - 1)
        _require_finite(means["loss"], "loss", settings, round_, step)
        norm = backend.step(rate)
        _require_finite(norm, "gradient norm", settings, round_, step)
        lengths = [Lengths(*reference.lengths[pair].tolist()) for pair in batch]
        seconds = time.perf_counter() - started
        speed = floor.speed(hardware.shape, lengths, seconds, peak=hardware.peak, ranks=backend.ranks)
        on_step(
            {
                "step": step,
                "steps": len(batches),
                "pairs": len(batch),
                **means,
                "grad_norm": norm,
                "learning_rate": rate,
                "seconds": seconds,
                **speed._asdict(),
            }
        )


def metrics(log: Sequence[Entry]) -> dict[str, float]:
    """A round's summary; reward accuracy, margin and gradient norm over the last quarter of the steps."""
    tail = log[-max(1, len(log) // 4) :]
    seconds = sum(entry["seconds"] for entry in log)
    return {
        "steps": len(log),
        "loss_first": log[0]["loss"],
        "loss_last": log[-1]["loss"],
        **{key: sum(e[key] for e in tail) / len(tail) for key in ("reward_accuracy", "margin", "grad_norm")},
        "seconds": round(seconds, 3),
        "pairs_per_second": sum(entry["pairs"] for entry in log) / seconds,
        **{key: sum(e[key] * e["seconds"] for e in log) / seconds for key in ("mfu", "tokens_per_second")},
        "floor_ratio": seconds / sum(e["seconds"] / e["floor_ratio"] for e in log),
    }


def _packed(pairs: Pairs, plans: Sequence[Sequence[Sequence[Sequence[int]]]], rank: int) -> Iterator[Batch]:
    """This rank's micro-batches; where it has no pair, another rank's first one, whose loss then counts for nothing."""
    for plan in plans:
        for places in plan:
            mine = places[rank] or [next(pair for place in plan[0] for pair in place)]
            yield pairs.batch(mine)


def _loss(logps: Logps, reference: Reference, mine: Sequence[int], *, beta: float) -> tuple[Tensor, Tensor]:
    """The sum of the pairs' losses, and their sums for the log (fp64, in the order of `_SUMMED`)."""
    if not mine:
        nothing = logps.chosen.new_zeros(len(_SUMMED), dtype=torch.float64)
        return (logps.chosen.sum() + logps.rejected.sum()) * 0.0, nothing
    chosen, rejected = (side[mine].to(logps.chosen) for side in (reference.chosen, reference.rejected))
    pair = dpo_loss(*logps, chosen, rejected, beta=beta)
    margin = pair.chosen_reward - pair.rejected_reward
    logged = torch.stack([pair.loss.detach(), (margin > 0).to(margin), margin, *(side.detach() for side in logps)])
    return pair.loss.sum(), logged.double().sum(1)


def _require_finite(value: float, name: str, settings: Train, round_: Round, step: int) -> None:
    if not math.isfinite(value):
        raise ModelError(
            f"round {round_.index}, step {step}: the {name} is {value}; lower train.learning_rate "
            f"({settings.learning_rate:g}) or set train.max_grad_norm ({settings.max_grad_norm})"
        )
