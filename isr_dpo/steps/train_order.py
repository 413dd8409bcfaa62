"""What a node of a training job is told when it is started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from isr_dpo.config import Recipe
from isr_dpo.steps.common import Inputs


@dataclass(frozen=True)
class Order:
    """Which round of which run to train; no secret is part of it."""

    recipe: str
    """Canonical JSON."""
    run_uri: str
    run_id: str
    index: int
    inputs: Mapping[str, str]
    """Their digests. The manifests lie where the run's layout has them."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Order:
        return cls(**json.loads(text))

    @classmethod
    def of(cls, recipe: Recipe, inputs: Inputs, run_uri: str, run_id: str, index: int) -> Order:
        return cls(recipe.canonical(), run_uri, run_id, index, {name: made.digest for name, made in inputs.items()})
