"""The original model, stated a second time in plain torch: no transformers, nothing of isr_dpo.

RMSNorm and the rotary tables are computed in float32, as the original does whatever the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, silu

from tests.models.convert.original_layout import VIDEO, Original

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Statement:
    """The forward pass of an `Original` with its weights and its SentencePiece model."""

    def __init__(self, original: Original, weights: Mapping[str, Tensor], tokenizer: Path) -> None:
        self.original, self.weights = original, weights
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))

    def chunks(self, prompt: str) -> list[list[int]]:
        """Ids before and after the video of a Vicuna v1 prompt about one: each chunk tokenised alone, one `<s>`."""
        text = f"{SYSTEM} USER: <video>\n{prompt} ASSISTANT:"
        before, after = (self.pieces.encode(chunk) for chunk in text.split("<video>"))
        return [[self.pieces.bos_id(), *before], after]

    def pixels(self, frames: np.ndarray) -> Tensor:
        """uint8 [F, H, W, 3] -> [F, 3, H, W], normalised."""
        scaled = torch.from_numpy(frames).to(torch.float64) / 255
        return ((scaled - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)

    def logits(self, chunks: Sequence[Sequence[int]], pixels: Tensor, answer: Sequence[int] = ()) -> Tensor:
        """[tokens, vocabulary] of the prompt, its video between the chunks, and `answer` after it."""
        table = self.weights["model.embed_tokens.weight"]
        before, after = (table[torch.tensor(list(ids))] for ids in (chunks[0], [*chunks[1], *answer]))
        states = self._llama(torch.cat([before, self.video(pixels), after]))
        return linear(states, self.weights["lm_head.weight"])

    def answer(self, prompt: str, pixels: Tensor, *, limit: int) -> str:
        """Greedy, to `</s>` or `limit` tokens."""
        chunks, taken = self.chunks(prompt), list[int]()
        while len(taken) < limit:
            best = int(self.logits(chunks, pixels, taken)[-1].argmax())
            if best == self.pieces.eos_id():
                break
            taken.append(best)
        return str(self.pieces.decode(taken)).strip()

    def video(self, pixels: Tensor) -> Tensor:
        """[F, 3, H, W] -> video tokens [F n, D], n with or without the class token."""
        states = self._tower(pixels)[self.original.select_layer]
        states = states if self.original.class_token else states[:, 1:]
        hidden = gelu(self._linear("model.mm_projector.0", states.flatten(0, 1)))
        return self._linear("model.mm_projector.2", hidden)

    def _tower(self, pixels: Tensor) -> list[Tensor]:
        """The states [F, n, d] that enter the first layer, and those after each."""
        prefix = VIDEO + "embeddings."
        patches = conv2d(pixels, self.weights[prefix + "patch_embedding.weight"], stride=self.original.patch)
        first = self.weights[prefix + "class_embedding"].expand(len(pixels), 1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        x = self._norm(VIDEO + "pre_layrnorm", x + self.weights[prefix + "position_embedding.weight"])
        every = [x]
        for n in range(self.original.vision_layers):
            layer = f"{VIDEO}encoder.layers.{n}."
            if self.original.time:
                over = x.transpose(0, 1)  # [n, F, d]: one token in all frames of the one clip
                over = over + self.weights[layer + "temporal_embedding"]
                seen = self._attend(layer + "temporal_attn.", self._norm(layer + "temporal_layer_norm1", over))
                x = (over + seen).transpose(0, 1)
            x = x + self._attend(layer + "self_attn.", self._norm(layer + "layer_norm1", x))
            inner = gelu(self._linear(layer + "mlp.fc1", self._norm(layer + "layer_norm2", x)))
            x = x + self._linear(layer + "mlp.fc2", inner)
            every.append(x)
        return every

    def _attend(self, prefix: str, x: Tensor) -> Tensor:
        """Full self-attention over dimension 1 of [rows, n, d]."""
        heads = self.original.vision_heads
        q, k, v = (self._linear(prefix + name, x).unflatten(-1, (heads, -1)) for name in ("q_proj", "k_proj", "v_proj"))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
        mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
        return self._linear(prefix + "out_proj", mixed.flatten(2))

    def _llama(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D], after the last norm."""
        turns = torch.outer(torch.arange(len(x)).float(), self.original.inverse_frequencies())
        cos, sin = (torch.cat([f(turns)] * 2, dim=-1).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        for n in range(self.original.layers):
            layer = f"model.layers.{n}."
            x = x + self._causal(layer + "self_attn.", self._rms(layer + "input_layernorm", x), cos, sin, future)
            y = self._rms(layer + "post_attention_layernorm", x)
            gate = silu(self._linear(layer + "mlp.gate_proj", y))
            x = x + self._linear(layer + "mlp.down_proj", gate * self._linear(layer + "mlp.up_proj", y))
        return self._rms("model.norm", x)

    def _causal(self, prefix: str, x: Tensor, cos: Tensor, sin: Tensor, future: Tensor) -> Tensor:
        """Attention with rotary positions; several heads may share keys and values."""
        size = self.original.hidden // self.original.heads
        q, k, v = (self._linear(prefix + name, x).unflatten(-1, (-1, size)) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = (part * cos + _half_turned(part) * sin for part in (q, k))
        k, v = (part.repeat_interleave(self.original.heads // self.original.kv_heads, dim=1) for part in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(size)
        mixed = torch.einsum("hij,jhd->ihd", scores.masked_fill(future, -torch.inf).softmax(-1), v)
        return self._linear(prefix + "o_proj", mixed.flatten(1))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.weights[name + ".weight"], self.weights[name + ".bias"], 1e-5)

    def _rms(self, name: str, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.original.epsilon)
        return self.weights[name + ".weight"] * y.to(x.dtype)


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
