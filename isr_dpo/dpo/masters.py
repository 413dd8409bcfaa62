"""fp32 masters between rounds: the weights as trained, of which a bf16 policy holds only the rounding.

At the method's learning rate (5e-7) a round moves most weights by less than half a bf16 step [D], so a round that
started from a bf16 policy would lose most of what the rounds before it learnt. It starts from the masters instead:
a folder of safetensors shards, each writer's with an index (tensor name -> shard), named as the model's parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from isr_dpo import models
from isr_dpo.errors import CorruptOutput, StaleOutput

SHARD_BYTES = 4 * 1024**3
_INDEX = ".index.json"
_CHUNK = 1 << 18  # elements: a chunk and its casts stay in the cache, a minute of one core at 7B


def write(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int = SHARD_BYTES, writer: int = 0
) -> None:
    """Writes fp32 tensors, one shard's worth in memory at a time, and their index last.

    Args:
        tensors: by name; they must not change before the next shard begins.
        max_shard_bytes: a larger tensor gets a shard of its own.
        writer: the rank, where several write a share each into the same folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"masters-{writer:02d}"
    shard: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    held = total = shards = 0

    def flush() -> None:
        nonlocal shards, held
        shards += 1
        name = f"{stem}-{shards:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()
        held = 0

    for name, tensor in tensors:
        assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}; masters are fp32"
        assert name not in places, f"{name} is written twice"
        assert name not in shard, f"{name} is written twice"
        if shard and held + tensor.nbytes > max_shard_bytes:
            flush()
        shard[name] = tensor.detach().cpu().contiguous()
        held, total = held + tensor.nbytes, total + tensor.nbytes
    if shard:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / (stem + _INDEX)).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


class Masters(Mapping[str, Tensor]):
    """Parameter name -> fp32 tensor on the CPU, read when asked for; in the order in which they were written.

    Raises:
        CorruptOutput: no index, a name in two indexes, or (on reading) a shard that is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, str] = {}
        indexes = sorted(folder.glob("*" + _INDEX))
        if not indexes:
            raise CorruptOutput(f"{folder}: no masters lie there (no *{_INDEX})")
        for index in indexes:
            try:
                places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptOutput(f"{index}: not an index of masters ({error})") from error
            for name in places.keys() & self._places.keys():
                raise CorruptOutput(f"{index}: {name} stands in another index of {folder} too")
            self._places |= places

    def __getitem__(self, name: str) -> Tensor:
        path = self.folder / self._places[name]
        try:
            with safe_open(path, framework="pt") as shard:
                tensor: Tensor = shard.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CorruptOutput(f"{path}: {name} cannot be read: {error}") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def export(start: Path, masters: Masters, out: Path, *, dtype: torch.dtype) -> None:
    """Writes the policy: `start` with the masters in place of its trained weights, all cast to `dtype` on the CPU (to
    the nearest, ties to even), and its processor.

    Raises:
        ModelError: `start` cannot be loaded.
        CorruptOutput: the masters do not fit it.
    """
    policy = models.load(start, dtype=_name(dtype))
    parameters = _parameters(policy.model)
    with torch.no_grad():
        for name, master in masters.items():
            _fitting(parameters, name, master, masters).copy_(master)
    models.save(policy, out)


def check(model: nn.Module, masters: Masters, *, dtype: torch.dtype) -> None:
    """Refuses masters that are not a policy's: cast to `dtype` they must be its weights, bit for bit.

    Args:
        model: the policy as loaded, in `dtype` or fp32.
        dtype: what its files hold (`stored_dtype`).

    Raises:
        StaleOutput: a weight differs.
        CorruptOutput: a master without a parameter, or of another shape.
    """
    parameters = _parameters(model)
    for name, master in masters.items():
        weight = _fitting(parameters, name, master, masters)
        cast = master.to(weight.device).to(dtype).to(weight.dtype)
        differ = int((_bits(cast) != _bits(weight.detach())).sum())
        if differ:
            raise StaleOutput(
                f"{masters.folder}: {name} is not the policy's, {differ} of {master.numel()} values differ once cast "
                f"to {_name(dtype)}: these masters belong to another policy. Delete the folder: training then starts "
                "from the policy itself"
            )


def stored_dtype(policy: Path) -> torch.dtype:
    """The dtype that a policy's weights are stored in, by its config.json. Raises CorruptOutput where it says none."""
    tree: dict[str, Any] = json.loads((policy / "config.json").read_text(encoding="utf-8"))
    name = tree.get("dtype") or tree.get("torch_dtype")
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise CorruptOutput(f"{policy / 'config.json'}: dtype {name!r} is none that weights are stored in")
    return found


def update_kept(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, dtype: torch.dtype) -> float:
    """The share of a round's update that an export in `dtype` holds, by norm over all trained weights [O].

    With u = after - before and e = cast(after) - cast(before), a weight keeps what its export moved the same way, at
    most the whole: kept = clamp(e sign(u), 0, |u|); the share is ||kept|| / ||u||. An export that overshoots gains
    nothing by it, one that stays or turns back keeps nothing. 1 where `dtype` is fp32. **0 where nothing moved at
    all**: an update of nothing is a fault to be seen, not a perfect export.

    Args:
        before: at least the tensors of `after`: the round's start (the last masters, or the policy's own weights).
        after: the masters at its end.

    Raises:
        ValueError: a tensor has no counterpart of its shape in `before`.
    """
    kept = moved = 0.0
    for name, end in after.items():
        start = before.get(name)
        if start is None or start.shape != end.shape:
            shape = None if start is None else tuple(start.shape)
            raise ValueError(f"{name}: {tuple(end.shape)} after training, {shape} before")
        # Both are fp32 and near each other: their difference is exact or as good.
        chunks = (torch.split(tensor.detach().flatten(), _CHUNK) for tensor in (start, end))
        for first, last in zip(*chunks, strict=True):
            update = last.float() - first.float()
            exported = last.to(dtype).float() - first.to(dtype).float()
            held = (exported * update.sign()).clamp_(min=0).minimum(update.abs())
            kept += float(held.double().square_().sum())
            moved += float(update.double().square_().sum())
    return math.sqrt(kept / moved) if moved else 0.0


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By every name, those of tied weights too."""
    return dict(model.named_parameters(remove_duplicate=False))


def _fitting(parameters: Mapping[str, nn.Parameter], name: str, master: Tensor, masters: Masters) -> nn.Parameter:
    parameter = parameters.get(name)
    if parameter is None or parameter.shape != master.shape:
        found = "no such parameter" if parameter is None else f"shape {tuple(parameter.shape)}"
        raise CorruptOutput(
            f"{masters.folder}: {name} has shape {tuple(master.shape)}, the policy has {found}; "
            "these masters belong to another model"
        )
    return parameter


def _bits(tensor: Tensor) -> Tensor:
    """For comparison bit by bit, in which 0 is not -0 and a NaN is itself."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(whole)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
