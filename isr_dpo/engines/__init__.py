"""Engines run a policy: they draw texts and choose between labels.

An engine is opened for one policy and one frame store, and is a pure function of its requests: the same request gives
the same result whatever else is in the call. `open_engine` picks the implementation by the recipe's `engine.kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from isr_dpo import config
from isr_dpo.models.folder import check

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sample:
    """A request for texts: one draw a seed.

    `video` is a key of the frame store, `temperature` 0 means greedy, `top_p` in (0, 1].
    """

    video: str
    prompt: str
    seeds: tuple[int, ...]
    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Text:
    """One draw: the decoded text and how it ended: `stop` at the end-of-text token, `length` at the token limit or the
    end of the context, or a reason of `records.NOT_ASKED`, without a text."""

    text: str
    tokens: int
    finish: str


@dataclass(frozen=True)
class Choose:
    """A request for a choice between single-token `labels`.

    The model may write up to `rationale_tokens` tokens (greedy) or until it writes `cue` itself; then the cue stands,
    and the labels' probabilities are read at the next position.
    """

    video: str
    prompt: str
    labels: tuple[str, str]
    rationale_tokens: int
    cue: str


@dataclass(frozen=True)
class Choice:
    """`probabilities` of the two labels at the label's position, not normalised: their sum is the mass the model gives
    to answering in the asked form at all. `finish` is `stop`, or a reason of `records.NOT_ASKED`."""

    probabilities: tuple[float, float]
    rationale: str
    finish: str = "stop"


Progress = Callable[[int], None]
"""Called with the number of requests just finished."""


class Engine(Protocol):
    """What a stage needs of a model. Results come in the order of the requests.

    A request that cannot be asked (its prompt does not fit the context) says so in its own result and stops no other.
    """

    @property
    def deterministic(self) -> bool:
        """Whether the same request gives the same bytes again, wherever."""
        ...

    @property
    def side_by_side(self) -> bool:
        """Whether calls may come from several threads, to be worked on together."""
        ...

    def sample(self, requests: Sequence[Sample], progress: Progress = ...) -> list[list[Text]]: ...

    def choose(self, requests: Sequence[Choose], progress: Progress = ...) -> list[Choice]: ...


def open_engine(
    settings: config.Engine, model: config.Model, folder: Path, frames: Callable[[str], np.ndarray]
) -> Engine:
    """The engine that the recipe names, on the policy in `folder`; `frames` gives a video key's uint8 [F, H, W, 3].

    Raises:
        ModelError: no whole policy of a supported family there; found out before an engine starts.
    """
    if settings.kind == "fake":
        from isr_dpo.engines.fake import FakeEngine

        return FakeEngine()
    if settings.kind == "openai":
        from isr_dpo.engines.openai import OpenAIEngine

        assert settings.model is not None
        return OpenAIEngine(
            frames,
            model=settings.model,
            base_url=settings.base_url,
            video_as=settings.video_as,
            concurrency=settings.concurrency,
            timeout_seconds=settings.timeout_seconds,
        )
    check(folder)
    if settings.kind == "vllm":
        from isr_dpo.engines.vllm import VLLMEngine

        return VLLMEngine(
            folder,
            frames,
            dtype=model.dtype,
            device=model.device,
            settings=settings.vllm,
            cpu_threads=model.cpu_threads,
        )
    from isr_dpo.engines.hf import HFEngine

    return HFEngine(
        folder,
        frames,
        dtype=model.dtype,
        device=model.device,
        batch_rows=settings.batch_rows,
        cpu_threads=model.cpu_threads,
    )
