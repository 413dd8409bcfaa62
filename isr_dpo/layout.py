"""Where a run's outputs lie under its URI, and who is who: round t reads policy-t and writes policy-(t+1)."""

from __future__ import annotations

from isr_dpo.stores import join


def run_file(run_uri: str) -> str:
    return join(run_uri, "run.json")


def dataset(run_uri: str) -> str:
    return join(run_uri, "dataset")


def frames(run_uri: str) -> str:
    return join(run_uri, "frames")


def round_output(run_uri: str, index: int, name: str) -> str:
    """`name` is responses, contexts, preferences or training; round 0 is the seed DPO."""
    return join(run_uri, f"round-{index:02d}", name)


def policy_name(index: int) -> str:
    return f"policy-{index:02d}"


def policy(run_uri: str, index: int) -> str:
    return join(run_uri, policy_name(index))


def masters(run_uri: str, index: int) -> str:
    """fp32 weights of the newest policy, where policies are stored in less."""
    return join(run_uri, "masters", policy_name(index))


def answers(run_uri: str, index: int) -> str:
    """Holds a directory an evaluation set."""
    return join(run_uri, "answers", policy_name(index))


def evaluation(run_uri: str, index: int) -> str:
    """Holds a directory `<protocol>-<set>` each."""
    return join(run_uri, "evaluation", policy_name(index))


def report(run_uri: str) -> str:
    return join(run_uri, "report", "index.html")


def failure(run_uri: str) -> str:
    """What stopped the latest attempt; absent while none did."""
    return join(run_uri, "failed.json")


def tracked_marks(run_uri: str) -> str:
    """Holds a mark for each step that MLflow has."""
    return join(run_uri, "tracked")


def tracked(run_uri: str, step: str, index: int) -> str:
    """Remembers, by digest, that MLflow has a step's metrics."""
    return join(tracked_marks(run_uri), f"{step}-{index:02d}")
