"""Video LMMs: one file a model family. `load` opens a policy folder with the family its config names."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from isr_dpo.errors import ModelError
from isr_dpo.models.folder import FAMILIES as FAMILIES
from isr_dpo.models.folder import architecture

if TYPE_CHECKING:
    import numpy as np
    import torch

    from isr_dpo.models.common import Encoded


@dataclass(frozen=True)
class Policy:
    """A loaded model with its processor and family. Frames are uint8 [F, H, W, 3], already resized by `resizer`."""

    model: Any
    processor: Any
    family: ModuleType

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def chat(self, prompt: str) -> str:
        """The chat-formatted text of a prompt about one video, up to where the model's turn begins."""
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=None if self.processor.chat_template else self.family.CHAT_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
        return text

    def encode(self, texts: Sequence[str], videos: Sequence[np.ndarray]) -> Encoded:
        """Token ids of each chat text, its video expanded, and the model's inputs of its video: one video a text."""
        encoded: Encoded = self.family.encode(self.processor, texts, videos)
        return encoded

    def trainable(self, *, projector: bool = False) -> dict[str, torch.nn.Parameter]:
        """The parameters that DPO trains: the whole language model, and the projector where asked for; towers stay
        frozen [C]."""
        prefixes = (*self.family.LANGUAGE, *(self.family.PROJECTOR if projector else ()))
        return {n: p for n, p in self.model.named_parameters() if n.startswith(prefixes)}


def load(folder: Path, *, dtype: str = "float32", device: str = "cpu", cpu_threads: int | None = None) -> Policy:
    """Opens the policy in `folder` (safetensors only, no remote code).

    Raises:
        ModelError: no model there, an unsupported class, or weights that do not fit.
    """
    family = family_of(folder)
    import torch
    from safetensors import SafetensorError

    if cpu_threads is not None:
        torch.set_num_threads(cpu_threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, processor = family.load(folder, dtype=getattr(torch, dtype))
        model = model.to(device).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a {family.ARCHITECTURE}: {error}") from error
    return Policy(model=model, processor=processor, family=family)


def family_of(folder: Path) -> ModuleType:
    """The family module for the `architectures` entry of `folder/config.json`; loads no weights."""
    name = architecture(folder)
    from transformers.utils import logging

    logging.set_verbosity_error()  # it reports its choice of image backend, which frames never reach
    logging.disable_progress_bar()
    return importlib.import_module(f"isr_dpo.models.{FAMILIES[name]}")


def save(policy: Policy, folder: Path) -> None:
    """Writes model (safetensors) and processor to `folder`."""
    with _without("deepspeed"):
        policy.model.save_pretrained(folder)
    policy.processor.save_pretrained(folder)


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Hides a package that is not loaded yet: when transformers saves a model it asks, through accelerate, every
    installed library of parallel training whether it has wrapped it, and loading DeepSpeed for that costs seconds."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
