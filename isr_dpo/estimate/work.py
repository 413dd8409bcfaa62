"""What each step has to compute and to read from memory, and how long that takes a GPU: the floor's formulas.

    prefill = F(P) + F_inc(context) + F_inc(judge) + F_inc(judge, swapped)            video prefix once
    decode  = [R (P+R) kv + C (P_ctx + C/2) kv + (2R + C) w / B] / bandwidth          kv, w in bytes; B texts at a time
    train   = (3 E + 1) F_sh

Lengths are means of the paper's run at 7B [D]; a recipe's own limits cut them. Engines reach 60 % of the peak in
prefill and 80 % of the bandwidth, the trainer 55 % of the peak [A]; the embedded engine less, and it computes a video
again for every call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from isr_dpo.config import Recipe
from isr_dpo.estimate.machines import Device
from isr_dpo.estimate.shapes import ModelShape
from isr_dpo.flops import Lengths, attention, linear, shared_forward, training_flops

WEIGHT_BYTES = 2
"""Policies are held and stored in bf16."""


@dataclass(frozen=True)
class Texts:
    """Mean tokens. All prompts begin with the system text and the video."""

    system: int = 40
    question: int = 60
    """With what the chat template puts around it."""
    describe: int = 55
    judge: int = 165
    """The judge's fixed text and the question."""
    swapped: int = 20
    """Of it, what stands after the first answer: the other order computes it, and the answers, again."""
    response: int = 120
    context: int = 160
    answer: int = 120

    @classmethod
    def of(cls, recipe: Recipe) -> Texts:
        """Cut to what the recipe lets the policy write."""
        usual = cls()
        return replace(
            usual,
            response=min(usual.response, recipe.generate.max_new_tokens),
            context=min(usual.context, recipe.retrospect.max_new_tokens),
            answer=min(usual.answer, recipe.answer.max_new_tokens),
        )


class Efficiency(NamedTuple):
    """Shares of a device's peak FLOP/s (prefill, training) and bandwidth (decoding)."""

    prefill: float
    decode: float
    train: float


FLOOR = Efficiency(1.0, 1.0, 1.0)
VLLM = Efficiency(0.6, 0.8, 0.55)
EMBEDDED = Efficiency(0.4, 0.4, 0.55)
"""Of transformers' generate in batches [A]."""


class Work(NamedTuple):
    """FLOPs of prefill and bytes of decoding."""

    flops: float
    bytes: float

    def plus(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: float) -> Work:
        return Work(self.flops * count, self.bytes * count)

    def seconds(self, device: Device, reached: Efficiency) -> float:
        """Of one device."""
        prefill = self.flops / (device.flops * reached.prefill)
        return prefill + self.bytes / (device.bytes_a_second * reached.decode)


class Asking:
    """What the policy's steps cost, a row or a video, on an engine that holds `concurrency` texts at a time.

    Args:
        forgets: every call computes the video anew (the embedded engine); else a step does so once a row.
        shared_reads: two draws read the keys and values of their prompt together, as the floor assumes and no engine
            does.
    """

    def __init__(
        self, model: ModelShape, texts: Texts, *, concurrency: float, forgets: bool = False, shared_reads: bool = False
    ) -> None:
        self.model, self.texts = model, texts
        self._concurrency = concurrency
        self._forgets, self._shared_reads = forgets, shared_reads

    @property
    def prefix(self) -> int:
        """System text and video."""
        return self.texts.system + self.model.video_tokens

    @property
    def prompt(self) -> int:
        """P."""
        return self.prefix + self.texts.question

    def video(self) -> Work:
        """The prefix by itself: tower and prefill."""
        return Work(self._added(self.prefix, self.prefix) + self.model.tower_flops, 0.0)

    def draws(self) -> Work:
        """Two responses to a row, after the prefix."""
        length, prompt = self.texts.response, self.prompt
        read = length * (prompt + length) if self._shared_reads else 2 * length * (prompt + length / 2)
        return Work(self._added(self.texts.question, prompt), read * self.model.kv_bytes + self._weights(2 * length))

    def description(self, *, previous: bool) -> Work:
        """A context of a video, after the prefix; `previous`: the one before stands in the prompt."""
        length = self.texts.context
        added = self.texts.describe + (length if previous else 0)
        prompt = self.prefix + self.texts.question + added  # [D] as the floor counts it
        read = length * (prompt - (length if previous else 0) + length / 2)
        return Work(self._added(added, prompt), read * self.model.kv_bytes + self._weights(length))

    def verdicts(self, *, context: bool, orders: int) -> Work:
        """The judge of a row in one or both orders, after the prefix; one token each, so nothing to decode."""
        answers = 2 * self.texts.response
        first = self.texts.judge + answers + (self.texts.context if context else 0)
        end = self.prefix + first
        flops = self._added(first, end)
        if orders == 2:
            second = first if self._forgets else answers + self.texts.swapped
            flops += self._added(second, end) + (self.video().flops if self._forgets else 0.0)
        return Work(flops, 0.0)

    def answer(self) -> Work:
        """A greedy answer to a question, prefix included."""
        length = self.texts.answer
        read = length * (self.prompt + length / 2)
        made = Work(self._added(self.texts.question, self.prompt), read * self.model.kv_bytes + self._weights(length))
        return made.plus(self.video())

    def _added(self, tokens: int, end: int) -> float:
        """F_inc: forward FLOPs of the last `tokens` of `end`."""
        return linear(self.model.text, tokens) + attention(self.model.text, tokens, end)

    def _weights(self, tokens: float) -> float:
        """Bytes of weights that are read for so many new tokens."""
        return tokens * self.model.text.weights * WEIGHT_BYTES / self._concurrency


def pair_flops(model: ModelShape, texts: Texts, *, epochs: int, checkpointing: bool, lora: bool) -> float:
    """FLOPs of one pair in a round: reference once, `epochs` times forward and backward, the frozen tower once.
    Gradient checkpointing adds a forward pass an epoch."""
    prompt = texts.system + model.video_tokens + texts.question
    pair = Lengths(prompt, texts.response, texts.response)
    text = model.text._replace(trained=0) if lora else model.text
    forward = shared_forward(text, pair)
    passes = epochs * (training_flops(text, [pair]) + (forward if checkpointing else 0.0))
    return forward + passes + model.tower_flops
