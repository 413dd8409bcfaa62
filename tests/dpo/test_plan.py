"""Which pairs go where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isr_dpo.dpo.plan import linear_schedule, micro_batches, optimiser_batches


def test_every_pair_is_seen_once_an_epoch_and_the_last_batch_may_be_smaller() -> None:
    pairs = [0, 1, 2, 4, 5, 6, 7, 8, 9]  # 3 was left out
    batches = optimiser_batches(pairs, batch_pairs=4, epochs=2, seed=0, round_index=1)
    assert [len(b) for b in batches] == [4, 4, 1, 4, 4, 1]
    first, second = (sorted(i for batch in epoch for i in batch) for epoch in (batches[:3], batches[3:]))
    assert first == second == pairs
    assert batches[:3] != batches[3:]
    assert batches != optimiser_batches(pairs, batch_pairs=4, epochs=2, seed=0, round_index=2)


def test_tokens_are_evened_out_over_as_few_micro_batches_as_the_budget_allows() -> None:
    tokens = [100, 90, 60, 50, 40, 40].__getitem__
    assert micro_batches(range(6), tokens, budget_tokens=200, ranks=1) == [[[0, 3, 4]], [[1, 2, 5]]]
    assert micro_batches(range(6), tokens, budget_tokens=200, ranks=2) == [[[0, 3, 4], [1, 2, 5]]]
    assert micro_batches(range(6), tokens, budget_tokens=1000, ranks=1) == [[[0, 1, 2, 3, 4, 5]]]


def test_a_pair_longer_than_the_budget_goes_alone() -> None:
    tokens = [500, 60, 50].__getitem__
    assert sorted(micro_batches(range(3), tokens, budget_tokens=120, ranks=1)) == [[[0]], [[1, 2]]]


def test_with_fewer_pairs_than_ranks_some_have_none() -> None:
    assert micro_batches([7], lambda _: 10, budget_tokens=100, ranks=3) == [[[7], [], []]]


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    ranks=st.integers(1, 5),
    budget=st.integers(50, 1000),
)
def test_no_pair_is_lost_and_no_budget_broken(lengths: list[int], ranks: int, budget: int) -> None:
    plan = micro_batches(range(len(lengths)), lengths.__getitem__, budget_tokens=budget, ranks=ranks)
    places = [place for micro in plan for place in micro]
    assert all(len(micro) == ranks for micro in plan)
    assert sorted(pair for place in places for pair in place) == list(range(len(lengths)))
    assert all(len(place) == 1 or sum(lengths[i] for i in place) <= budget for place in places if place)
    assert all(any(micro) for micro in plan)


def test_schedule_warms_up_and_ends_at_zero() -> None:
    factor = linear_schedule(10, 0.2)
    assert [factor(s) for s in range(11)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    )
