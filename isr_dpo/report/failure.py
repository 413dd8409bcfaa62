"""Why a run stopped, and the way out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from isr_dpo import layout
from isr_dpo.stores import Missing, read_bytes
from isr_dpo.titles import OF_A_POLICY

_WAY_OUT = {
    "RecipeError": "Mend the recipe, then run again.",
    "DataError": "Mend the data, then run again.",
    "StaleOutput": "Use another run URI, or delete what the message names.",
    "CorruptOutput": "Delete what the message names, then run again.",
    "RunBusy": "Wait for the other run, or stop it.",
    "GuardTripped": "Look at the trend below: the loop was stopped before it burnt a round.",
    "ModelError": "Use another model, or smaller settings.",
    "StoreError": "Make room or give access, then run the same command again: finished work stands.",
    "OutsideError": "A service was away. Run the same command again: finished work stands.",
    "KeyRefused": "Give a key that the service takes, then run the same command again: finished work stands.",
    "BudgetSpent": "Raise the ceiling in the recipe, then run the same command again: what was bought is kept.",
}


@dataclass(frozen=True)
class Failure:
    """Why a run stopped; the keys of failed.json."""

    step: str
    index: int
    error: str
    """The error's class."""
    message: str
    run_id: str = ""
    retry: bool = False

    @property
    def place(self) -> str:
        """Step and round, or step and policy."""
        if self.step in OF_A_POLICY:
            return f"{self.step}, {layout.policy_name(self.index)}"
        if self.step == "train" and self.index == 0:
            return "train, seed DPO"
        return f"{self.step}, round {self.index}" if self.index else self.step

    @property
    def way_out(self) -> str:
        first = "" if self.retry else "Once the cause is mended, "
        again = f"{first}run the same command again: it goes on from what is finished."
        return _WAY_OUT.get(self.error, again[0].upper() + again[1:])


def recorded(run_uri: str) -> Failure | None:
    """What the run's failed.json says; None where no step failed. One that cannot be read is a failure too."""
    try:
        content = read_bytes(layout.failure(run_uri))
    except Missing:
        return None
    try:
        tree: dict[str, Any] = json.loads(content)
        return Failure(**{name: tree[name] for name in Failure.__dataclass_fields__ if name in tree})
    except (ValueError, TypeError):
        return Failure("pipeline", 0, "Unknown", f"{layout.failure(run_uri)} cannot be read", retry=True)
