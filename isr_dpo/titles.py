"""One name for a step in logs, in a terminal and on KFP's pages."""

from __future__ import annotations

from isr_dpo.layout import policy_name

ONCE = ("preflight", "prepare", "pipeline")
OF_A_POLICY = ("answer", "evaluate", "register", "report")


def title(step: str, index: int) -> str:
    """`round 2 · judge`, `policy-03 · evaluate`, `seed DPO`."""
    if step in ONCE:
        return step
    if step in OF_A_POLICY:
        return f"{policy_name(index)} · {step}"
    return "seed DPO" if index == 0 else f"round {index} · {step}"
