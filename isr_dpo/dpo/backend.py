"""The seam between the training loop and who holds the optimiser: one process of plain PyTorch, or DeepSpeed's ranks.

    plain.open(module, parameters, settings, states=...)    one device, fp32; never imports deepspeed
    zero.open(module, parameters, settings, states=...)     every rank of a torchrun start; ZeRO 0 to 3, bf16 or fp32

Both train the same thing: AdamW, betas (0.9, 0.999), eps 1e-8, no weight decay [C], on fp32 masters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from isr_dpo.dpo.ranks import T

Dtype = Literal["float32", "bfloat16"]

ADAMW: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
"""What both backends give `torch.optim.AdamW` beside the learning rate."""


class State(NamedTuple):
    """One trained parameter: its master weight and Adam's moments, each whole, fp32, on the CPU, in its shape."""

    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    @classmethod
    def fresh(cls, master: Tensor) -> State:
        """A master before its first step: the start of a round."""
        return cls(master, torch.zeros_like(master), torch.zeros_like(master))


States = Callable[[str], State | None]
"""Parameter name -> what to start from; None: the module's own weight as loaded, no moments. Asked once a parameter on
every rank, in the same order; one answer at a time is held in memory."""


@dataclass(frozen=True)
class BackendSettings:
    """How to hold and update the parameters. `plain.open` takes the module as it is and reads only the last two."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """What the ranks split: nothing, optimiser states, and gradients, and weights."""
    dtype: Dtype = "bfloat16"
    """Of weights and activations in a forward pass; the masters are fp32 in any case."""
    accumulate_dtype: Dtype = "float32"
    """Of the gradient summed over micro-batches; bfloat16 saves memory and loses small gradients."""
    max_grad_norm: float | None = None
    """Gradients are scaled down to this global norm; None: never."""


class Backend(Protocol):
    """Holds the fp32 masters and Adam's moments of the trained parameters."""

    rank: int
    ranks: int
    module: nn.Module
    """What to call for a forward pass, with or without gradient (DeepSpeed: its engine)."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradient of `loss` (scalar). Gradients are SUMMED over micro-batches and ranks: the caller has
        divided by the global batch. `last` marks the last micro-batch of an optimiser step; all ranks run the same
        number of micro-batches."""

    def step(self, learning_rate: float) -> float:
        """One update after a `last` micro-batch; clears the gradients.

        Returns: the norm of the global gradient before clipping; not finite where the gradient is not, and then nothing
        is updated.
        """

    def states(self) -> Iterator[tuple[str, State]]:
        """All trained parameters, exact, in the same order on all ranks. Collective: every rank must iterate to the
        end."""

    def sum(self, values: Tensor) -> Tensor:
        """Of `values` (fp64 [n] on the CPU) over the ranks, the same on each. Collective."""

    def gather(self, item: T) -> list[T]:
        """The ranks' items (picklable), by rank, on every rank. Collective."""

    def close(self) -> None:
        """Leaves the other ranks in good order; nothing may be called afterwards."""


def require_all_trained(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Both backends train exactly the parameters that require a gradient; a difference is our own mistake."""
    wanted, found = {id(p) for p in parameters.values()}, {id(p) for p in module.parameters() if p.requires_grad}
    assert wanted == found, f"{len(wanted)} parameters named, {len(found)} of the module require a gradient"


def restored(parameter: Tensor, state: State, *, name: str) -> State:
    """`state`, checked against the parameter's shape."""
    if state.master.shape != parameter.shape:
        raise ValueError(
            f"{name}: the stored master has shape {tuple(state.master.shape)}, the policy's parameter "
            f"{tuple(parameter.shape)}; the masters belong to another policy"
        )
    return state
