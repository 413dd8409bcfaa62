"""Lets torchvision be imported where its compiled operators do not fit torch, as beside a CPU-only torch from another
index: two operators that it looks up at import are declared, without an implementation. Nothing here calls them.

`make test-vllm` copies this file into its environment, with a .pth file that imports it when an interpreter starts.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _Declare(importlib.abc.MetaPathFinder):
    """Finds nothing; declares the operators just before torchvision is found by the others."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
                library.define(schema)
        _kept.append(library)  # what it declares goes when it goes


_kept: list[Any] = []
sys.meta_path.insert(0, _Declare())
