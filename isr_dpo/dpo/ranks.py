"""The processes that train together, and what they tell each other beside gradients."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""Ranks may wait this long for one that writes a checkpoint; a rank that dies ends the others at once (`launch`)."""


class Ranks:
    """One process alone; `join` gives the ranks of a torchrun start."""

    rank = 0
    ranks = 1

    def sum(self, values: Tensor) -> Tensor:
        """Of `values` [n], on the CPU, over the ranks, the same on each. Collective."""
        return values

    def gather(self, item: T) -> list[T]:
        """The ranks' items (picklable), by rank, on every rank. Collective."""
        return [item]

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replaces each tensor, on the training device, by its sum over the ranks. Collective."""

    def leave(self) -> None:
        """Nothing may be asked afterwards."""


class _Group(Ranks):
    def __init__(self) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._cpu: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=TIMEOUT)  # type: ignore[assignment]

    def sum(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=self._cpu)
        return total

    def gather(self, item: T) -> list[T]:
        items: list[T | None] = [None] * self.ranks
        dist.all_gather_object(items, item, group=self._cpu)
        return items  # type: ignore[return-value]

    def add_up(self, tensors: list[Tensor]) -> None:
        works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
        for work in works:
            work.wait()

    def leave(self) -> None:
        dist.destroy_process_group()


def join() -> Ranks:
    """Joins the ranks that the environment describes (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: what
    torchrun and Kubeflow's TrainJob set): NCCL, one GPU a rank, where there are GPUs, else gloo."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo", timeout=TIMEOUT)
    return _Group()
