"""The batch-1 side: an Engine that does what the public scripts do [C: LLaVA-Hound]. One sample a call of transformers'
`generate`, two calls for two answers, the clip through the processor and the tower in every one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isr_dpo import models
from isr_dpo.engines import Choice, Choose, Progress, Sample, Text
from isr_dpo.models.common import place


class Batch1Engine:
    """Runs the policy in `folder`. `prefilled` counts the prompt tokens that it has computed."""

    deterministic = False

    def __init__(self, folder: Path, frames: Callable[[str], np.ndarray], *, device: str, dtype: str) -> None:
        self._policy = models.load(folder, device=device, dtype=dtype)
        self._frames = frames
        self.prefilled = 0

    @torch.inference_mode()
    def sample(self, requests: Sequence[Sample], progress: Progress = lambda _: None) -> list[list[Text]]:
        return [[self._draw(request, seed) for seed in request.seeds] for request in requests]

    @torch.inference_mode()
    def choose(self, requests: Sequence[Choose], progress: Progress = lambda _: None) -> list[Choice]:
        return [self._choose(request) for request in requests]

    def _draw(self, request: Sample, seed: int) -> Text:
        torch.manual_seed(seed)
        inputs = self._inputs(request.video, request.prompt, "")
        drawing = {"temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        out = self._policy.model.generate(
            **inputs,
            do_sample=request.temperature > 0,
            max_new_tokens=request.max_new_tokens,
            **(drawing if request.temperature else {}),
        )
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        eos = self._policy.model.generation_config.eos_token_id
        ended = eos in new
        kept = new[: new.index(eos)] if ended else new
        text = self._policy.tokenizer.decode(kept, skip_special_tokens=True).strip()
        return Text(text, len(kept), "stop" if ended else "length")

    def _choose(self, request: Choose) -> Choice:
        encode = self._policy.tokenizer.encode
        labels = [encode(f"{request.cue} {label}".strip(), add_special_tokens=False)[-1] for label in request.labels]
        inputs = self._inputs(request.video, request.prompt, request.cue)
        logits = self._policy.model(**inputs, logits_to_keep=1).logits[0, -1]
        first, second = logits.double().softmax(-1)[labels].tolist()
        return Choice((first, second), "")

    def _inputs(self, video: str, prompt: str, cue: str) -> dict[str, Any]:
        policy = self._policy
        encoded = policy.encode([policy.chat(prompt)], [self._frames(video)])
        ids = torch.tensor([encoded.ids[0] + policy.tokenizer.encode(cue, add_special_tokens=False)])
        self.prefilled += ids.shape[1]
        ids = ids.to(policy.model.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            **policy.family.inputs(policy.model, ids),
            **place(policy.model, encoded.videos[0]),
        }
