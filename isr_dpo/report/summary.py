"""What a run has come to so far, in figures: read from its manifests and metrics.json files, for the closing table and
the report alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from isr_dpo import layout
from isr_dpo.config import Recipe
from isr_dpo.manifest import files, find

Metrics = Mapping[str, float]
"""The keys of a metrics.json; empty where its output is not complete."""

DROPPED = "dropped_"
METRICS = "metrics.json"


@dataclass(frozen=True)
class PolicySummary:
    """A policy, and the round it came out of: policy p is trained in round p - 1, round 0 being the seed DPO."""

    index: int
    responses: Metrics = field(default_factory=dict)
    contexts: Metrics = field(default_factory=dict)
    preferences: Metrics = field(default_factory=dict)
    training: Metrics = field(default_factory=dict)
    evaluation: Mapping[str, Metrics] = field(default_factory=dict)
    """By evaluation set, of those graded so far."""

    @property
    def name(self) -> str:
        return layout.policy_name(self.index)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows that yielded no preference, by reason."""
        return {k.removeprefix(DROPPED): int(v) for k, v in self.preferences.items() if k.startswith(DROPPED)}


@dataclass(frozen=True)
class Summary:
    """A run so far. `policies` holds policy-01 to the last, of a benchmark policy-00 alone; an unfinished one has empty
    metrics."""

    name: str
    dev: str
    """The evaluation set that selects; of a benchmark the one that stands first."""
    dataset: Metrics
    policies: tuple[PolicySummary, ...]

    @property
    def best(self) -> PolicySummary | None:
        """The policy of highest dev accuracy, the earliest of equals; None while none is graded."""
        graded = [p for p in self.policies if "accuracy" in p.evaluation.get(self.dev, {})]
        return max(graded, key=lambda p: p.evaluation[self.dev]["accuracy"], default=None)


def summarise(run_uri: str, recipe: Recipe) -> Summary:
    """The figures of the run at `run_uri`; what is not complete yet is left out.

    Raises:
        CorruptOutput: a metrics.json differs from its manifest.
    """
    return Summary(
        name=recipe.name,
        dev=recipe.leading_set,
        dataset=_metrics(layout.dataset(run_uri)),
        policies=tuple(_policy(run_uri, index, recipe) for index in recipe.policies),
    )


def _policy(run_uri: str, index: int, recipe: Recipe) -> PolicySummary:
    def of_round(name: str) -> Metrics:
        return _metrics(layout.round_output(run_uri, index - 1, name)) if index else {}

    graded = {name: _metrics(layout.graded(run_uri, index, recipe.protocol(name), name)) for name in recipe.data.sets}
    return PolicySummary(
        index=index,
        responses=of_round("responses"),
        contexts=of_round("contexts"),
        preferences=of_round("preferences"),
        training=of_round("training"),
        evaluation={name: metrics for name, metrics in graded.items() if metrics},
    )


def _metrics(uri: str) -> Metrics:
    manifest = find(uri)
    if manifest is None or METRICS not in manifest.files:
        return {}
    tree: dict[str, float] = json.loads((files(manifest, {METRICS}) / METRICS).read_bytes())
    return tree
