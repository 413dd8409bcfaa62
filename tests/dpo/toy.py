"""A toy for the backends: a model with a frozen part and sizes that two ranks do not divide, and a plain loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isr_dpo.dpo.backend import Backend, BackendSettings, State

STEPS = 10
MICRO_BATCHES = 4  # a step over all ranks
ROWS = 3  # a micro-batch
RATES = [3e-3 * (1 - step / STEPS) for step in range(STEPS)]
MAX_GRAD_NORM = 0.5


class Output(NamedTuple):
    """As a policy gives it: named, two tensors."""

    chosen: Tensor
    rejected: Tensor


class Toy(nn.Module):
    """5 -> 7 -> 1, an embedding in between; the first layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(5, 7)
        self.embedding = nn.Embedding(11, 7)
        self.middle = nn.Linear(7, 9)
        self.head = nn.Linear(9, 1)
        self.tower.requires_grad_(False)
        self.register_buffer("frequencies", torch.tensor([1 / 3]))

    def forward(self, batch: Sequence[Tensor]) -> Output:
        """`batch`: features [B, 5] and two rows of tokens [B]."""
        features, chosen, rejected = batch
        seen = torch.tanh(self.tower(features.to(self.tower.weight.dtype)))
        hidden = (F.gelu(self.middle(seen + self.embedding(tokens))) for tokens in (chosen, rejected))
        return Output(*(F.softplus(self.head(h).squeeze(1)) for h in hidden))


def make() -> Toy:
    """The same each time."""
    torch.manual_seed(7)
    return Toy()


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def batches(step: int) -> list[list[Tensor]]:
    """The micro-batches of a step over all ranks."""
    generator = torch.Generator().manual_seed(step)
    return [
        [
            torch.randn(ROWS, 5, generator=generator),
            torch.randint(0, 11, (ROWS,), generator=generator),
            torch.randint(0, 11, (ROWS,), generator=generator),
        ]
        for _ in range(MICRO_BATCHES)
    ]


def loss(output: Output) -> Tensor:
    """Its share of the mean over the global batch; large enough to be clipped at times."""
    return (-F.logsigmoid(3 * (output.chosen - output.rejected)).float()).sum() / (ROWS * MICRO_BATCHES) * 2


def run(backend: Backend, steps: range) -> list[float]:
    """Takes optimiser steps; each rank runs its share of the micro-batches. The gradient norms."""
    norms = []
    for step in steps:
        mine = batches(step)[backend.rank :: backend.ranks]
        for number, batch in enumerate(mine):
            backend.backward(loss(backend.module(batch)), last=number == len(mine) - 1)
        norms.append(backend.step(RATES[step]))
    return norms


class Expected(NamedTuple):
    norms: list[float]
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    """Adam's mean of them."""


def plain_loop(steps: range = range(STEPS), *, max_grad_norm: float | None = MAX_GRAD_NORM) -> Expected:
    """AdamW as PyTorch's users write it, one process, fp32."""
    module = make()
    parameters = trained(module)
    optimizer = torch.optim.AdamW(parameters.values(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    norms = []
    for step in steps:
        optimizer.zero_grad()
        for batch in batches(step):
            loss(module(batch)).backward()
        norm = torch.linalg.vector_norm(
            torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None])
        )
        if max_grad_norm is not None and norm > max_grad_norm:
            for parameter in parameters.values():
                assert parameter.grad is not None
                parameter.grad *= max_grad_norm / norm
        for group in optimizer.param_groups:
            group["lr"] = RATES[step]
        optimizer.step()
        norms.append(float(norm))
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return Expected(norms, weights, {n: optimizer.state[p]["exp_avg"].clone() for n, p in parameters.items()})


def states_of(backend: Backend) -> dict[str, State]:
    return dict(backend.states())


def invented(module: nn.Module) -> dict[str, State]:
    """States that no bf16 number can hold."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: State(*(scale * torch.rand(p.shape, generator=generator) for scale in (1.0, 1e-2, 1e-4)))
        for name, p in trained(module).items()
    }


def equal(left: Mapping[str, State], right: Mapping[str, State]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(
        a.dtype == b.dtype and torch.equal(a, b) for n in left for a, b in zip(left[n], right[n], strict=True)
    )


def relative(value: Tensor, expected: Tensor) -> float:
    """The error's norm against the expected one's."""
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm())


def settings(**changes: object) -> BackendSettings:
    return BackendSettings(**{"dtype": "float32", "max_grad_norm": MAX_GRAD_NORM, **changes})  # type: ignore[arg-type]
