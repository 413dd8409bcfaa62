"""Opening vLLM's offline engine on a policy: its settings, its environment, its errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from isr_dpo import config
from isr_dpo.errors import ModelError

ON_CPU = {"block_size": 32, "enable_chunked_prefill": False, "async_scheduling": False, "enforce_eager": True}
"""Settings where there is no GPU. Blocks of 128 tokens, the default there, compute a fifth more of short prompts than
blocks of 32. A prompt is taken in one step: in pieces, a seeded draw fails in vLLM 0.32 ("Generator does not use
offset"), be it chunked, or cut before its video because the step before still holds the room for encoded videos.
Compiling pays where kernels wait for Python, on a GPU."""


def context_of(folder: Path, wanted: int | None) -> int:
    """Tokens of prompt and answer: the model's limit, or what the recipe lowers it to."""
    from transformers import AutoConfig

    own = int(AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().max_position_embeddings)
    return min(own, wanted or own)


def open_llm(
    folder: Path,
    processor: Any,
    *,
    dtype: str,
    device: str,
    settings: config.VLLM,
    context: int,
    cpu_threads: int | None,
) -> Any:
    """vLLM on the policy in `folder`, which has this processor."""
    _environment(settings, cpu_threads)
    from vllm import LLM
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if device != "auto" and (device == "cpu") != on_cpu:
        raise ModelError(f"model.device {device}: this vLLM is built for {current_platform.device_name}")
    if settings.batch_invariant and on_cpu:
        raise ModelError("engine.vllm.batch_invariant: a GPU's kernels; this vLLM is built for a CPU")
    try:
        return LLM(
            str(folder),
            dtype=dtype,
            max_model_len=context,
            max_num_batched_tokens=max(settings.batch_tokens, context),
            max_num_seqs=settings.sequences,
            gpu_memory_utilization=settings.memory_fraction,
            limit_mm_per_prompt={"video": 1, "image": 0},
            enable_prefix_caching=True,
            **(ON_CPU if on_cpu else {}),
            **({} if _normalised_alike(processor) else {"mm_device_do_normalize": False}),
            disable_log_stats=False,  # its counters are our log's
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise translated(error, f"on {folder}") from error


def _normalised_alike(processor: Any) -> bool:
    """Whether pictures and videos are; where vLLM normalises on the device, it takes the pictures' mean for both."""
    picture, video = processor.image_processor, processor.video_processor
    keys = ("image_mean", "image_std", "rescale_factor")
    return all(np.array_equal(getattr(picture, key), getattr(video, key)) for key in keys)


def _environment(settings: config.VLLM, cpu_threads: int | None) -> None:
    """What vLLM takes from the environment alone; what stands there already, but for our recipe's, is kept."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_BATCH_INVARIANT"] = str(int(settings.batch_invariant))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.cpu_cache_gb))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else engines side by side take the same cores
    if cpu_threads is not None:
        import torch

        torch.set_num_threads(cpu_threads)


def translated(error: BaseException, where: str) -> ModelError:
    """vLLM's error as ours; one about memory says what to lower."""
    text = " ".join(str(error).split())
    if any(words in text.lower() for words in ("out of memory", "cache blocks", "kv cache", "memory utilization")):
        return ModelError(
            f"vLLM {where}: out of memory: lower engine.vllm.context_tokens, engine.vllm.sequences or "
            f"engine.vllm.batch_tokens; where others use the device too, engine.vllm.memory_fraction ({text})"
        )
    return ModelError(f"vLLM {where}: {text}")
