"""Ask a policy about video files: what `isr-dpo ask` and the registered model's pyfunc flavour do."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from isr_dpo import models, prompts
from isr_dpo.data.video import Unreadable, decode
from isr_dpo.engines import Sample
from isr_dpo.engines.hf import HFEngine
from isr_dpo.errors import DataError
from isr_dpo.records import NOT_ASKED


class Answerer:
    """The policy in `folder`, its weights loaded at the first question and kept. Raises ModelError: no policy there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._family = models.family_of(folder)
        self._frames: dict[str, np.ndarray] = {}

    def ask(self, video: Path, question: str, *, max_new_tokens: int = 256) -> str:
        """The greedy answer to `question` about the file `video`.

        Raises:
            DataError: the question is empty or too long, or the video cannot be read.
        """
        if not question.strip():
            raise DataError("the question is empty")
        try:
            decoded = decode(video, frames=self._family.frames(self._folder))
        except Unreadable as error:
            raise DataError(f"{video}: {error}") from error
        self._frames = {str(video): self._family.resizer(self._folder)(decoded.frames)}
        prompt = prompts.load("lmm").answer.render(question=question)
        ((text,),) = self._engine.sample([Sample(str(video), prompt, (0,), 0.0, 1.0, max_new_tokens)])
        if text.finish in NOT_ASKED:
            raise DataError(f"the question cannot be asked: {NOT_ASKED[text.finish]}")
        return text.text

    @functools.cached_property
    def _engine(self) -> HFEngine:
        return HFEngine(self._folder, lambda key: self._frames[key], dtype="float32", device="auto", batch_rows=1)
