"""The recipe's section `engine`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from isr_dpo.config.section import Positive, Section


class VLLM(Section):
    """How vLLM runs a policy. The defaults are for a 7B model in bf16 on an A100 of 80 GB [O]."""

    memory_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Of the GPU's memory, 72 GB: 14 hold the weights, some 4 a step's activations, the rest keys and values: 100,000
    tokens of Video-LLaVA-7B (0.5 MB each), 900,000 of Qwen2.5-VL-7B, which shares its heads."""
    context_tokens: Positive | None = 8192
    """Prompt and answer together, where the model's own limit is not lower; none: the model's own. A model of 128,000
    would have memory measured, and set aside, for a video as long as that."""
    batch_tokens: Positive = 16384
    """Tokens in one step: seven prompts of Video-LLaVA-7B. More saves nothing once the GPU is busy, and costs memory
    that keys and values would have."""
    sequences: Positive = 256
    """Texts written at the same time; memory for keys and values ends them sooner than this with a model that does not
    share its heads."""
    batch_invariant: bool = False
    """vLLM's batch-invariant kernels (GPUs of compute capability 8.0 and later, at a cost in speed): a text then does
    not depend on what shares its batch."""
    cpu_cache_gb: Positive = 1
    """Memory for keys and values where there is no GPU."""


class Engine(Section):
    """Who runs the policy for generate, retrospect, judge and answer."""

    kind: Literal["hf", "vllm", "openai", "fake"] = "hf"
    """`hf`: embedded, transformers; `openai`: a model that is served elsewhere, as a baseline."""
    batch_rows: Positive = 64
    """Sequences in one forward pass."""
    vllm: VLLM = VLLM()
    model: str | None = None
    """Of an `openai` engine: the name that its server has for the model."""
    base_url: str | None = None
    """Of an OpenAI-compatible server; none: the openai package's default. The key is OPENAI_API_KEY's."""
    video_as: Literal["images", "video"] = "images"
    """How an `openai` engine sends a clip: an image a frame, or one video part, which vLLM and SGLang take."""
    concurrency: Positive = 16
    """Requests of an `openai` engine at a time."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """For one answer of an `openai` engine."""
    rows_per_part: Positive = 256
    """Rows between two points of resumption; in a fused round videos with their rows."""
    workers: Positive | None = None
    """Engines of a pod, each in a process of its own; none: one a GPU, or one on a CPU. On a CPU, workers times
    model.cpu_threads should be its cores."""
    pods: Positive = 1
    """Above 1: generate, retrospect, judge and answer are fanned out over so many pods; one more task seals what these
    have made."""
    fused: bool = Field(default_factory=lambda engine: engine["kind"] == "vllm")
    """A round's generate, retrospect and judge as one step, `prefer`: one engine, which asks all about a video while it
    holds it. Pays where the engine keeps the prompts it has computed, so with vLLM it is the default; the rows are the
    same."""
    fused_videos: Positive = 32
    """Of a fused round: videos in hand, as many as the engine's cache of prompts holds. Video-LLaVA-7B on an A100: 40
    with 2,500 tokens each [O]."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.kind == "openai" and self.model is None:
            raise ValueError("kind 'openai' needs engine.model, the name that the server has for the model")
        return self
