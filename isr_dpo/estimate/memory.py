"""GPU memory of the steps, in bytes a GPU [D]."""

from __future__ import annotations

from typing import NamedTuple

from isr_dpo.config import Recipe
from isr_dpo.estimate.shapes import ModelShape
from isr_dpo.estimate.work import WEIGHT_BYTES, Texts

ENGINE_ACTIVATIONS = 4e9
"""What an engine's largest step needs beside weights, keys and values, on a 7B model."""
ACTIVATION_BYTES = 2.4
"""Of training in bf16, a number that the backward pass needs: what autograd keeps of transformers' LLaMA and Qwen2
layers, some of it in fp32 [M]. 5.9 MB a token, 14 GB a pair, of Video-LLaVA-7B; the reference derived 4.6 and 11."""
CHECKPOINTED = 32
"""Gradient checkpointing keeps about so much less, and one layer's all."""


class Room(NamedTuple):
    """Of an engine on one GPU."""

    needed: float
    """Weights, activations, and keys and values of what is in hand."""
    concurrency: float
    """Texts whose keys and values fit beside the weights; at least one."""


def engine_room(recipe: Recipe, model: ModelShape, texts: Texts, *, memory: float | None) -> Room:
    """What the recipe's engine needs of a GPU with `memory` bytes, and how many texts it then writes at a time."""
    vllm = recipe.engine.kind == "vllm"
    most = recipe.engine.vllm.sequences if vllm else recipe.engine.batch_rows
    held = texts.system + model.video_tokens + texts.question + texts.response
    fixed = model.weights * WEIGHT_BYTES + ENGINE_ACTIVATIONS * model.text.weights / 6.5e9
    if memory is None:
        return Room(fixed, most)
    free = memory * (recipe.engine.vllm.memory_fraction if vllm else 1.0) - fixed
    concurrency = max(1.0, min(most, free / (model.kv_bytes * held)))
    hand = min(concurrency, 1.0) if vllm else most  # vLLM waits for room, a batch is held whole
    return Room(fixed + hand * held * model.kv_bytes, concurrency)


def training(recipe: Recipe, model: ModelShape, *, ranks: int) -> float:
    """Of one of `ranks`: bf16 weights, gradients, fp32 masters with Adam's two moments, and activations.

    ZeRO splits masters and moments from stage 1 on, gradients from 2, weights at 3. 7B on 8 ranks at stage 2: 28 GB and
    14 GB a pair.
    """
    settings = recipe.train
    rank = settings.lora_rank
    trained = model.trained if rank is None else rank * model.linear_sides
    gradient = 4 if settings.accumulate_dtype == "float32" else 2
    stage = settings.zero_stage
    weights = model.weights * WEIGHT_BYTES / (ranks if stage == 3 else 1)
    states = trained * (gradient / (ranks if stage >= 2 else 1) + 12 / (ranks if stage >= 1 else 1))
    a_token = ACTIVATION_BYTES * model.activations
    if settings.gradient_checkpointing:
        a_token = a_token / CHECKPOINTED + a_token / model.text.layers
    return weights + states + settings.micro_batch_tokens * a_token
