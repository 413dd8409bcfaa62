"""The backend of one process: `torch.optim.AdamW` on one device, the module itself in fp32 is the master.

Needs neither DeepSpeed nor a process group, so a laptop starts at once and repeats itself bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from isr_dpo.dpo.backend import ADAMW, Backend, BackendSettings, State, States, T, require_all_trained, restored


def open(
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    settings: BackendSettings,
    *,
    states: States,
    steps: int = 0,
) -> Backend:
    """A backend over `module`, in place on its device.

    Args:
        parameters: by name, exactly those of the module that require a gradient.
        states: what each starts from (see `States`).
        steps: optimiser steps already taken by what `states` gives: Adam's bias correction goes on from there.

    Raises:
        ValueError: a parameter is not in fp32 (or fp64), or a state has another shape.
    """
    require_all_trained(module, parameters)
    return _Plain(module, parameters, settings, states=states, steps=steps)


class _Plain:
    rank = 0
    ranks = 1

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        settings: BackendSettings,
        *,
        states: States,
        steps: int,
    ) -> None:
        self.module = module
        self._parameters = parameters
        self._max_grad_norm = settings.max_grad_norm or math.inf
        self._optimizer = torch.optim.AdamW(list(parameters.values()), lr=0.0, **ADAMW)
        for name, parameter in parameters.items():
            self._start(name, parameter, states(name), steps=steps)

    def _start(self, name: str, parameter: nn.Parameter, state: State | None, *, steps: int) -> None:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {parameter.dtype}: one process trains in fp32, load the policy as float32")
        if state is None:
            state = State.fresh(parameter.detach())
        state = restored(parameter, state, name=name)
        with torch.no_grad():
            parameter.copy_(state.master)
        self._optimizer.state[parameter] = {
            "step": torch.tensor(float(steps)),
            "exp_avg": torch.empty_like(parameter).copy_(state.exp_avg),
            "exp_avg_sq": torch.empty_like(parameter).copy_(state.exp_avg_sq),
        }

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def states(self) -> Iterator[tuple[str, State]]:
        for name, parameter in self._parameters.items():
            moments = self._optimizer.state[parameter]
            tensors = (parameter.detach(), moments["exp_avg"], moments["exp_avg_sq"])
            yield name, State(*(tensor.cpu().clone() for tensor in tensors))

    def sum(self, values: Tensor) -> Tensor:
        return values

    def gather(self, item: T) -> list[T]:
        return [item]

    def close(self) -> None:
        pass
