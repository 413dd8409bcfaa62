"""Which pairs go where: optimiser steps, micro-batches, learning rate.

Pure functions of the recipe and the lengths, the same on every rank and after every restart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from isr_dpo.records import seed_for


def optimiser_batches(
    pairs: Sequence[int], *, batch_pairs: int, epochs: int, seed: int, round_index: int
) -> list[list[int]]:
    """The pairs of each optimiser step: every pair once an epoch, in a seeded order; an epoch's last batch may be
    smaller."""
    batches = []
    for epoch in range(epochs):
        order = np.random.Generator(np.random.Philox(seed_for(seed, "train", round_index, epoch))).permutation(pairs)
        batches += [order[start : start + batch_pairs].tolist() for start in range(0, len(order), batch_pairs)]
    return batches


def micro_batches(
    batch: Sequence[int], tokens: Callable[[int], int], *, budget_tokens: int, ranks: int
) -> list[list[list[int]]]:
    """Splits one optimiser step's pairs into micro-batches [micro-batch][rank] -> pairs.

    As few micro-batches as a budget of packed tokens a rank allows, every rank the same number, their tokens evened
    out: the longest pair left goes where the fewest tokens are. A pair longer than the budget goes alone. With fewer
    pairs than places, some places are empty.
    """
    longest_first = sorted(batch, key=lambda pair: (-tokens(pair), pair))
    micro = max(1, math.ceil(sum(min(tokens(pair), budget_tokens) for pair in batch) / (budget_tokens * ranks)))
    while True:
        places: list[list[int]] = [[] for _ in range(micro * ranks)]
        filled = [0] * len(places)
        for pair in longest_first:
            emptiest = filled.index(min(filled))
            places[emptiest].append(pair)
            filled[emptiest] += tokens(pair)
        if all(len(p) <= 1 or used <= budget_tokens for p, used in zip(places, filled, strict=True)):
            rows = [[sorted(place) for place in places[m * ranks : (m + 1) * ranks]] for m in range(micro)]
            return [row for row in rows if any(row)]
        micro += 1


def linear_schedule(steps: int, warmup_fraction: float) -> Callable[[int], float]:
    """Factor of the learning rate by step (from 0): up from 1/warm-up to 1, then linearly to 0 after the last step."""
    warmup = math.ceil(steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return factor
