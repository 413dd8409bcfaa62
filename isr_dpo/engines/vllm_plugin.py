"""What vLLM learns from this package, by the entry point `vllm.general_plugins`: it calls `register` in each of its
processes, also when a server of its own serves a policy."""

from __future__ import annotations

ARCHITECTURE = "VideoLlavaForConditionalGeneration"


def register() -> None:
    """Adds Video-LLaVA to vLLM's models, by name, so that it is imported only where it is used."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"isr_dpo.engines.vllm_video_llava:{ARCHITECTURE}")
