"""The forward pass of DPO: log-probabilities of both responses of each pair, the prompt computed once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isr_dpo.dpo.attention import NAME, Layout
from isr_dpo.dpo.batch import Batch, Video
from isr_dpo.dpo.features import Features
from isr_dpo.dpo.loss import response_logps
from isr_dpo.models import Policy
from isr_dpo.models.common import feed


class Logps(NamedTuple):
    """Summed log-probability (nats) of each pair's responses, each [B]."""

    chosen: Tensor
    rejected: Tensor


class SharedPrefix(nn.Module):
    """A policy over packed pairs; equal to two ordinary forward passes a pair, for less than half of the work.

    Holds the policy's model as `model`: parameter names are the model's behind `model.`.
    """

    def __init__(self, policy: Policy, *, features: Features | None = None, checkpointing: bool = False) -> None:
        """`features`: where tower outputs are kept. `checkpointing`: recompute each layer in the backward pass."""
        super().__init__()
        self.model = policy.model
        self._family = policy.family
        self._features = features
        self._layout: Layout | None = None
        self.model.eval()  # dropout is off [C]
        self.model.set_attn_implementation({"text_config": NAME})
        language = self.model.get_decoder()
        _ask_with_few_rows(language.layers[-1], self)
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            language.train()  # transformers checkpoints in training mode alone
            for module in language.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0

    def forward(self, batch: Batch) -> Logps:
        self._layout = batch.layout
        features = self._family.project(self.model, self._towers(batch.videos))
        logits = self.model(
            **feed(self.model, batch.ids, features),
            position_ids=batch.positions,
            logits_to_keep=batch.rows,
            use_cache=False,
            layout=batch.layout,
        ).logits  # [1, n, V]
        logps = response_logps(logits[0], batch.labels, batch.lengths)  # [2B]
        return Logps(logps[0::2], logps[1::2])

    def _towers(self, videos: list[Video]) -> list[dict[str, Tensor]]:
        """Tower outputs, one a pair; a video of several pairs runs once."""
        known: dict[str, dict[str, Tensor]] = {}
        for video in videos:
            if video.encoded:
                known[video.key] = video.values
            elif video.key not in known:
                known[video.key] = self._tower(video)
        return [known[video.key] for video in videos]

    def _tower(self, video: Video) -> dict[str, Tensor]:
        kept = self._features.get(video.key) if self._features is not None else None  # since the batch was packed
        if kept is not None:
            return kept
        with torch.no_grad():
            made: dict[str, Tensor] = self._family.tower(self.model, video.values)
        if self._features is not None:
            self._features.put(video.key, made)
        return made

    @property
    def layout(self) -> Layout:
        """Of the batch in hand: also while its layers are computed again in the backward pass."""
        assert self._layout is not None
        return self._layout


def _ask_with_few_rows(layer: nn.Module, owner: SharedPrefix) -> None:
    """Makes the last layer compute queries, output projection and MLP for `owner.layout.asking` alone: these modules
    get those rows [1, n, d], and what they give is put back into [1, T, d], zero elsewhere, where nothing reads it."""

    def gather(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].index_select(1, owner.layout.asking), *inputs[1:])

    def scatter(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        zeros = output.new_zeros(1, owner.layout.length, output.shape[-1])
        return zeros.index_copy(1, owner.layout.asking, output)

    attention: Any = layer.self_attn
    for first, final in (
        (attention.q_proj, attention.q_proj),
        (attention.o_proj, attention.o_proj),
        (layer.post_attention_layernorm, layer.mlp),
    ):
        first.register_forward_pre_hook(gather)  # type: ignore[union-attr]
        final.register_forward_hook(scatter)  # type: ignore[union-attr]
