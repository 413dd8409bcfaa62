"""The shared-prefix forward pass is two ordinary forward passes: log-probs, loss and gradients, for every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from isr_dpo import models
from isr_dpo.dpo import attention
from isr_dpo.dpo.attention import Layout, Segment, Span
from isr_dpo.dpo.batch import Pairs
from isr_dpo.dpo.forward import SharedPrefix
from isr_dpo.dpo.loss import dpo_loss
from isr_dpo.errors import ModelError
from isr_dpo.models import Policy
from tests import families
from tests.dpo.ordinary import ROWS, TEMPLATE, both


class Computed(NamedTuple):
    logps: Tensor
    losses: Tensor
    gradients: dict[str, Tensor]


@pytest.fixture(scope="module", params=[*families.FAMILIES, *families.FORMS])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def clip(family: str) -> Callable[[str], np.ndarray]:
    return lambda key: families.clip(family, key)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build(tmp_path_factory.mktemp(family), family)


@pytest.fixture
def policy(folder: Path) -> Policy:
    return models.load(folder, dtype="float64")


def losses_of(logps: Tensor) -> Tensor:
    reference = torch.full_like(logps, -9.0)
    return dpo_loss(*logps, *reference, beta=0.5).loss


def gradients(policy: Policy) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in policy.trainable().items() if p.grad is not None}


@pytest.fixture(scope="module")
def expected(folder: Path, clip: Callable[[str], np.ndarray]) -> Computed:
    policy = models.load(folder, dtype="float64")
    logps = both(policy, ROWS, clip)
    losses = losses_of(logps)
    losses.sum().backward()
    return Computed(logps.detach(), losses.detach(), gradients(policy))


def shared(policy: Policy, clip: Callable[[str], np.ndarray], *, checkpointing: bool, packed: bool) -> Computed:
    pairs = Pairs(ROWS, policy, template=TEMPLATE, frames=clip)
    module = SharedPrefix(policy, checkpointing=checkpointing)
    logps, losses = [], []
    for indices in [[0, 1, 2]] if packed else [[0], [1], [2]]:
        logps.append(torch.stack(module(pairs.batch(indices))))
        losses.append(losses_of(logps[-1]))
        losses[-1].sum().backward()
    return Computed(torch.cat(logps, 1).detach(), torch.cat(losses).detach(), gradients(policy))


def worst(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative difference of a parameter's gradient."""
    assert found.keys() == wanted.keys()
    return max(float((found[n] - wanted[n]).norm() / wanted[n].norm().clamp(min=1e-12)) for n in wanted)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("packed", [False, True], ids=["alone", "packed"])
def test_equals_two_ordinary_passes_with_pixels(
    policy: Policy, clip: Callable[[str], np.ndarray], expected: Computed, checkpointing: bool, packed: bool
) -> None:
    found = shared(policy, clip, checkpointing=checkpointing, packed=packed)
    assert (found.logps - expected.logps).abs().max() <= 1e-9
    assert (found.losses - expected.losses).abs().max() <= 1e-9
    assert worst(found.gradients, expected.gradients) <= 1e-6


def test_the_check_fails_where_the_rejected_tokens_see_the_chosen_ones(
    policy: Policy, clip: Callable[[str], np.ndarray], expected: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Layout.segments

    def leaking(self: Layout, *, last: bool) -> list[Segment]:
        return [s._replace(keys=(range(s.keys[0].start, s.queries.stop),)) for s in honest(self, last=last)]

    monkeypatch.setattr(Layout, "segments", leaking)
    found = shared(policy, clip, checkpointing=False, packed=True)
    assert torch.allclose(found.logps[0], expected.logps[0], atol=1e-9)  # the chosen ones see what they always saw
    assert (found.logps[1] - expected.logps[1]).abs().max() > 1e-3
    assert (found.losses - expected.losses).abs().max() > 1e-4
    assert worst(found.gradients, expected.gradients) > 1e-3


def varlen_statement(
    query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, longest_query: int, longest_key: int,
    *, scale: float | None = None, window_size: tuple[int, int], enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What torch's variable-length kernel computes, said plainly: [T, H, D], causal at the lower right."""
    assert window_size == (-1, 0)
    assert longest_query == queries.diff().max()
    assert longest_key == keys.diff().max()
    out = []
    for (a, b), (c, d) in zip(queries.unfold(0, 2, 1).tolist(), keys.unfold(0, 2, 1).tolist(), strict=True):
        groups = query.shape[1] // key.shape[1]
        k, v = (t[c:d].repeat_interleave(groups, 1) for t in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[a:b], k) * (scale or query.shape[-1] ** -0.5)
        seen = torch.arange(d - c)[None, :] <= torch.arange(b - a)[:, None] + (d - c) - (b - a)
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v))
    return torch.cat(out)


def test_the_gpu_path_asks_the_kernel_for_the_same(
    policy: Policy, clip: Callable[[str], np.ndarray], expected: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernel replaced by its plain statement, as no GPU is there; the real one: test_attention_gpu.py."""
    monkeypatch.setattr(attention, "varlen_attn", varlen_statement)
    monkeypatch.setattr(attention, "_CAUSAL", {"window_size": (-1, 0)})
    monkeypatch.setattr(attention, "_flash_takes", lambda query: True)
    found = shared(policy, clip, checkpointing=True, packed=True)
    assert (found.logps - expected.logps).abs().max() <= 1e-9
    assert worst(found.gradients, expected.gradients) <= 1e-6


def test_segments_of_two_packed_pairs() -> None:
    layout = Layout([Span(0, 3, 2, 1), Span(6, 2, 1, 2)])
    assert layout.length == 11
    assert layout.segments(last=False) == [
        Segment(range(0, 5), (range(0, 5),)),
        Segment(range(5, 6), (range(0, 3), range(5, 6))),
        Segment(range(6, 9), (range(6, 9),)),
        Segment(range(9, 11), (range(6, 8), range(9, 11))),
    ]
    assert layout.asking.tolist() == [2, 3, 4, 5, 7, 8, 9, 10]
    assert layout.keys.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 6, 7, 9, 10]
    assert layout.mask(2, 4).tolist() == [[True, True, True, False], [True] * 4]


def test_a_sliding_window_shorter_than_a_pair_is_refused() -> None:
    class Layer(torch.nn.Module):
        layer_idx = 0
        config: Any = type("Config", (), {"num_hidden_layers": 2})

    states = torch.zeros(1, 1, 6, 4)
    layout = Layout([Span(0, 3, 2, 1)])
    with pytest.raises(ModelError, match="sliding window of 5 tokens"):
        attention.attend(Layer(), states, states, states, None, layout=layout, sliding_window=5)
    attention.attend(Layer(), states, states, states, None, layout=layout, sliding_window=6)
