"""Which keys of the recipe a step's output depends on."""

from __future__ import annotations

from collections.abc import Mapping

_ENGINE = (
    *(f"engine.{key}" for key in ("kind", "model", "base_url", "video_as")),
    *(f"engine.vllm.{key}" for key in ("context_tokens", "batch_invariant")),
)
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "prepare": ("data.frames",),
    "generate": ("seed", "generate", "model.dtype", *_ENGINE),
    "retrospect": ("seed", "retrospect", "model.dtype", *_ENGINE),
    "judge": ("seed", "judge", "retrospect.context", "model.dtype", *_ENGINE),
    "prefer": ("seed", "generate", "retrospect", "judge", "model.dtype", *_ENGINE),
    "train": (
        "seed",
        "model.dtype",
        *(f"train.{key}" for key in ("beta", "learning_rate", "epochs", "seed_epochs", "batch_pairs")),
        *(f"train.{key}" for key in ("warmup_fraction", "max_grad_norm", "reference", "projector")),
        *(f"train.{key}" for key in ("lora_rank", "lora_alpha", "max_bad_fraction", "accumulate_dtype")),
    ),
    "answer": ("answer.max_new_tokens", "model.dtype", *_ENGINE),
    "evaluate": (
        *(f"evaluate.{key}" for key in ("grader", "model", "base_url", "reading", "structured", "temperature")),
        *(f"evaluate.{key}" for key in ("seed", "reply_limit", "reply_tokens", "reasoning_effort")),
    ),
}
"""The recipe keys that each step's output depends on. A change of another key leaves finished work standing.

Grades lie in a directory of their protocol, so evaluate.protocols is no key of theirs."""

PROMPTED = ("generate", "retrospect", "judge", "prefer", "train", "answer")
"""Steps whose output depends on the prompts."""
