"""One rank of the ZeRO tests: every stage in one start, for starts are what costs; leaves what it found."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import torch

from isr_dpo.dpo import launch, zero
from isr_dpo.dpo.backend import BackendSettings, State
from tests.dpo import toy

FOUND = "found.pt"
HALF = toy.STEPS // 2
COMBINATIONS = [
    toy.settings(zero_stage=stage, dtype=dtype, accumulate_dtype=accumulate)
    for stage in range(4)
    for dtype, accumulate in [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
]


@dataclasses.dataclass
class Found:
    """Of one combination."""

    start: dict[str, State]
    """Before any step, from the module's own weights."""
    norms: list[float]
    end: dict[str, State]
    """After all steps."""
    middle_again: bool
    """A fresh backend gives back the states of another, without a step."""
    resumed_norms: list[float]
    resumed_end: dict[str, State]
    """From those states, the second half of the steps."""
    given_again: bool
    """States that bf16 cannot hold come back bit for bit."""
    weights_follow: bool
    """The forward pass uses those masters' rounding."""
    nan_norm: float
    nan_changes_nothing: bool
    frozen_untouched: bool
    frozen_apart: bool
    """DeepSpeed does not know of the frozen layer."""
    buffers_exact: bool
    summed: list[float]
    gathered: list[dict[str, int]]


def check(settings: BackendSettings) -> Found:
    """All that is asked of one combination; collective."""
    module = toy.make()
    first = zero.open(module, toy.trained(module), settings, states=lambda _: None)
    start = toy.states_of(first)
    norms = toy.run(first, range(HALF))
    middle = toy.states_of(first)
    norms += toy.run(first, range(HALF, toy.STEPS))
    end = toy.states_of(first)

    module = toy.make()
    second = zero.open(module, toy.trained(module), settings, states=middle.__getitem__, steps=HALF)
    middle_again = toy.equal(toy.states_of(second), middle)
    resumed_norms = toy.run(second, range(HALF, toy.STEPS))

    module = toy.make()
    given = toy.invented(module)
    third = zero.open(module, toy.trained(module), settings, states=given.__getitem__, steps=3)
    given_again = toy.equal(toy.states_of(third), given)
    rounded = toy.make()
    for name, parameter in toy.trained(rounded).items():
        parameter.data.copy_(given[name].master)
    rounded.to(getattr(torch, settings.dtype))
    batch = toy.batches(0)[0]
    with torch.no_grad():
        ours, theirs = third.module(batch), rounded(batch)
    poison = math.nan if third.rank == 1 else 1.0
    third.backward(third.module(batch).chosen.sum() * poison, last=True)
    return Found(
        start=start,
        norms=norms,
        end=end,
        middle_again=middle_again,
        resumed_norms=resumed_norms,
        resumed_end=toy.states_of(second),
        given_again=given_again,
        weights_follow=all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)),
        nan_norm=third.step(1e-3),
        nan_changes_nothing=toy.equal(toy.states_of(third), given),
        frozen_untouched=_frozen_untouched(first.module, settings),
        frozen_apart=not any("tower" in name for name, _ in first.module.named_parameters()),
        buffers_exact=_toy(first.module, settings).frequencies.dtype == torch.float32,
        summed=third.sum(torch.tensor([1.0 + third.rank, 0.1], dtype=torch.float64)).tolist(),
        gathered=third.gather({"rank": third.rank}),
    )


def _toy(module: torch.nn.Module, settings: BackendSettings) -> toy.Toy:
    found = module.get_submodule("module") if settings.zero_stage else module
    assert isinstance(found, toy.Toy)
    return found


def _frozen_untouched(module: torch.nn.Module, settings: BackendSettings) -> bool:
    """By what the frozen layer computes."""
    layer = _toy(module, settings).tower
    features = toy.batches(0)[0][0].to(getattr(torch, settings.dtype))
    return torch.equal(layer(features), toy.make().tower.to(features.dtype)(features))


def main() -> None:
    with launch.rank_of(Path(sys.argv[1])) as folder:
        found = {settings: check(settings) for settings in COMBINATIONS}
        if launch.rank() == 0:
            torch.save(found, folder / FOUND)


if __name__ == "__main__":
    from tests.dpo import zero_worker  # under this name the results can be loaded elsewhere

    zero_worker.main()
