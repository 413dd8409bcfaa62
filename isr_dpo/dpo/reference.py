"""The reference's log-probabilities: one pass without gradient before the first step, then no reference any more.

Computed by the trainer's own forward pass, so that a policy at its start has a log-ratio of exactly 0 to itself. The
file names the policy and the pairs it belongs to; another's is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isr_dpo.dpo.ahead import ahead
from isr_dpo.dpo.backend import Backend
from isr_dpo.dpo.batch import BadPair, Pairs, Tokens, Video
from isr_dpo.errors import CorruptOutput, DataError, StaleOutput

NAME = "reference.safetensors"


@dataclass(frozen=True)
class Reference:
    """Of all N pairs of a round, in their order; the entries of pairs that were left out are zero."""

    chosen: Tensor
    """Summed log-probabilities (nats) [N] fp64."""
    rejected: Tensor
    lengths: Tensor
    """Tokens of prompt, chosen and rejected [N, 3]."""
    left_out: dict[int, str]
    """Pairs that cannot be trained on, by index, with the reason."""

    def pairs(self) -> list[int]:
        """The pairs to train on."""
        return [index for index in range(len(self.chosen)) if index not in self.left_out]

    def tokens(self, index: int) -> int:
        """Length of a pair in a packed row."""
        return int(self.lengths[index].sum())


def compute(
    backend: Backend,
    pairs: Pairs,
    *,
    budget_tokens: int,
    max_bad_fraction: float,
    progress: Callable[[int], None] = lambda _: None,
) -> Reference:
    """Log-probabilities of all pairs under the backend's module as it stands, shared out over the ranks.

    Raises:
        DataError: more than `max_bad_fraction` of the pairs cannot be trained on; names them.
    """
    chosen, rejected = torch.zeros(2, len(pairs), dtype=torch.float64)
    lengths = torch.zeros((len(pairs), 3), dtype=torch.int32)
    left_out: dict[int, str] = {}
    mine = range(backend.rank, len(pairs), backend.ranks)
    chunks = ahead(_chunks(pairs, mine, budget_tokens, left_out))
    filler: list[tuple[Tokens, Video]] = []
    with torch.no_grad():
        while True:
            indices, loaded = next(chunks, ([], filler))
            (running,) = backend.sum(torch.tensor([len(indices)], dtype=torch.float64)).tolist()
            if not running:
                break
            loaded = loaded or [_any(pairs)]  # a rank without pairs of its own runs beside the others
            logps = backend.module(pairs.pack(loaded))
            for number, index in enumerate(indices):
                chosen[index], rejected[index] = logps.chosen[number].cpu(), logps.rejected[number].cpu()
                tokens = loaded[number][0]
                lengths[index] = torch.tensor([len(tokens.prompt), len(tokens.chosen), len(tokens.rejected)])
            filler = loaded
            progress(int(running))
    everywhere: dict[int, str] = {}
    for found in backend.gather(left_out):
        everywhere |= found
    _refuse(everywhere, len(pairs), max_bad_fraction)
    gathered = backend.gather((chosen, rejected, lengths))  # each pair is zero on all ranks but one
    return Reference(
        chosen=torch.stack([part[0] for part in gathered]).sum(0),
        rejected=torch.stack([part[1] for part in gathered]).sum(0),
        lengths=torch.stack([part[2] for part in gathered]).sum(0),
        left_out=dict(sorted(everywhere.items())),
    )


def save(path: Path, reference: Reference, *, policy: str, pairs: str) -> None:
    """Writes the file whole or not at all. `policy`, `pairs`: digests of what it belongs to."""
    tensors = {"chosen": reference.chosen, "rejected": reference.rejected, "lengths": reference.lengths}
    left_out = json.dumps({str(index): reason for index, reason in reference.left_out.items()})
    unfinished = path.with_suffix(".tmp")
    save_file(tensors, unfinished, metadata={"policy": policy, "pairs": pairs, "left_out": left_out})
    unfinished.replace(path)


def load(path: Path, *, policy: str, pairs: str) -> Reference:
    """Reads the file back.

    Raises:
        StaleOutput: it belongs to another policy or to other pairs.
        CorruptOutput: it is none of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("chosen", "rejected", "lengths")}
        left_out = {int(index): str(reason) for index, reason in json.loads(metadata["left_out"]).items()}
        found = {"policy": metadata["policy"], "pairs": metadata["pairs"]}
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptOutput(f"{path}: no reference log-probabilities ({error}); delete it and run again") from error
    for name, wanted in (("policy", policy), ("pairs", pairs)):
        if found[name] != wanted:
            raise StaleOutput(
                f"{path}: reference log-probabilities of another {name}: {found[name][:12]} stands there, this round "
                f"has {wanted[:12]}; delete the file and run again"
            )
    return Reference(**tensors, left_out=left_out)


def _chunks(
    pairs: Pairs, mine: Sequence[int], budget_tokens: int, left_out: dict[int, str]
) -> Iterator[tuple[list[int], list[tuple[Tokens, Video]]]]:
    """Pairs in their order, as many at a time as the budget holds; bad ones are noted in `left_out`."""
    indices: list[int] = []
    loaded: list[tuple[Tokens, Video]] = []
    used = 0
    for index in mine:
        try:
            tokens, video = pairs.load(index)
        except BadPair as error:
            left_out[index] = str(error)
            continue
        if indices and used + len(tokens) > budget_tokens:
            yield indices, loaded
            indices, loaded, used = [], [], 0
        indices.append(index)
        loaded.append((tokens, video))
        used += len(tokens)
    if indices:
        yield indices, loaded


def _any(pairs: Pairs) -> tuple[Tokens, Video]:
    for index in range(len(pairs)):
        try:
            return pairs.load(index)
        except BadPair:
            continue
    raise DataError("train: none of the pairs can be trained on")


def _refuse(left_out: dict[int, str], total: int, max_bad_fraction: float) -> None:
    if len(left_out) > max_bad_fraction * total:
        shown = "\n  ".join(reason for _, reason in sorted(left_out.items())[:5])
        raise DataError(
            f"train: {len(left_out)} of {total} pairs cannot be trained on, train.max_bad_fraction allows "
            f"{max_bad_fraction:g}:\n  {shown}" + ("\n  ..." if len(left_out) > 5 else "")
        )
