"""Attention over rows `[prompt | chosen | rejected]` that share the prompt, several pairs packed in one row.

The chosen tokens see the prompt and themselves; the rejected tokens see the prompt and themselves, never the chosen
ones, so that each response is scored as if it stood alone behind the prompt. In the last layer only the rows that
predict a response token ask; the others give keys and values alone.

`attend` is registered with transformers under `NAME`. That name has no mask function, so no mask is ever built; who
sees whom comes in as the forward keyword `layout`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from isr_dpo.errors import ModelError

NAME = "isr_dpo_shared_prefix"


class Span(NamedTuple):
    """Where a pair lies in the packed row, in tokens: `[prompt | chosen | rejected]` from `start` on."""

    start: int
    prompt: int
    chosen: int
    rejected: int

    @property
    def end(self) -> int:
        return self.start + self.prompt + self.chosen + self.rejected


class Segment(NamedTuple):
    """Consecutive queries and the keys that the last of them sees; each earlier query sees one key less."""

    queries: range
    keys: tuple[range, ...]

    @property
    def key_count(self) -> int:
        return sum(map(len, self.keys))


class Lengths(NamedTuple):
    """Tokens a segment, as the variable-length kernel wants them: cumulated, int32 [segments + 1], and the longest."""

    cumulated_queries: Tensor
    cumulated_keys: Tensor
    longest_query: int
    longest_key: int


class Layout:
    """Who sees whom in one packed row, for all layers of a forward pass."""

    def __init__(self, spans: Sequence[Span], *, device: torch.device | str = "cpu") -> None:
        self.spans = tuple(spans)
        self.length = self.spans[-1].end
        self._device = device
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._lengths: dict[bool, Lengths] = {}

    def segments(self, *, last: bool) -> list[Segment]:
        """In the order of the row. `last`: the last layer, where prompts ask with their last token alone."""
        found = []
        for span in self.spans:
            prompt = range(span.start, span.start + span.prompt)
            chosen = range(prompt.stop, prompt.stop + span.chosen)
            rejected = range(chosen.stop, span.end)
            first = prompt.stop - 1 if last else prompt.start
            found.append(Segment(range(first, chosen.stop), (range(prompt.start, chosen.stop),)))
            found.append(Segment(rejected, (prompt, rejected)))
        return found

    @cached_property
    def asking(self) -> Tensor:
        """Rows that ask in the last layer [n]."""
        return self._indices([segment.queries for segment in self.segments(last=True)])

    def mask(self, queries: int, keys: int) -> Tensor:
        """True where a query sees a key [queries, keys]: causal, aligned at the lower right."""
        key = (queries, keys)
        if key not in self._masks:
            ones = torch.ones(queries, keys, dtype=torch.bool, device=self._device)
            self._masks[key] = ones.tril(keys - queries)
        return self._masks[key]

    @cached_property
    def keys(self) -> Tensor:
        """Rows whose keys each segment sees, one segment after the other: a prompt's twice [n]."""
        return self._indices([keys for segment in self.segments(last=False) for keys in segment.keys])

    def _indices(self, ranges: Sequence[range]) -> Tensor:
        return torch.cat([torch.arange(rows.start, rows.stop) for rows in ranges]).to(self._device)

    def lengths(self, *, last: bool) -> Lengths:
        """Of the segments' queries and keys; computed once for all layers but the last, and once for the last."""
        if last not in self._lengths:
            counts = [(len(s.queries), s.key_count) for s in self.segments(last=last)]
            cumulated = torch.tensor([(0, 0), *counts]).cumsum(0).int().to(self._device)
            longest = [max(column) for column in zip(*counts, strict=True)]
            self._lengths[last] = Lengths(*cumulated.T.contiguous(), *longest)
        return self._lengths[last]


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function of one layer, as transformers calls it.

    Args: `query` [1, H, T, D], `key` and `value` [1, K, T, D] with H a multiple of K.
    Returns: [1, T, H, D]; in the last layer, zero in the rows that do not ask.

    Raises:
        ModelError: the model slides its window over less than a pair, which this attention does not.
    """
    if sliding_window is not None and any(s.end - s.start > sliding_window for s in layout.spans):
        raise ModelError(f"a pair is longer than the model's sliding window of {sliding_window} tokens; shorten it")
    layer: Any = module
    last = layer.layer_idx == layer.config.num_hidden_layers - 1
    run = _varlen if varlen_attn is not None and _flash_takes(query) else _sdpa
    return run(query, key, value, layout, last=last, scaling=scaling), None


AttentionInterface.register(NAME, attend)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, last: bool, scaling: float | None) -> Tensor:
    """Two calls a pair; the second sees the prompt's keys and its own."""
    grouped = query.shape[1] != key.shape[1]
    pieces, done = [], 0
    for segment in layout.segments(last=last):
        queries = segment.queries
        if queries.start > done:
            pieces.append(query.new_zeros(1, queries.start - done, query.shape[1], query.shape[3]))
        square = len(queries) == segment.key_count
        attended = F.scaled_dot_product_attention(
            _rows(query, (queries,)),
            _rows(key, segment.keys),
            _rows(value, segment.keys),
            attn_mask=None if square else layout.mask(len(queries), segment.key_count),
            is_causal=square,
            scale=scaling,
            enable_gqa=grouped,
        )
        pieces.append(attended.transpose(1, 2))
        done = queries.stop
    return torch.cat(pieces, 1)


def _rows(states: Tensor, ranges: Sequence[range]) -> Tensor:
    """[1, H, T, D] -> the rows of `ranges` [1, H, n, D]; a single range is not copied."""
    pieces = [states[:, :, r.start : r.stop] for r in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def _varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, last: bool, scaling: float | None) -> Tensor:
    """One variable-length flash call for all pairs."""
    queries = query[0].transpose(0, 1)  # [T, H, D]
    if last:
        queries = queries.index_select(0, layout.asking)
    keys, values = (tensor[0].transpose(0, 1).index_select(0, layout.keys) for tensor in (key, value))
    attended = varlen_attn(queries.contiguous(), keys, values, *layout.lengths(last=last), scale=scaling, **_CAUSAL)
    if last:
        zeros = attended.new_zeros(query.shape[2], *attended.shape[1:])
        attended = zeros.index_copy(0, layout.asking, attended)
    spread: Tensor = attended.unsqueeze(0)
    return spread


def _flash_takes(query: Tensor) -> bool:
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256


def _varlen_kernel() -> tuple[Any, dict[str, Any]]:
    """torch's variable-length kernel with the keyword that makes it causal (at the lower right); None without one."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, {}
    known = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return varlen_attn, causal | ({"enable_gqa": True} if "enable_gqa" in known else {})


varlen_attn, _CAUSAL = _varlen_kernel()
