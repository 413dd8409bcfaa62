"""The backend that splits nothing: every process holds all fp32 masters and moments, in `torch.optim.AdamW`.

Needs no DeepSpeed and, alone, no process group: a laptop starts at once and repeats itself bit for bit. It is also
what ZeRO stage 0 means, so `zero.open` gives it to the ranks of a stage-0 run. An fp32 module is its own master; a bf16
module (a GPU) has fp32 masters beside it, and its gradients are added up in fp32 unless the settings say bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from isr_dpo.dpo.backend import ADAMW, Backend, BackendSettings, State, States, require_all_trained, restored
from isr_dpo.dpo.ranks import Ranks, T

ALONE = Ranks()


def open(
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    settings: BackendSettings,
    *,
    states: States,
    steps: int = 0,
    ranks: Ranks = ALONE,
) -> Backend:
    """A backend over `module`, in place on its device and in its dtype (fp32 on a CPU).

    Args:
        parameters: by name, exactly those of the module that require a gradient.
        states: what each starts from (see `States`).
        steps: optimiser steps already taken by what `states` gives: Adam's bias correction goes on from there.
        ranks: the processes whose gradients are added up.

    Raises:
        ValueError: a state has another shape than its parameter.
    """
    require_all_trained(module, parameters)
    return _Plain(module, parameters, settings, states=states, steps=steps, ranks=ranks)


class _Plain:
    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        settings: BackendSettings,
        *,
        states: States,
        steps: int,
        ranks: Ranks,
    ) -> None:
        self.module = module
        self._ranks = ranks
        self.rank, self.ranks = ranks.rank, ranks.ranks
        self._max_grad_norm = settings.max_grad_norm or math.inf
        self._parameters = parameters
        self._masters = {name: _master(parameter) for name, parameter in parameters.items()}
        fused = next(iter(parameters.values())).is_cuda
        self._optimizer = torch.optim.AdamW(self._masters.values(), lr=0.0, fused=fused, **ADAMW)
        for name, parameter in parameters.items():
            self._start(name, states(name), steps=steps)
            if self._masters[name] is not parameter and settings.accumulate_dtype == "float32":
                parameter.register_post_accumulate_grad_hook(_moves_to(self._masters[name]))  # type: ignore[no-untyped-call]

    def _start(self, name: str, state: State | None, *, steps: int) -> None:
        """Fills the master and its moments, and makes the parameter their rounding."""
        parameter, master = self._parameters[name], self._masters[name]
        state = restored(master, state or State.fresh(master.detach()), name=name)
        with torch.no_grad():
            master.copy_(state.master)
            parameter.copy_(master)
        self._optimizer.state[master] = {
            "step": torch.tensor(float(steps), device=master.device if master.is_cuda else "cpu"),
            "exp_avg": torch.empty_like(master).copy_(state.exp_avg),
            "exp_avg_sq": torch.empty_like(master).copy_(state.exp_avg_sq),
        }

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        masters = list(self._masters.values())
        for parameter, master in zip(self._parameters.values(), masters, strict=True):
            if parameter.grad is not None and parameter is not master:
                master.grad, parameter.grad = parameter.grad.float(), None
            elif master.grad is None:
                master.grad = torch.zeros_like(master)
        self._ranks.add_up([master.grad for master in masters if master.grad is not None])
        norm = float(torch.nn.utils.clip_grad_norm_(masters, self._max_grad_norm))
        if math.isfinite(norm):
            self._update(learning_rate)
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _update(self, learning_rate: float) -> None:
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self._parameters.values(), self._masters.values(), strict=True):
                if parameter is not master:
                    parameter.copy_(master)

    def states(self) -> Iterator[tuple[str, State]]:
        for name, master in self._masters.items():
            moments = self._optimizer.state[master]
            yield (
                name,
                State(*(t.detach().to("cpu", copy=True) for t in (master, moments["exp_avg"], moments["exp_avg_sq"]))),
            )

    def sum(self, values: Tensor) -> Tensor:
        return self._ranks.sum(values)

    def gather(self, item: T) -> list[T]:
        return self._ranks.gather(item)

    def close(self) -> None:
        self._ranks.leave()


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself where it is exact enough, else a copy in fp32."""
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return nn.Parameter(parameter.detach().float())


def _moves_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    """Adds a gradient to the master's as soon as it is complete, and frees it."""

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return move
