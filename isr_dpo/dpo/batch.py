"""Preference pairs as packed rows: `[prompt | chosen | rejected]` one after the other in one row of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isr_dpo.dpo.attention import Layout, Span
from isr_dpo.dpo.features import Features
from isr_dpo.errors import DataError
from isr_dpo.models import Policy
from isr_dpo.prompts import Template
from isr_dpo.records import Preference

Frames = Callable[[str], np.ndarray]
"""Video key -> uint8 [F, H, W, 3]."""


class BadPair(DataError):
    """A pair that cannot be trained on: named, with the reason."""


@dataclass(frozen=True)
class Tokens:
    """One pair: token ids [P], [C] and [R], and the prompt's positions [A, P] (A: 1, or 3 for M-RoPE)."""

    prompt: Tensor
    chosen: Tensor
    rejected: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


class Video(NamedTuple):
    """A pair's video: what the tower takes or, `encoded`, what it gave."""

    key: str
    values: dict[str, Tensor]
    encoded: bool


@dataclass(frozen=True)
class Batch:
    """Pairs packed in one row of T tokens.

    ids [1, T]; positions [1, T], or [3, 1, T] for M-RoPE; rows [n]: where a response token is predicted;
    labels [n]: that token; lengths: tokens of each response in the order of `labels`: chosen, rejected, chosen, ...
    """

    ids: Tensor
    positions: Tensor
    layout: Layout
    rows: Tensor
    labels: Tensor
    lengths: list[int]
    videos: list[Video]


def pack(tokens: Sequence[Tokens], videos: Sequence[Video], *, device: torch.device | str = "cpu") -> Batch:
    """Packs pairs in the order given."""
    spans, ids, positions, rows, start = [], [], [], [], 0
    for pair in tokens:
        prompt, chosen, rejected = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        spans.append(Span(start, prompt, chosen, rejected))
        ids += [pair.prompt, pair.chosen, pair.rejected]
        following = pair.positions.max() + 1
        positions.append(pair.positions)
        positions += [
            (following + torch.arange(n)).expand(len(pair.positions), -1) for n in (chosen, rejected)
        ]  # both responses follow the prompt
        last = start + prompt - 1
        rows += [last, *range(last + 1, last + chosen), last, *range(last + 1 + chosen, last + chosen + rejected)]
        start = spans[-1].end
    labels = torch.cat([ids[3 * number + side] for number in range(len(tokens)) for side in (1, 2)])
    placed = torch.cat(positions, 1)  # [A, T]
    return Batch(
        ids=torch.cat(ids).long()[None].to(device),
        positions=(placed if len(placed) == 1 else placed[:, None]).to(device),
        layout=Layout(spans, device=device),
        rows=torch.tensor(rows, device=device),
        labels=labels.long().to(device),
        lengths=[n for span in spans for n in (span.chosen, span.rejected)],
        videos=[video._replace(values={k: v.to(device) for k, v in video.values.items()}) for video in videos],
    )


class Pairs:
    """The pairs of a round, tokenised when first asked for.

    The response is tokenised on its own and always ends with the end-of-text token, one cut at the limit too [O].
    """

    def __init__(
        self,
        rows: Sequence[Preference],
        policy: Policy,
        *,
        template: Template,
        frames: Frames,
        features: Features | None = None,
    ) -> None:
        """`features`: tower outputs that are there already, and where new ones are kept.

        Raises:
            DataError: no pairs.
        """
        if not rows:
            raise DataError("train: no preference pairs; the judge's metrics say why rows were dropped")
        self.rows = rows
        self.features = features
        self._policy = policy
        self._template = template
        self._frames = frames
        self._tokens: dict[int, Tokens] = {}
        self._special = frozenset(policy.tokenizer.all_special_ids)
        config = policy.model.config
        self._media = {getattr(config, name) for name in ("image_token_id", "video_token_id") if hasattr(config, name)}
        self._limit = int(policy.model.config.get_text_config().max_position_embeddings)

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> tuple[Tokens, Video]:
        """One pair.

        Raises:
            BadPair: an empty response or one of padding, a media token in a response, more tokens than the context.
        """
        row = self.rows[index]
        standing = self.features.get(row.video) if self.features is not None else None
        if index in self._tokens and standing is not None:
            return self._tokens[index], Video(row.video, standing, encoded=True)
        tokens, inputs = self._tokenised(row)
        self._tokens[index] = tokens
        if standing is not None:
            return tokens, Video(row.video, standing, encoded=True)
        return tokens, Video(row.video, inputs, encoded=False)

    def pack(self, loaded: Sequence[tuple[Tokens, Video]]) -> Batch:
        """Loaded pairs in one row, on the policy's device."""
        return pack([tokens for tokens, _ in loaded], [video for _, video in loaded], device=self._policy.model.device)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The pairs in one row, on the policy's device. Raises BadPair as `load` does."""
        return self.pack([self.load(index) for index in indices])

    def _tokenised(self, row: Preference) -> tuple[Tokens, dict[str, Tensor]]:
        chosen, rejected = self._response(row, "chosen"), self._response(row, "rejected")
        text = self._policy.chat(self._template.render(question=row.prompt))
        encoded = self._policy.encode([text], [self._frames(row.video)])
        prompt = torch.tensor(encoded.ids[0], dtype=torch.int32)
        (inputs,) = encoded.videos
        longest = len(prompt) + max(len(chosen), len(rejected))
        if longest > self._limit:
            raise BadPair(
                f"pair {row.id}: prompt {len(prompt)} and response {longest - len(prompt)} tokens exceed the model's "
                f"context of {self._limit}; fewer data.frames or a shorter generate.max_new_tokens makes room"
            )
        positions = self._policy.family.positions(self._policy.model, prompt.long(), inputs)
        return Tokens(prompt, chosen, rejected, positions.cpu()), inputs

    def _response(self, row: Preference, side: str) -> Tensor:
        text: str = getattr(row, side)
        if not text.strip():
            raise BadPair(f"pair {row.id}: the {side} response is empty: {text!r}")
        ids = self._policy.tokenizer.encode(text, add_special_tokens=False)
        if all(token in self._special for token in ids):
            raise BadPair(f"pair {row.id}: the {side} response is nothing but special tokens: {text!r}")
        if self._media & set(ids):
            raise BadPair(f"pair {row.id}: the {side} response holds a media placeholder: {text!r}")
        return torch.tensor([*ids, self._policy.tokenizer.eos_token_id], dtype=torch.int32)
