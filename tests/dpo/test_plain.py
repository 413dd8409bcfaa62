"""The plain backend against a loop as PyTorch's users write it."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from isr_dpo.dpo import plain
from isr_dpo.dpo.backend import Backend, BackendSettings, State, States
from tests.dpo import toy

HALF = toy.STEPS // 2
ACCUMULATED = pytest.mark.parametrize("accumulate", ["float32", "bfloat16"])


def start(
    settings: BackendSettings | None = None,
    *,
    states: States = lambda _: None,
    steps: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Backend:
    module = toy.make().to(dtype)
    return plain.open(module, toy.trained(module), settings or toy.settings(), states=states, steps=steps)


@pytest.mark.parametrize("max_grad_norm", [toy.MAX_GRAD_NORM, None])
def test_it_trains_what_a_plain_loop_trains(max_grad_norm: float | None) -> None:
    backend, expected = start(toy.settings(max_grad_norm=max_grad_norm)), toy.plain_loop(max_grad_norm=max_grad_norm)
    assert toy.run(backend, range(toy.STEPS)) == pytest.approx(expected.norms, rel=1e-6)
    for name, state in backend.states():
        assert toy.relative(state.master, expected.weights[name]) <= 1e-6


def test_the_loss_of_the_missing_clip_would_be_seen() -> None:
    clipped, free = toy.plain_loop(), toy.plain_loop(max_grad_norm=None)
    assert max(clipped.norms) > toy.MAX_GRAD_NORM
    assert any(toy.relative(clipped.weights[name], free.weights[name]) > 1e-4 for name in free.weights)


def test_a_resumed_run_ends_as_an_undisturbed_one_bit_for_bit() -> None:
    whole, first = start(), start()
    norms = toy.run(whole, range(toy.STEPS))
    toy.run(first, range(HALF))
    middle = toy.states_of(first)
    second = start(states=middle.__getitem__, steps=HALF)
    assert toy.equal(toy.states_of(second), middle)
    assert toy.run(second, range(HALF, toy.STEPS)) == norms[HALF:]
    assert toy.equal(toy.states_of(second), toy.states_of(whole))


def test_states_are_copies() -> None:
    backend = start()
    before = toy.states_of(backend)
    toy.run(backend, range(1))
    assert all(torch.equal(before[name].master, weight) for name, weight in toy.trained(toy.make()).items())


def test_frozen_weights_stay_and_the_others_move() -> None:
    backend = start()
    toy.run(backend, range(2))
    before = dict(toy.make().named_parameters())
    for name, parameter in backend.module.named_parameters():
        assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name


@ACCUMULATED
def test_a_bf16_module_has_fp32_masters(accumulate: str) -> None:
    """A GPU's case."""
    expected = toy.plain_loop()
    backend = start(toy.settings(accumulate_dtype=accumulate), dtype=torch.bfloat16)
    given = toy.invented(toy.make())
    exact = start(states=given.__getitem__, dtype=torch.bfloat16)
    assert toy.equal(toy.states_of(exact), given)
    assert all(torch.equal(p, given[n].master.bfloat16()) for n, p in toy.trained(exact.module).items())
    assert toy.run(backend, range(toy.STEPS)) == pytest.approx(expected.norms, rel=2e-2)
    for name, state in backend.states():
        assert not torch.equal(state.master, state.master.bfloat16().float())
        assert torch.equal(state.master.bfloat16(), toy.trained(backend.module)[name])


def test_small_gradients_of_a_bf16_module_add_up_in_fp32() -> None:
    """One of 1 and 256 of 1/512 are 1.5; in bf16 each of the small ones is lost."""
    norms = []
    for accumulate in ("float32", "bfloat16"):
        weight = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
        backend = plain.open(
            weight,
            {"weight": weight.weight},
            toy.settings(accumulate_dtype=accumulate, max_grad_norm=None),
            states=lambda _: None,
        )
        for size in [1.0] + [1 / 512] * 256:
            backend.backward(backend.module(torch.full((1, 1), size, dtype=torch.bfloat16)).sum(), last=False)
        norms.append(backend.step(0.0))
    assert norms == [1.5, 1.0]


def test_a_gradient_that_is_not_finite_is_reported_and_changes_nothing() -> None:
    backend = start()
    before = toy.states_of(backend)
    backend.backward(backend.module(toy.batches(0)[0]).chosen.sum() * math.nan, last=True)
    assert math.isnan(backend.step(1e-3))
    assert toy.equal(toy.states_of(backend), before)


def test_masters_of_another_shape_are_refused_by_name() -> None:
    wrong = State.fresh(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"head.weight: the stored master has shape \(2, 9\).*parameter \(1, 9\)"):
        start(states=lambda name: wrong if name == "head.weight" else None)


def test_alone_there_is_nobody_to_ask() -> None:
    backend = start()
    assert (backend.rank, backend.ranks, backend.gather("x")) == (0, 1, ["x"])
    assert backend.sum(torch.tensor([2.0], dtype=torch.float64)).tolist() == [2.0]


def test_it_never_imports_deepspeed() -> None:
    code = "import sys, isr_dpo.dpo.plain; sys.exit('deepspeed' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
