"""The backend of many ranks: DeepSpeed's ZeRO around the module, our own `torch.optim.AdamW` inside it.

Stage 1 splits masters and moments over the ranks, stage 2 the gradients too, stage 3 the weights too (Rajbhandari et
al. 2020). Stage 0 splits nothing, so there is nothing for DeepSpeed to do: `plain` runs it, in bf16 with gradients
added up in fp32, which DeepSpeed's own stage 0 refuses.

Nothing is compiled at the start: the optimiser is torch's, and DeepSpeed is told that none of its own native operators
is to be had, of which it would build one for gloo (its shared-memory all-reduce, about 80 s). Masters and moments go in
and out through `deepspeed.utils.safe_*`, so a start from them is exact and not from the module's rounding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isr_dpo.dpo import plain, ranks
from isr_dpo.dpo.backend import ADAMW, Backend, BackendSettings, State, States, require_all_trained, restored
from isr_dpo.dpo.ranks import Ranks, T
from isr_dpo.errors import ModelError

BUCKET_ELEMENTS = 200_000_000
"""Gradients reduced in one go: larger than a 7B policy's embedding, 0.8 GB in fp32 (DeepSpeed's own: 500 million)."""


def open(
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    settings: BackendSettings,
    *,
    states: States,
    steps: int = 0,
    whole: nn.Module | None = None,
) -> Backend:
    """A backend on this rank. Collective: every rank opens with the same weights and settings.

    Args:
        module: moved to this rank's GPU, where there is one, and to `settings.dtype`.
        parameters: by name, exactly those of the module that require a gradient.
        states: what each starts from. A weight loaded in fp32 for which there is no state is the master as it is; its
            copy costs memory until the backend stands, so load a large policy in `settings.dtype`.
        steps: optimiser steps already taken by what `states` gives: Adam's bias correction goes on from there.
        whole: a part of the module that DeepSpeed gets whole, frozen weights in it too; of the rest, only what trains.

    Raises:
        ValueError: a state has another shape than its parameter.
    """
    require_all_trained(module, parameters)
    group = ranks.join()
    dtype = getattr(torch, settings.dtype)
    loaded = {n: p.detach().float().cpu() for n, p in parameters.items() if p.dtype not in (dtype, torch.bfloat16)}

    def start(name: str) -> State | None:
        state = states(name)
        return State.fresh(loaded[name]) if state is None and name in loaded else state

    module.to(f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu")
    with _exact_buffers(module):
        module.to(dtype)
        if settings.zero_stage == 0:
            return plain.open(module, parameters, settings, states=start, steps=steps, ranks=group)
        _set_apart(module, whole)
        backend = _Zero(module, parameters, settings, group)
    for name in parameters:
        backend.start(name, start(name))
    backend.count(steps)
    return backend


def _set_apart(module: nn.Module, whole: nn.Module | None) -> None:
    """Makes frozen parts plain attributes, which work as before and which DeepSpeed does not see.

    At stage 3 a forward pass through a split part is an exchange that all ranks must take part in, but a tower runs as
    often as a rank has new videos. Every rank keeps these parts whole.
    """
    if module is whole:
        return
    for name, parameter in list(module.named_parameters(recurse=False)):
        if not parameter.requires_grad:
            del module._parameters[name]
            module.__dict__[name] = parameter
    for name, child in list(module.named_children()):
        if child is not whole and not any(p.requires_grad for p in child.parameters()):
            del module._modules[name]
            module.__dict__[name] = child
        else:
            _set_apart(child, whole)


@contextlib.contextmanager
def _exact_buffers(module: nn.Module) -> Iterator[None]:
    """A cast of the weights, ours or DeepSpeed's, takes the buffers along; those of rotary positions must stay fp32."""
    kept = [(part, name, buffer) for part in module.modules() for name, buffer in part.named_buffers(recurse=False)]
    yield
    for part, name, buffer in kept:
        part._buffers[name] = buffer


def config(settings: BackendSettings, *, elements: int) -> dict[str, Any]:
    """DeepSpeed's configuration for `elements` trained weights. Its batch sizes mean nothing here: `backward` is told
    which micro-batch is the last."""
    accumulate = {"float32": "fp32", "bfloat16": "bf16"}[settings.accumulate_dtype]
    half = settings.dtype == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": half, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": accumulate if half else "fp32"},
        "communication_data_type": accumulate if half else "fp32",
        "gradient_clipping": settings.max_grad_norm or 0.0,
        "zero_optimization": {"stage": settings.zero_stage, "reduce_bucket_size": min(BUCKET_ELEMENTS, elements)},
        "zero_allow_untested_optimizer": True,
    }


class _Zero:
    """Stages 1 to 3."""

    module: nn.Module

    def __init__(
        self, module: nn.Module, parameters: Mapping[str, nn.Parameter], settings: BackendSettings, group: Ranks
    ) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        try:
            import deepspeed
        except ImportError as error:
            raise ModelError(
                f"training on a GPU or on several ranks needs the package deepspeed ({error}): install isr-dpo[train], "
                "or set train.zero_stage=0, which splits nothing over the ranks and does without"
            ) from error

        deepspeed.ops.__compatible_ops__ = {}
        self._deepspeed = deepspeed
        self._group = group
        self.rank, self.ranks = group.rank, group.ranks
        self._parameters = parameters
        self._split_weights = settings.zero_stage == 3
        fused = torch.cuda.is_available()
        self._optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, fused=fused, **ADAMW)
        deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
        elements = sum(parameter.numel() for parameter in parameters.values())
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._optimizer, config=config(settings, elements=elements)
        )
        self.module = self._engine
        self._make_moments()

    def _make_moments(self) -> None:
        """Zero moments of this rank's share; DeepSpeed would make them at the first step, too late to be filled."""
        wrapped = self._engine.optimizer
        flats = (
            wrapped.fp32_partitioned_groups_flat if self._split_weights else self._optimizer.param_groups[0]["params"]
        )
        for flat in flats:
            self._optimizer.state[flat] = {
                "step": torch.tensor(0.0, device=flat.device),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
            if not self._split_weights:
                self._deepspeed.utils.lazy_init_hp_params_optimizer_state(
                    list(self._parameters.values()), flat, self._optimizer.state
                )

    def start(self, name: str, state: State | None) -> None:
        """Makes a parameter's master and moments what `state` says, and the weight its rounding. Collective."""
        if state is None:
            return
        utils, parameter = self._deepspeed.utils, self._parameters[name]
        with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._split_weights):
            state = restored(parameter, state, name=name)
            with torch.no_grad():
                parameter.copy_(state.master)
        if self._split_weights:
            # By local share: the setter of a whole tensor fails where the ranks do not divide its size.
            utils.safe_set_local_fp32_param(parameter, self._share(parameter, state.master))
            utils.safe_set_local_optimizer_state(parameter, self._share(parameter, state.exp_avg), "exp_avg")
            utils.safe_set_local_optimizer_state(parameter, self._share(parameter, state.exp_avg_sq), "exp_avg_sq")
        else:
            utils.safe_set_full_fp32_param(parameter, state.master)
            utils.safe_set_full_optimizer_state(parameter, state.exp_avg, "exp_avg")
            utils.safe_set_full_optimizer_state(parameter, state.exp_avg_sq, "exp_avg_sq")

    def _share(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """This rank's part of a tensor at stage 3: equal parts of its elements, the last ones filled up with zeros."""
        size = self._deepspeed.utils.safe_get_local_fp32_param(parameter).numel()
        padded = nn.functional.pad(whole.flatten(), (0, size * self.ranks - whole.numel()))
        return padded[self.rank * size :][:size]

    def count(self, steps: int) -> None:
        """Sets the number of steps that Adam has taken."""
        for state in self._optimizer.state.values():
            state["step"].fill_(float(steps))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over the ranks; the seam's gradients are sums.
        self._engine.backward(loss * self.ranks, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def states(self) -> Iterator[tuple[str, State]]:
        utils = self._deepspeed.utils
        for name, parameter in self._parameters.items():
            yield (
                name,
                State(
                    utils.safe_get_full_fp32_param(parameter).cpu(),
                    utils.safe_get_full_optimizer_state(parameter, "exp_avg").cpu(),
                    utils.safe_get_full_optimizer_state(parameter, "exp_avg_sq").cpu(),
                ),
            )

    def sum(self, values: Tensor) -> Tensor:
        return self._group.sum(values)

    def gather(self, item: T) -> list[T]:
        return self._group.gather(item)

    def close(self) -> None:
        self._engine.destroy()
        self._group.leave()
