"""On a GPU, where there is one: the flash kernel, two SDPA calls and a dense mask give the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isr_dpo.dpo import attention
from isr_dpo.dpo.attention import Layout, Span

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the CUDA kernels were not run")


def dense(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """The oracle: one mask over the whole row, in fp32."""
    seen = torch.zeros(layout.length, layout.length, dtype=torch.bool, device=query.device)
    for segment in layout.segments(last=False):
        for row in segment.queries:
            for keys in segment.keys:
                seen[row, keys.start : min(keys.stop, row + 1)] = True
    groups = query.shape[1] // key.shape[1]
    wide = [t.float().repeat_interleave(n, 1) for t, n in ((query, 1), (key, groups), (value, groups))]
    return F.scaled_dot_product_attention(*wide, attn_mask=seen).transpose(1, 2)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)], ids=["one to one", "grouped"])
def test_kernels_agree_with_a_dense_mask(heads: tuple[int, int], last: bool) -> None:
    torch.manual_seed(0)
    layout = Layout([Span(0, 200, 30, 50), Span(280, 90, 7, 1)], device="cuda")

    def states(count: int) -> Tensor:
        return torch.randn(1, count, layout.length, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    query, key, value = states(heads[0]), states(heads[1]), states(heads[1])
    rows = layout.asking if last else torch.arange(layout.length, device="cuda")
    weight = torch.randn(1, len(rows), heads[0], 64, device="cuda")
    oracle = dense(query, key, value, layout)[:, rows]
    wanted = torch.autograd.grad((oracle * weight).sum(), (query, key, value))
    assert attention.varlen_attn is not None
    for run in (attention._sdpa, attention._varlen):
        out = run(query, key, value, layout, last=last, scaling=None)[:, rows]
        found = torch.autograd.grad((out.float() * weight).sum(), (query, key, value))
        assert (out.float() - oracle).abs().max() < 2e-2
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours.float() - theirs.float()).norm() / theirs.float().norm() < 2e-2
