"""Ask a policy about a video file: what `isr-dpo ask` and the registered model's pyfunc flavour do."""

from __future__ import annotations

from pathlib import Path

from isr_dpo import models, prompts
from isr_dpo.engines import Sample
from isr_dpo.errors import DataError


def ask(folder: Path, video: Path, question: str, *, max_new_tokens: int = 256) -> str:
    """The greedy answer of the policy in `folder` to `question` about the file `video`.

    Raises:
        ModelError: no policy there. DataError: the video cannot be read.
    """
    if not question.strip():
        raise DataError("the question is empty")
    from isr_dpo.data.video import Unreadable, decode
    from isr_dpo.engines.hf import HFEngine

    family = models.family_of(folder)
    try:
        decoded = decode(video, frames=family.frames(folder))
    except Unreadable as error:
        raise DataError(f"{video}: {error}") from error
    frames = family.resizer(folder)(decoded.frames)
    engine = HFEngine(folder, lambda _: frames, dtype="float32", device="auto", batch_rows=1)
    prompt = prompts.load("lmm").answer.render(question=question)
    ((text,),) = engine.sample([Sample(str(video), prompt, (0,), 0.0, 1.0, max_new_tokens)])
    return text.text
